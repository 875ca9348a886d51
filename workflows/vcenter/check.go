// Package vcenter has the workflow that says what the user of a vCenter lacks, so that it
// can be asked for through Temporal like everything else.
package vcenter

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Check gives the privileges that are missing for the functions.
func Check(ctx workflow.Context, in api.CheckVCenterInput) (api.VCenterCheck, error) {
	if in.VCenter == "" || len(in.Functions) == 0 {
		return api.VCenterCheck{}, fault.New(api.CodeInvalid, "check a vCenter: its name or the functions are missing")
	}
	return call.CheckPrivileges(ctx, in)
}
