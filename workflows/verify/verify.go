// Package verify has the workflow that compares a machine's source with its replica
// while it replicates. All work is one activity on the server that has the machine.
package verify

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Workflow gives the signed record of the comparison, whatever its verdict.
func Workflow(ctx workflow.Context, in api.VerifyInput) (stream.SignedRecord, error) {
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, func() (api.VerifyInput, error) { return in, nil }); err != nil {
		return stream.SignedRecord{}, err
	}
	if in.Machine.IsZero() || in.Server == "" || in.Epoch == 0 || in.Rate < 0 || in.Rate > 0 && in.Rate < stream.MinVerifyRate {
		return stream.SignedRecord{}, fault.New(api.CodeInvalid,
			"compare a machine with its replica: machine, server and epoch are needed, and a rate of 0 (no bound) or at least %d bytes per second", stream.MinVerifyRate)
	}
	return call.Verify(ctx, in)
}
