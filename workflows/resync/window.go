package resync

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Window is what a Temporal Schedule starts when a policy's resync window opens:
// it asks the policy's machines to resync if they are marked for it.
func Window(ctx workflow.Context, in api.ResyncWindowInput) (api.ResyncWindowResult, error) {
	if in.Policy == "" {
		return api.ResyncWindowResult{}, fault.New(api.CodeInvalid, "resync window: no policy named")
	}
	vault, err := call.VaultStatus(ctx)
	if err != nil {
		return api.ResyncWindowResult{}, err
	}
	for _, p := range vault.Policies {
		if p.Policy.Name != in.Policy {
			continue
		}
		if !p.Policy.Resync.Automatic {
			return api.ResyncWindowResult{Message: "policy " + in.Policy + " resyncs by hand only"}, nil
		}
		return ask(ctx, in.Policy, vault.Machines), nil
	}
	return api.ResyncWindowResult{}, fault.New(api.CodeNotFound,
		"resync window: the vault has no policy %s; delete its schedule or apply the policy", in.Policy)
}

// ask signals the machines of the policy. One that cannot be reached does not
// keep the others from being asked.
func ask(ctx workflow.Context, policy string, machines []api.VaultMember) api.ResyncWindowResult {
	var out api.ResyncWindowResult
	request := api.ActionRequest{
		RequestID: workflow.GetInfo(ctx).WorkflowExecution.ID + "/" + workflow.GetInfo(ctx).WorkflowExecution.RunID,
		By:        "resync window", Reason: "resync window of policy " + policy, OnlyIfRequired: true,
	}
	missed := 0
	for _, m := range machines {
		if m.Policy != policy {
			continue
		}
		err := workflow.SignalExternalWorkflow(ctx, api.MachineWorkflowID(m.Machine), "", api.ActionResync, request).Get(ctx, nil)
		if err != nil {
			missed++
			workflow.GetLogger(ctx).Warn("machine could not be asked to resync", "machine", m.Machine, "error", err)
			continue
		}
		out.Asked = append(out.Asked, m)
	}
	out.Message = fmt.Sprintf("%d machines asked, %d not reached", len(out.Asked), missed)
	return out
}
