package plan

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Kinds of step, as api.PlanStep tells them.
const (
	kindScript  = "script"
	kindWebhook = "webhook"
	kindRunbook = "runbook"
	kindManual  = "manual"
	kindMachine = "machine"
)

var kinds = []api.PlanKind{
	api.PlanTest, api.PlanPlanned, api.PlanUnplanned, api.PlanCleanup,
	api.PlanCommit, api.PlanReprotect, api.PlanFailback, api.PlanReenable,
}

// step is what a line of the run does: an action or a machine.
type step struct {
	group    int
	action   *api.PlanAction
	machine  *api.VaultMember
	optional bool
	failed   bool // and asks what to do
	tries    int
}

func kindOf(a api.PlanAction) string {
	switch {
	case a.Script != nil:
		return kindScript
	case a.Webhook != nil:
		return kindWebhook
	case a.Runbook != nil:
		return kindRunbook
	}
	return kindManual
}

// play runs the steps in order; machines that stand together run together.
func (r *run) play(ctx workflow.Context) error {
	for i := 0; i < len(r.steps); {
		if r.cancelled != "" {
			return nil
		}
		if r.steps[i].action != nil {
			if err := r.runStep(ctx, i); err != nil {
				return err
			}
			i++
			continue
		}
		end := i
		for end < len(r.steps) && r.steps[end].machine != nil && r.steps[end].group == r.steps[i].group {
			end++
		}
		if err := r.together(ctx, i, end); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// together runs the machines of a group in parallel and waits for all of them,
// whatever becomes of one.
func (r *run) together(ctx workflow.Context, from, to int) error {
	errs := make([]error, to-from)
	wg := workflow.NewWaitGroup(ctx)
	for i := from; i < to; i++ {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			errs[i-from] = r.runStep(ctx, i)
		})
	}
	wg.Wait(ctx)
	for i, err := range errs {
		if err == nil {
			continue
		}
		if r.steps[from+i].optional && !fault.Cancelled(err) {
			workflow.GetLogger(ctx).Warn("optional machine failed", "step", r.status.Steps[from+i].ID, "error", err)
			continue
		}
		return err
	}
	return nil
}

// runStep runs a step until it is done, skipped or failed for good.
func (r *run) runStep(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	line.Started = workflow.Now(ctx)
	for {
		s.tries++
		line.State, line.Message = api.StepRunning, ""
		r.show(ctx)
		err := r.try(ctx, i)
		if err == nil {
			r.finish(ctx, i, api.StepDone)
			return nil
		}
		line.Message = fault.Message(err)
		again, err := r.afterFailure(ctx, i, err)
		if err != nil || !again {
			return err
		}
	}
}

func (r *run) finish(ctx workflow.Context, i int, state api.StepState) {
	r.status.Steps[i].State = state
	r.status.Steps[i].Finished = workflow.Now(ctx)
	r.show(ctx)
}

// afterFailure does what the action says about errors: again tells whether the
// step is tried once more; without an error and without again the run goes on.
func (r *run) afterFailure(ctx workflow.Context, i int, cause error) (again bool, err error) {
	s, line := &r.steps[i], &r.status.Steps[i]
	onError := "stop"
	if s.action != nil && s.action.OnError != "" {
		onError = s.action.OnError
	}
	failure := fault.Wrap(codeOf(cause), cause, "step %s: %s", line.ID, fault.Message(cause))
	switch {
	case fault.Cancelled(cause):
		r.finish(ctx, i, api.StepFailed)
		return false, cause
	case onError == "continue":
		r.finish(ctx, i, api.StepFailed)
		return false, nil
	case onError == "ask" && s.tries < maxTries:
		s.failed = true
		d, err := r.ask(ctx, i, manualTimeout)
		s.failed = false
		if err != nil {
			r.finish(ctx, i, api.StepFailed)
			return false, err
		}
		line.By = d.By
		if d.what == api.PlanRetry {
			return true, nil
		}
		r.finish(ctx, i, api.StepSkipped)
		return false, nil
	}
	r.finish(ctx, i, api.StepFailed)
	return false, failure
}

