package machine

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/rollback"
)

// rollBack takes the machine one step back: from a failover that is not committed to its
// source, from a reprotect or a failback to the machine in the target.
func (e *entity) rollBack(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	from, epoch := e.s.State, e.s.Assignment.Epoch+1
	if e.s.Target == nil {
		return api.ActionResult{}, fault.New(api.CodeInternal, "roll-back of %s: its target machine is not known", e.s.Name)
	}
	p := rollback.Params{
		From: from, VM: e.s.VM, Disks: e.s.Protected, Target: *e.s.Target, TargetRun: e.s.TargetRun,
		Owner: e.s.Assignment, NewEpoch: epoch, Reason: q.Request.Reason,
	}
	if e.reverse() {
		p.From = api.StateProtectedReverse // or marked for resync
	}
	if r := e.s.Remade; r != nil && e.reverse() {
		p.Unmake = &api.UnmakeVMInput{VCenter: r.Made.VCenter, Machine: e.s.Machine, Run: r.Run}
	}
	if e.s.FailoverTo != nil {
		p.Point = e.s.FailoverTo.ID
	}
	if e.s.Failover != nil {
		p.SourceOff = e.s.Failover.SourceOff
	}
	out, err := child[rollback.Result](ctx, e, api.WorkflowRollBack, "roll-back", p)
	e.s.Assignment.Epoch, e.assigned = epoch+1, 0
	if err != nil {
		return api.ActionResult{}, err
	}
	message := "rolled back; the machine in the target goes on"
	if from == api.StateFailedOver {
		message = "rolled back; the source replicates again"
		to := api.StateProtected
		if e.s.Failover != nil && e.s.Failover.State != "" {
			to = e.s.Failover.State
		}
		e.s.Target, e.s.TargetRun, e.s.FailoverTo, e.s.Failover = nil, "", nil, nil
		e.clearStream(ctx)
		e.setState(ctx, to)
	} else {
		if from != api.StateFailedBack {
			e.unmade()
		}
		message += e.releaseRelay(ctx)
		e.s.Assignment = api.Assignment{Epoch: e.s.Assignment.Epoch}
		e.clearStream(ctx)
		e.setState(ctx, api.StateCommitted)
	}
	e.disarm(ctx, api.ActionCommit, api.ActionRollBack)
	for _, w := range out.Warnings {
		message += "; " + w
	}
	return api.ActionResult{Message: message}, nil
}

// releaseRelay lets go of the temporary process server by which the machine streams. One
// that cannot be deleted is told, and is no reason to undo what went before.
func (e *entity) releaseRelay(ctx workflow.Context) (warning string) {
	if e.s.Assignment.Via == "" {
		return ""
	}
	ctx, cancel := workflow.NewDisconnectedContext(ctx) // a cancellation that comes late leaves nothing behind
	defer cancel()
	if err := call.ReleaseRelay(ctx, api.RelayInput{Machine: e.s.Machine}); err != nil {
		return "; the temporary process server could not be deleted, delete it by hand: " + fault.Message(err)
	}
	e.s.Assignment.Via = ""
	return ""
}

// changePoint makes the failed-over machine anew from another recovery point.
func (e *entity) changePoint(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	out, err := child[rollback.PointResult](ctx, e, api.WorkflowChangePoint, "point", rollback.PointParams{
		VM: e.s.VM, Disks: e.s.Protected, Target: e.s.TargetSpec, Now: api.TargetRef{Name: e.s.Target.Name, Run: e.s.TargetRun},
		Point: *e.s.FailoverTo, Choice: q.Request.Point, ID: q.Request.PointID,
	})
	if err != nil {
		return api.ActionResult{}, err
	}
	e.s.Target, e.s.TargetRun = &out.Machine, fmt.Sprintf("%s-point-%d", e.id, e.counter)
	e.s.FailoverTo, e.s.LastPoint = &out.Point, out.Point.ID
	return api.ActionResult{Message: fmt.Sprintf("runs from recovery point %d", out.Point.ID), Point: &out.Point, Target: &out.Machine}, nil
}

// arm sets what the machine does by itself later; see expire.
func (e *entity) arm(ctx workflow.Context, after api.Duration, action string) {
	e.disarm(ctx, action)
	if after > 0 {
		e.s.Timers = append(e.s.Timers, api.Timer{Action: action, At: workflow.Now(ctx).Add(after.D())})
	}
}

// disarm takes the actions' timers away, and what their failure was told as.
func (e *entity) disarm(ctx workflow.Context, actions ...string) {
	e.s.Timers = slices.DeleteFunc(e.s.Timers, func(t api.Timer) bool { return slices.Contains(actions, t.Action) })
	e.clear(ctx, api.CodeActionFailed)
}

func (e *entity) armed(t api.Timer) bool {
	return slices.ContainsFunc(e.s.Timers, func(o api.Timer) bool { return o.Action == t.Action && o.At.Equal(t.At) })
}

// expire waits for timers that nobody waits for yet. After continue-as-new they are waited
// for again.
func (e *entity) expire(ctx workflow.Context) {
	for _, t := range e.s.Timers {
		if slices.Contains(e.timing, t) {
			continue
		}
		e.timing = append(e.timing, t)
		workflow.Go(ctx, func(ctx workflow.Context) { e.await(ctx, t) })
	}
	e.timing = slices.DeleteFunc(e.timing, func(t api.Timer) bool { return !e.armed(t) })
}

// await does the timer's action in its time, as soon as nothing else is under way, unless
// somebody was faster. An action that failed is left to people.
func (e *entity) await(ctx workflow.Context, t api.Timer) {
	gone := func() bool { return !e.armed(t) }
	if ok, err := workflow.AwaitWithTimeout(ctx, max(t.At.Sub(workflow.Now(ctx)), 0), gone); err != nil || ok {
		return
	}
	if err := workflow.Await(ctx, func() bool { return gone() || e.free(t.Action) == nil }); err != nil || gone() {
		return
	}
	id := fmt.Sprintf("timer-%s-%d", t.Action, t.At.Unix())
	e.enqueue(ctx, t.Action, api.ActionRequest{RequestID: id, By: "timer", Reason: "nobody decided in time"})
	if err := workflow.Await(ctx, func() bool { return e.resultOf(id) != nil }); err != nil {
		return
	}
	if r := e.resultOf(id); r != nil && r.Error != "" && e.armed(t) {
		e.disarm(ctx, t.Action)
		e.raise(ctx, api.Problem{Code: api.CodeActionFailed, Component: "timer", Cause: t.Action + " by the timer failed: " + r.Error, Health: api.Critical})
	}
}

// onTimer is the action of a failover's timer.
func onTimer(r api.ActionRequest) string {
	if r.OnTimer == api.ActionRollBack {
		return api.ActionRollBack
	}
	return api.ActionCommit
}
