package plan

import (
	"fmt"
	"slices"

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
	takes := func(a api.PlanAction) bool {
		return slices.ContainsFunc(phases(r.in.Kind), func(k api.PlanKind) bool { return takesPart(a, k) })
	}
	for _, a := range p.Actions() {
		if takes(a.Action) && a.Action.OnError != "continue" {
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

// maxPrechecks run at once.
const maxPrechecks = 20

// precheck asks the target of a dry run what it would refuse: names, addresses, quota,
// permissions, networks; and vCenter, for a way back, whether the original is there, or can
// be made where the plan says. It advises; nothing fails by it.
func (r *run) precheck(ctx workflow.Context) {
	var ask func(workflow.Context, api.PrecheckInput) error
	change := "precheck"
	switch r.in.Kind {
	case api.PlanTest, api.PlanPlanned, api.PlanUnplanned:
		ask = call.Precheck
	case api.PlanReprotect, api.PlanReturn:
		ask, change = call.PrecheckReturn, "precheck-return"
	default:
		return
	}
	if workflow.GetVersion(ctx, change, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return
	}
	turns := workflow.NewSemaphore(ctx, maxPrechecks)
	for i, err := range atOnce(ctx, len(r.steps), func(ctx workflow.Context, i int) error {
		s := r.steps[i]
		if s.machine == nil || s.kind != phases(r.in.Kind)[0] || turns.Acquire(ctx, 1) != nil { // cancelled
			return nil
		}
		defer turns.Release(1)
		return ask(ctx, api.PrecheckInput{Machine: s.machine.Machine, Kind: s.kind, Network: r.in.Network, Location: s.location})
	}) {
		if err != nil {
			r.status.Steps[i].Problem = fault.Message(err)
		}
	}
}