// ask waits for a person's decision about the step.
func (r *run) ask(ctx workflow.Context, i int, limit time.Duration) (decision, error) {
	line := &r.status.Steps[i]
	line.State, r.status.State = api.StepWaiting, stateWaiting
	r.show(ctx)
	ok, err := workflow.AwaitWithTimeout(ctx, limit, func() bool {
		_, is := r.decided[line.ID]
		return is || r.cancelled != ""
	})
	d, decided := r.decided[line.ID]
	delete(r.decided, line.ID)
	r.status.State = stateRunning
	for _, s := range r.status.Steps {
		if s.State == api.StepWaiting && s.ID != line.ID {
			r.status.State = stateWaiting
		}
	}
	switch {
	case err != nil:
		return d, err
	case decided:
		return d, nil
	case !ok:
		return d, fault.New(api.CodeApprovalTimedOut, "nobody decided about step %s within %s", line.ID, limit)
	}
	return d, fault.New(api.CodeActionFailed, "the run was cancelled while step %s waited", line.ID)
}

// try does the step once.
func (r *run) try(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	if s.machine != nil {
		return r.tryMachine(ctx, i)
	}
	timeout := s.action.Timeout.D()
	switch line.Kind {
	case kindManual:
		if timeout == 0 {
			timeout = manualTimeout
		}
		line.Message = s.action.Manual.Instructions
		d, err := r.ask(ctx, i, timeout)
		if err != nil {
			return err
		}
		line.By, line.Message = d.By, d.Note
		if d.what == api.PlanReject {
			return fault.New(api.CodeActionFailed, "rejected by %s: %s", r.by(d.By), d.Note)
		}
		return nil
	case kindScript:
		out, err := call.Script(ctx, api.ScriptInput{
			Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: r.in.Kind, Script: *s.action.Script,
		}, limit(timeout), s.action.Retries)
		line.Message = out.Output
		return err
	}
	if line.Kind == kindRunbook {
		out, err := call.Runbook(ctx, r.runbook(i), limit(timeout), s.action.Retries)
		line.Message = out.Output
		return err
	}
	out, err := call.Webhook(ctx, api.WebhookInput{
		Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: r.in.Kind, Webhook: *s.action.Webhook,
	}, limit(timeout), s.action.Retries)
	line.Message = out.Output
	return err
}

// runbook is what the step's runbook gets: the machines of its group, or all, as they
// are by now.
func (r *run) runbook(i int) api.RunbookInput {
	s, line := r.steps[i], r.status.Steps[i]
	in := api.RunbookInput{Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: r.in.Kind, Runbook: *s.action.Runbook}
	for j, other := range r.steps {
		if other.machine == nil || s.group >= 0 && s.group < r.groups && other.group != s.group {
			continue
		}
		l := r.status.Steps[j]
		m := api.RunbookMachine{Machine: other.machine.Machine, Name: l.Name}
		if s.group == other.group {
			in.Group = l.Group
		}
		if l.Result != nil && l.Result.Target != nil {
			m.TargetName, m.TargetRun = l.Result.Target.Name, l.Result.Target.Tags[tagRun]
		}
		if l.Result != nil && l.Result.Point != nil {
			m.Point = l.Result.Point.ID
		}
		in.Machines = append(in.Machines, m)
	}
	return in
}

// tagRun is the tag of target machines that names the run they were made in.
const tagRun = "drover-run"

func limit(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return actionTimeout
	}
	return timeout
}

// tryMachine lets the machine do what this kind of run is about. The request id
// names run, step and try, so that a repeated activity finds the same action.
func (r *run) tryMachine(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	choice, id := r.point(s.machine.Machine)
	request := api.ActionRequest{
		RequestID: fmt.Sprintf("%s/%s/%s/%d", r.id, workflow.GetInfo(ctx).OriginalRunID, line.ID, s.tries),
		By:        r.in.By, Reason: r.in.Reason, PlanRun: r.id,
		Planned: r.in.Kind == api.PlanPlanned, Point: choice, PointID: id, Network: r.in.Network,
	}
	out, err := call.MachineAction(ctx, api.MachineActionInput{Machine: s.machine.Machine, Action: api.ActionOf(r.in.Kind), Request: request})
	if err != nil {
		return err
	}
	line.Result, line.Message = &out, out.Message
	return nil
}
