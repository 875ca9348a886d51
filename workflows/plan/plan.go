// Package plan has the workflow RecoveryPlan: one run of a plan. It is compiled
// into steps first, so that a machine that is not protected or a plan that is not
// there fails the run before anything is changed.
package plan

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Defaults and bounds of a run.
const (
	actionTimeout = 5 * time.Minute
	manualTimeout = 24 * time.Hour
	maxTries      = 100 // of one step, by hand
)

// States of a run, as api.PlanStatus tells them.
const (
	stateRunning   = "running"
	stateWaiting   = "waiting"
	stateDone      = "done"
	stateFailed    = "failed"
	stateCancelled = "cancelled"
)

// run is a run under way.
type run struct {
	in     api.PlanRunInput
	id     string // workflow id
	status api.PlanStatus
	steps  []step
	groups int
	// decisions by step, not yet taken up
	decided   map[string]decision
	cancelled string // by whom; "" is not
	pinned    []api.CommonPoint
}

// decision is what a person said about a step that waits.
type decision struct {
	what string
	api.StepDecision
}

// Workflow runs a plan. Its result is the status; it fails when the run failed, so
// that it shows as failed in Temporal too.
func Workflow(ctx workflow.Context, in api.PlanRunInput) (api.PlanStatus, error) {
	r := &run{in: in, id: workflow.GetInfo(ctx).WorkflowExecution.ID, decided: map[string]decision{}}
	r.status = api.PlanStatus{Plan: in.Plan, Kind: in.Kind, State: stateRunning, Started: workflow.Now(ctx), Steps: []api.PlanStep{}}
	if err := r.handlers(ctx); err != nil {
		return r.status, err
	}
	if err := r.compile(ctx); err != nil {
		return r.end(ctx, err)
	}
	if in.DryRun {
		r.status.Message = "a dry run: nothing was done"
		return r.end(ctx, nil)
	}
	attribute := temporal.NewSearchAttributeKeyKeyword(api.SearchPlan).ValueSet(in.Plan)
	if err := workflow.UpsertTypedSearchAttributes(ctx, attribute); err != nil {
		return r.end(ctx, err)
	}
	r.show(ctx)
	if err := r.pin(ctx); err != nil {
		return r.end(ctx, err)
	}
	defer r.unpin(ctx)
	return r.end(ctx, r.play(ctx))
}

// end closes the run: with an error when it failed or was cancelled.
func (r *run) end(ctx workflow.Context, err error) (api.PlanStatus, error) {
	r.status.Finished = workflow.Now(ctx)
	r.status.RTO = api.Duration(r.status.Finished.Sub(r.status.Started))
	switch {
	case r.cancelled != "" || fault.Cancelled(err):
		r.status.State = stateCancelled
		r.status.Message = "cancelled by " + r.by(r.cancelled)
		if err == nil {
			err = fault.New(api.CodeActionFailed, "plan %s, %s: %s", r.in.Plan, r.in.Kind, r.status.Message)
		}
	case err != nil:
		r.status.State, r.status.Message = stateFailed, fault.Message(err)
	default:
		r.status.State = stateDone
	}
	r.show(ctx)
	if err == nil {
		return r.status, nil
	}
	if fault.Cancelled(err) {
		return r.status, err
	}
	return r.status, fault.WithDetails(codeOf(err), err, r.status, "plan %s, %s: %s", r.in.Plan, r.in.Kind, fault.Message(err))
}

func codeOf(err error) string {
	if code := fault.Code(err); code != "" {
		return code
	}
	return api.CodeInternal
}

func (*run) by(who string) string {
	if who == "" {
		return "Temporal"
	}
	return who
}

// handlers answer the query and take decisions, by update or by signal.
func (r *run) handlers(ctx workflow.Context) error {
	query := func() (api.PlanStatus, error) { return r.status, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return err
	}
	for _, what := range []string{api.PlanApprove, api.PlanReject, api.PlanRetry, api.PlanSkip, api.PlanCancel} {
		update := func(ctx workflow.Context, d api.StepDecision) (api.PlanStatus, error) {
			r.decide(what, d)
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
				r.decide(what, d)
			}
		})
	}
	return nil
}

// waiting gives the step that a decision is about.
func (r *run) waiting(d api.StepDecision) (int, error) {
	found := -1
	for i, s := range r.status.Steps {
		if s.State != api.StepWaiting || d.Step != "" && d.Step != s.ID {
			continue
		}
		if found >= 0 {
			return 0, fault.New(api.CodeInvalid, "several steps wait: name one (%s, %s)", r.status.Steps[found].ID, s.ID)
		}
		found = i
	}
	if found < 0 {
		return 0, fault.New(api.CodeNotInState, "no step of %s waits for a person now", r.id)
	}
	return found, nil
}

