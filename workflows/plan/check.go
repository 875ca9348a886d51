package plan

import (
	"fmt"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Check says what is wrong with a plan, as far as it can be known without running
// it: its fields, and whether its scripts and webhooks may be run.
func Check(ctx workflow.Context, p api.Plan) ([]api.FieldError, error) {
	if wrong := api.ValidatePlan(p); len(wrong) > 0 {
		return wrong, nil
	}
	if len(p.Actions()) == 0 {
		return nil, nil
	}
	return call.CheckActions(ctx, p.Actions())
}

// checkActions refuses a run whose actions could not be run, before anything starts.
// Only those of the run's kind count: a failover does not fail for the want of a
// script of the failback.
func (r *run) checkActions(ctx workflow.Context, p api.Plan) error {
	if workflow.GetVersion(ctx, "check-actions", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil // begun before there was a check
	}
	var mine []api.LocatedAction
	for _, a := range p.Actions() {
		if takesPart(a.Action, r.in.Kind) && a.Action.OnError != "continue" {
			mine = append(mine, a)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	wrong, err := call.CheckActions(ctx, mine)
	if err != nil || len(wrong) == 0 {
		return err
	}
	more := ""
	if n := len(wrong) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	return fault.New(api.CodeInvalid, "%s%s; nothing was started", wrong[0].Error(), more)
}
