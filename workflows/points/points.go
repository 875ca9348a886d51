// Package points has the workflow that lists a machine's recovery points, so
// that they can be asked for through Temporal like everything else.
package points

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// List gives the machine's recovery points, oldest first: from the vault's store,
// or from the store of the server that is named.
func List(ctx workflow.Context, in api.PointsInput) ([]replica.Point, error) {
	if in.Machine.IsZero() {
		return nil, fault.New(api.CodeInvalid, "list recovery points: no machine given")
	}
	if in.Server != "" {
		return call.HostListPoints(ctx, in.Server, in.Machine)
	}
	return call.ListPoints(ctx, in.Machine)
}