// possible refuses a decision that does not fit.
func (r *run) possible(what string, d api.StepDecision) error {
	if what == api.PlanCancel {
		if r.status.State != stateRunning && r.status.State != stateWaiting {
			return fault.New(api.CodeNotInState, "%s has ended (%s)", r.id, r.status.State)
		}
		return nil
	}
	i, err := r.waiting(d)
	if err != nil {
		return err
	}
	s := r.status.Steps[i]
	if _, already := r.decided[s.ID]; already {
		return fault.New(api.CodeBusy, "step %s has its decision already", s.ID)
	}
	manual := s.Kind == kindManual && s.Result == nil && !r.steps[i].failed
	if manual != (what == api.PlanApprove || what == api.PlanReject) {
		return fault.New(api.CodeInvalid, "%s does not fit step %s: a manual step wants approve or reject, a failed one retry or skip", what, s.ID)
	}
	return nil
}

func (r *run) decide(what string, d api.StepDecision) {
	if what == api.PlanCancel {
		r.cancelled = d.By
		if d.By == "" {
			r.cancelled = "an operator"
		}
		return
	}
	if i, err := r.waiting(d); err == nil {
		r.decided[r.status.Steps[i].ID] = decision{what, d}
	}
}

// show puts the run into the UI: a table in Markdown.
func (r *run) show(ctx workflow.Context) {
	text := fmt.Sprintf("### %s, %s: %s %s\n\n| step | state | |\n|---|---|---|\n", r.in.Plan, r.in.Kind, r.status.State, r.status.Message)
	for _, s := range r.status.Steps {
		text += fmt.Sprintf("| %s | %s | %s |\n", s.ID, s.State, firstLine(s.Message))
	}
	workflow.SetCurrentDetails(ctx, text)
}

func firstLine(s string) string {
	const most = 120
	for i, c := range s {
		if c == '\n' || i >= most {
			return s[:i]
		}
	}
	return s
}

// compile looks everything up and lists the steps.
func (r *run) compile(ctx workflow.Context) error {
	if !slices.Contains(kinds, r.in.Kind) {
		return fault.New(api.CodeInvalid, "plan %s: unknown kind of run %q", r.in.Plan, r.in.Kind)
	}
	p, err := call.LookupPlan(ctx, r.in.Plan)
	if err != nil {
		return err
	}
	if wrong := api.ValidatePlan(p); len(wrong) > 0 {
		return fault.New(api.CodeInvalid, "plan %s: %s", p.Name, wrong[0].Error())
	}
	r.groups = len(p.Groups)
	r.actions("before", -1, p.Before)
	for i, g := range p.Groups {
		at := fmt.Sprintf("%d", i+1)
		r.actions(at+"/before", i, g.Before)
		for _, m := range g.Machines {
			member, err := call.FindMachine(ctx, m.Name)
			if err != nil {
				return fault.Wrap(codeOf(err), err, "machine %s of group %s: %s", m.Name, g.Name, fault.Message(err))
			}
			r.add(step{group: i, machine: &member, optional: m.Optional}, api.PlanStep{ID: at + "/" + m.Name, Group: g.Name, Kind: kindMachine, Name: m.Name})
		}
		r.actions(at+"/after", i, g.After)
	}
	r.actions("after", len(p.Groups), p.After)
	if err := r.checkActions(ctx, p); err != nil {
		return fault.Wrap(codeOf(err), err, "plan %s: %s", p.Name, fault.Message(err))
	}
	return nil
}

// actions adds those that take part in this kind of run.
func (r *run) actions(at string, group int, actions []api.PlanAction) {
	for _, a := range actions {
		if !takesPart(a, r.in.Kind) {
			continue
		}
		r.add(step{group: group, action: &a}, api.PlanStep{ID: at + "/" + a.Name, Kind: kindOf(a), Name: a.Name})
	}
}

func takesPart(a api.PlanAction, kind api.PlanKind) bool {
	return kind.BringsUp() && (len(a.On) == 0 || slices.Contains(a.On, kind))
}

func (r *run) add(s step, line api.PlanStep) {
	line.State = api.StepPending
	r.steps = append(r.steps, s)
	r.status.Steps = append(r.status.Steps, line)
}
