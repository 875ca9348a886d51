package plan

import (
	"slices"
	"strings"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// What a step asks a person.
const (
	askManual     = "manual"
	askFailedStep = "failed step" // that says: ask
	askFailed     = "failed"      // that stopped the run
)

// decision is what a person said about a step that waits.
type decision struct {
	what string
	api.StepDecision
}

// handlers answer the query and take decisions, by update or by signal.
func (r *run) handlers(ctx workflow.Context) error {
	query := func() (api.PlanStatus, error) { return r.status, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return err
	}
	for _, what := range api.PlanDecisions {
		update := func(ctx workflow.Context, d api.StepDecision) (api.PlanStatus, error) {
			r.decide(ctx, what, d)
			return r.status, nil
		}
		validate := func(d api.StepDecision) error { return r.possible(what, d) }
		if err := workflow.SetUpdateHandlerWithOptions(ctx, what, update, workflow.UpdateHandlerOptions{Validator: validate}); err != nil {
			return err
		}
		signals := workflow.GetSignalChannel(ctx, what)
		workflow.Go(ctx, func(ctx workflow.Context) {
			for {
				var d api.StepDecision
				signals.Receive(ctx, &d)
				if err := r.possible(what, d); err != nil {
					workflow.GetLogger(ctx).Warn("signal was refused", "signal", what, "reason", err)
					continue
				}
				r.decide(ctx, what, d)
			}
		})
	}
	return nil
}

func fits(what, asks string) bool {
	if what == api.PlanApprove || what == api.PlanReject {
		return asks == askManual
	}
	return asks == askFailed || asks == askFailedStep
}

// asked gives the step that a decision is about.
func (r *run) asked(what string, d api.StepDecision) (int, error) {
	var fit, other []string
	found := 0
	for i, s := range r.steps {
		id := r.status.Steps[i].ID
		switch {
		case s.asks == "" || d.Step != "" && d.Step != id:
		case fits(what, s.asks):
			fit, found = append(fit, id), i
		default:
			other = append(other, id)
		}
	}
	switch {
	case len(fit) == 1:
		return found, nil
	case len(fit) > 1:
		return 0, fault.New(api.CodeInvalid, "several steps wait, name one: %s", strings.Join(fit, ", "))
	case len(other) > 0:
		return 0, fault.New(api.CodeInvalid, "%s does not fit step %s: a manual step wants approve or reject, a failed one retry or skip", what, other[0])
	case d.Step != "":
		return 0, fault.New(api.CodeNotInState, "step %q of %s waits for nobody now", d.Step, r.id)
	}
	return 0, fault.New(api.CodeNotInState, "no step of %s waits for a person now (%s)", r.id, r.status.State)
}

// possible refuses a decision that does not fit.
func (r *run) possible(what string, d api.StepDecision) error {
	if ended := []string{api.RunDone, api.RunFailed, api.RunCancelled, api.RunUndone}; slices.Contains(ended, r.status.State) {
		return fault.New(api.CodeNotInState, "%s has ended (%s)", r.id, r.status.State)
	}
	switch what {
	case api.PlanCancel:
		return nil
	case api.PlanBack:
		return r.mayGoBack()
	case api.PlanPause:
		if r.paused != "" || r.undoing {
			return fault.New(api.CodeNotInState, "%s cannot be paused: it is %s", r.id, r.status.State)
		}
		return nil
	case api.PlanResume:
		if r.paused == "" {
			return fault.New(api.CodeNotInState, "%s is not paused but %s", r.id, r.status.State)
		}
		return nil
	}
	i, err := r.asked(what, d)
	if err != nil {
		return err
	}
	id := r.status.Steps[i].ID
	if _, already := r.decided[id]; already {
		return fault.New(api.CodeBusy, "step %s has its decision already", id)
	}
	if a := r.steps[i].action; a != nil && a.Manual != nil && fits(api.PlanApprove, r.steps[i].asks) &&
		len(a.Manual.Approvers) > 0 && !slices.Contains(a.Manual.Approvers, d.By) {
		return fault.New(api.CodeInvalid, "step %s is decided by %s, not by %q", id, strings.Join(a.Manual.Approvers, ", "), d.By)
	}
	return nil
}

// mayGoBack refuses to roll back what cannot be.
func (r *run) mayGoBack() error {
	if r.undoing || r.back != "" {
		return fault.New(api.CodeBusy, "%s is being rolled back already", r.id)
	}
	for i, s := range r.steps {
		if s.machine != nil && api.UndoOf(s.kind) == "" && r.status.Steps[i].State != api.StepPending {
			return fault.New(api.CodeNotInState, "%s cannot be rolled back: nothing undoes %s of %s; possible: retry, skip, cancel", r.id, s.kind, r.status.Steps[i].Name)
		}
	}
	return nil
}

func (r *run) decide(ctx workflow.Context, what string, d api.StepDecision) {
	who := d.By
	if who == "" {
		who = "an operator"
	}
	switch what {
	case api.PlanCancel:
		r.cancelled = who
	case api.PlanBack:
		r.back = who
	case api.PlanPause:
		r.paused = who
		r.mood(ctx)
	case api.PlanResume:
		r.paused = ""
		r.mood(ctx)
	default:
		if i, err := r.asked(what, d); err == nil {
			r.decided[r.status.Steps[i].ID] = decision{what, d}
		}
	}
}
