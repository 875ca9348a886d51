package plan

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// ending reports whether somebody has decided that no other step is begun.
func (r *run) ending() bool { return r.cancelled != "" || r.back != "" && !r.undoing }

// play runs the steps: one after the other, but the machines of a group together.
func (r *run) play(ctx workflow.Context) error {
	for i := 0; i < len(r.steps); {
		if err := r.awaitTurn(ctx, i); err != nil || r.ending() {
			return err
		}
		if r.steps[i].action != nil {
			if err := r.runStep(ctx, i); err != nil {
				return err
			}
			i++
			continue
		}
		end := i
		for end < len(r.steps) && r.steps[end].machine != nil && r.steps[end].group == r.steps[i].group && r.steps[end].kind == r.steps[i].kind {
			end++
		}
		if err := r.together(ctx, i, end); err != nil {
			return err
		}
		i = end
	}
	return nil
}

// awaitTurn waits while the run is paused.
func (r *run) awaitTurn(ctx workflow.Context, i int) error {
	if r.in.PauseBetween && i > 0 && r.steps[i].kind != r.steps[i-1].kind && r.paused == "" {
		r.paused = "the run itself, before " + string(r.steps[i].kind)
	}
	if r.paused == "" {
		return nil
	}
	r.mood(ctx)
	err := workflow.Await(ctx, func() bool { return r.paused == "" || r.ending() })
	r.mood(ctx)
	return err
}

// mood tells what the run is at.
func (r *run) mood(ctx workflow.Context) {
	state := api.RunRunning
	switch {
	case r.asking(askFailed):
		state = api.RunStopped
	case r.asking(askManual) || r.asking(askFailedStep):
		state = api.RunWaiting
	case r.undoing:
		state = api.RunBack
	case r.paused != "":
		state = api.RunPaused
	}
	r.status.State = state
	r.show(ctx)
}

func (r *run) asking(what string) bool {
	for _, s := range r.steps {
		if s.asks == what {
			return true
		}
	}
	return false
}

// together runs the steps from..to at once and waits for all of them.
func (r *run) together(ctx workflow.Context, from, to int) error {
	for i, err := range atOnce(ctx, to-from, func(ctx workflow.Context, i int) error { return r.runStep(ctx, from+i) }) {
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

// atOnce does something n times at the same time, and gives what each came to.
func atOnce(ctx workflow.Context, n int, do func(ctx workflow.Context, i int) error) []error {
	errs := make([]error, n)
	wg := workflow.NewWaitGroup(ctx)
	for i := range n {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			errs[i] = do(ctx, i)
		})
	}
	wg.Wait(ctx)
	return errs
}

// firstOf gives the first error in the plan's order.
func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// runStep tries a step until it is done, given up or passed over.
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

// afterFailure does what the step says about errors; again is true to try it once more.
// A step that stops the run holds it: what runs is kept, and people say how it goes on.
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
	case s.optional || r.ending() || s.tries >= maxTries:
		r.finish(ctx, i, api.StepFailed)
		return false, failure
	case onError == "ask":
		line.State = api.StepWaiting
		d, err := r.ask(ctx, i, askFailedStep, manualTimeout)
		if err != nil {
			r.finish(ctx, i, api.StepFailed)
			return false, err
		}
		return r.goOn(ctx, i, d), nil
	}
	r.finish(ctx, i, api.StepFailed)
	if workflow.GetVersion(ctx, "hold-failed", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return false, failure // begun before a failed run could be gone on with
	}
	d, err := r.ask(ctx, i, askFailed, r.holdFor())
	switch {
	case fault.Cancelled(err):
		return false, err
	case err != nil:
		return false, failure // nobody came: it is what stopped the run that people want to read
	}
	return r.goOn(ctx, i, d), nil
}

func (r *run) holdFor() time.Duration {
	if r.in.HoldFor > 0 {
		return r.in.HoldFor.D()
	}
	return holdTimeout
}

// goOn does what was decided about a failed step; true to try it once more.
func (r *run) goOn(ctx workflow.Context, i int, d decision) bool {
	r.status.Steps[i].By = d.By
	if d.what == api.PlanRetry {
		r.status.Steps[i].Finished = time.Time{}
		return true
	}
	r.finish(ctx, i, api.StepSkipped)
	return false
}

// ask waits until a person decides about step i, at most for the limit.
func (r *run) ask(ctx workflow.Context, i int, what string, limit time.Duration) (decision, error) {
	s, line := &r.steps[i], &r.status.Steps[i]
	s.asks = what
	r.mood(ctx)
	r.tell(ctx, i)
	ok, err := workflow.AwaitWithTimeout(ctx, limit, func() bool {
		_, is := r.decided[line.ID]
		return is || r.ending()
	})
	d, decided := r.decided[line.ID]
	delete(r.decided, line.ID)
	s.asks = ""
	r.mood(ctx)
	switch {
	case err != nil:
		return d, err
	case decided:
		return d, nil
	case !ok:
		return d, fault.New(api.CodeApprovalTimedOut, "nobody decided about step %s within %s", line.ID, limit)
	}
	return d, fault.New(api.CodeActionFailed, "the run was ended while step %s waited", line.ID)
}

// tell notifies people that the run waits for them. Nobody waits for the notification.
func (r *run) tell(ctx workflow.Context, i int) {
	if workflow.GetVersion(ctx, "tell-waiting", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return
	}
	line := r.status.Steps[i]
	n := api.Notification{Subject: fmt.Sprintf("plan run %s waits at step %s", r.id, line.ID), Problem: api.Problem{
		Code: api.CodeActionFailed, Component: "plan " + r.in.Plan, Cause: line.Message, Since: workflow.Now(ctx), Health: api.Critical,
		Action: fmt.Sprintf("drover plan retry, skip, back or cancel %s; nothing is begun until then.", r.id),
	}}
	if r.steps[i].asks == askManual {
		n.Problem.Code, n.Problem.Health = api.CodeApprovalTimedOut, api.Warning
		n.Problem.Action = fmt.Sprintf("Do what it says, then drover plan approve or reject %s.", r.id)
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		if err := call.Notify(ctx, n); err != nil {
			workflow.GetLogger(ctx).Warn("notification was not sent", "error", err)
		}
	})
}
