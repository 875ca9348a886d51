package machine

import (
	"fmt"
	"time"

	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/failback"
	"drover/workflows/failover"
	"drover/workflows/fault"
	"drover/workflows/resync"
	"drover/workflows/runbook"
)

// child runs a runbook as a child workflow and waits for its end. Cancelled, it
// waits until the child has put everything back.
func child[Out any](ctx workflow.Context, e *entity, name, short string, in any) (Out, error) {
	var out Out
	e.counter++
	id := fmt.Sprintf("%s-%s-%d", e.id, short, e.counter)
	ctx = workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, TaskQueue: api.ControlQueue, WaitForCancellation: true, StaticSummary: e.s.Name,
		ParentClosePolicy: enums.PARENT_CLOSE_POLICY_REQUEST_CANCEL,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			keyword(api.SearchMachine, e.s.Name), keyword(api.SearchPolicy, e.s.Policy)),
	})
	e.s.Child = id
	err := workflow.ExecuteChildWorkflow(ctx, name, in).Get(ctx, &out)
	if e.s.Child == id {
		e.s.Child = ""
	}
	return out, err
}

// act runs one action to its end.
func (e *entity) act(ctx workflow.Context, q api.QueuedAction) {
	if !beside(q.Action) {
		e.stopBackground(ctx)
	}
	e.doing(ctx, q.Action)
	result, err := e.do(ctx, q)
	result.Machine, result.Name, result.Action, result.State = e.s.Machine, e.s.Name, q.Action, e.s.State
	e.remember(q.Request.RequestID, result, err)
	for _, id := range e.running.Joined {
		e.remember(id, result, err)
	}
	e.s.Doing, e.running, e.stopping, e.ended = "", nil, "", true
	e.show(ctx)
	e.judgeDisks(ctx)
}

func (e *entity) do(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	if err := e.possibleInState(q.Action); err != nil {
		return api.ActionResult{}, err // the state changed while it was queued
	}
	switch q.Action {
	case api.ActionResync:
		return e.resync(ctx, q)
	case api.ActionPause:
		return e.pause(ctx)
	case api.ActionResume:
		return e.resume(ctx)
	case api.ActionTestFailover:
		return e.testFailover(ctx, q)
	case api.ActionCleanup:
		return e.cleanup(ctx, q.Request.Reason)
	case api.ActionFailover:
		return e.failover(ctx, q)
	case api.ActionChangePoint:
		return e.changePoint(ctx, q)
	case api.ActionRollBack:
		return e.rollBack(ctx, q)
	case api.ActionCommit:
		return e.commit(ctx)
	case api.ActionReprotect:
		return e.reprotect(ctx, q)
	case api.ActionFailback:
		return e.failback(ctx, q)
	case api.ActionReenable:
		return e.reenable(ctx)
	case api.ActionSetPolicy:
		return e.setPolicy(ctx, q)
	case api.ActionUnprotect:
		return e.unprotect(ctx, q)
	}
	return api.ActionResult{}, fault.New(api.CodeInvalid, "unknown action %q", q.Action)
}

func (e *entity) resync(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	switch {
	case q.Request.OnlyIfRequired && e.s.State != api.StateResyncRequired:
		return api.ActionResult{Message: "no resync is required"}, nil
	case q.Request.OnlyIfRequired && e.s.ResyncHeld:
		return api.ActionResult{Message: "somebody stopped the resync; drover resync " + e.s.Name + " goes on"}, nil
	}
	e.s.ResyncHeld = false
	if !e.reverse() {
		disks := e.disksFor(q.Request)
		same := sameDisks(e.s.Protected, disks)
		e.in.Exclude = e.excludedBy(q.Request)
		e.s.Protected, e.s.Excluded = disks, e.in.Exclude
		if len(q.Request.Exclude)+len(q.Request.Include) > 0 && same && e.s.State == api.StateProtected {
			return api.ActionResult{Message: "noted; the disks that are protected stay the same"}, nil
		}
	}
	e.setState(ctx, api.StateResyncing)
	e.s.Resyncs++
	cause := "resync"
	if q.Request.Reason != "" {
		cause += ": " + q.Request.Reason
	}
	t, err := child[api.Transfer](ctx, e, api.WorkflowResync, "resync", resync.Params{
		Grant: e.grant(), Assign: e.assign(), Cause: cause, Rescan: e.reverse(),
	})
	if err != nil && e.stopping != "" {
		return api.ActionResult{}, e.stopped(ctx)
	}
	if err != nil {
		e.raise(ctx, api.Problem{
			Code: api.CodeResyncFailed, Component: "resync", Cause: fault.Message(err), Health: api.Critical,
			Evidence: fmt.Sprintf("workflow %s-resync-%d", e.id, e.counter),
		})
		e.setState(ctx, api.StateResyncRequired)
		return api.ActionResult{}, err
	}
	e.assigned = e.s.Assignment.Epoch
	e.moved(t)
	e.clearStream(ctx)
	e.setState(ctx, e.replicating())
	return api.ActionResult{Message: "resynchronised", Transfer: &t}, nil
}

func (e *entity) pause(ctx workflow.Context) (api.ActionResult, error) {
	if err := call.Unassign(ctx, api.UnassignInput{Machine: e.s.Machine, Reason: "paused"}); err != nil {
		return api.ActionResult{}, err
	}
	// Without its grant nobody misses the agent: a long pause is no reason for a resync.
	owner := api.FenceInput{Machine: e.s.Machine, Epoch: e.s.Assignment.Epoch}
	if err := call.Revoke(ctx, e.s.Assignment.Server, owner, serverLimit); err != nil {
		return api.ActionResult{}, err
	}
	e.assigned = 0
	e.setState(ctx, api.StatePaused)
	return api.ActionResult{Message: "paused; its recovery points stay"}, nil
}

func (e *entity) resume(ctx workflow.Context) (api.ActionResult, error) {
	if err := e.connect(ctx); err != nil {
		return api.ActionResult{}, err
	}
	e.setState(ctx, e.replicating())
	return api.ActionResult{Message: "replicating again"}, nil
}

func (e *entity) testFailover(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	started := workflow.Now(ctx)
	out, err := child[failover.TestResult](ctx, e, api.WorkflowTestFailover, "test", failover.TestParams{
		VM: e.s.VM, Disks: e.s.Protected, Target: e.s.TargetSpec, Request: q.Request,
	})
	run := fmt.Sprintf("%s-test-%d", e.id, e.counter)
	var passed time.Time // the last time
	if e.s.Test != nil {
		passed = e.s.Test.Passed
	}
	if err != nil {
		report, _ := runbook.ReportOf(err)
		e.s.Test = &api.TestResult{Started: started, Run: run, Verdict: fault.Message(err), Cleaned: len(report.Left) == 0, Passed: passed}
		return api.ActionResult{}, err
	}
	e.s.Test = &api.TestResult{Started: started, Run: run, Point: out.Point, Machine: &out.Machine, Verdict: "passed", Passed: workflow.Now(ctx)}
	e.arm(ctx, q.Request.CleanAfter, api.ActionCleanup)
	return api.ActionResult{Message: "test failover passed", Point: &out.Point, Target: &out.Machine}, nil
}

func (e *entity) cleanup(ctx workflow.Context, notes string) (api.ActionResult, error) {
	test := e.s.Test
	if err := call.DeleteMachine(ctx, api.TargetRef{Name: api.TestName(e.s.VM), Run: test.Run}); err != nil {
		return api.ActionResult{}, err
	}
	if test.Point.ID != 0 {
		if err := call.ReleasePoint(ctx, api.ReleasePointInput{Machine: e.s.Machine, Point: test.Point.ID, Owner: test.Run}); err != nil {
			return api.ActionResult{}, err
		}
	}
	test.Machine, test.Cleaned, test.Notes = nil, true, notes
	e.disarm(ctx, api.ActionCleanup)
	return api.ActionResult{Message: "what the test made is deleted"}, nil
}

func (e *entity) failover(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	before := e.s.State
	e.setState(ctx, api.StateFailingOver)
	epoch := e.s.Assignment.Epoch + 1
	out, err := child[failover.Result](ctx, e, api.WorkflowFailover, "failover", failover.Params{
		VM: e.s.VM, Disks: e.s.Protected, Source: e.s.Assignment, NewEpoch: epoch, Target: e.s.TargetSpec,
		Request: q.Request, Asked: q.Asked, LastSeen: e.lastSeen,
	})
	if err != nil {
		// The source replicates again, under an epoch that is newer than any that
		// the failover may have raised.
		e.s.Assignment.Epoch, e.assigned = epoch+1, 0
		e.setState(ctx, before)
		return api.ActionResult{}, err
	}
	e.s.Assignment.Epoch, e.assigned = epoch, 0
	e.s.Target, e.s.TargetRun, e.s.FailoverTo, e.s.LastPoint = &out.Machine, fmt.Sprintf("%s-failover-%d", e.id, e.counter), &out.Point, out.Point.ID
	e.s.Failovers++
	e.s.Failover = &api.FailoverFrom{State: before, SourceOff: out.SourceOff}
	e.arm(ctx, q.Request.CommitAfter, onTimer(q.Request))
	e.clearStream(ctx)
	e.clear(ctx, api.CodeRPO)
	e.setState(ctx, api.StateFailedOver)
	message := "failed over"
	if out.Loss > 0 {
		message += fmt.Sprintf(" from recovery point %d: what was written in the %s after it, until the source was last heard of, is lost", out.Point.ID, out.Loss.D().Round(time.Second))
	}
	for _, w := range out.Warnings {
		message += "; " + w
	}
	return api.ActionResult{Message: message, Point: &out.Point, Target: &out.Machine, RPO: out.RPO, RTO: out.RTO, Loss: out.Loss}, nil
}

func (e *entity) commit(ctx workflow.Context) (api.ActionResult, error) {
	if p := e.s.FailoverTo; p != nil {
		err := call.ReleasePoint(ctx, api.ReleasePointInput{Machine: e.s.Machine, Point: p.ID, Owner: e.s.TargetRun})
		if err != nil {
			return api.ActionResult{}, err
		}
	}
	if e.s.Target != nil && workflow.GetVersion(ctx, changeCommit, workflow.DefaultVersion, 1) >= 1 {
		if err := call.CommitMachine(ctx, api.TargetRef{Name: e.s.Target.Name, Run: e.s.TargetRun}); err != nil {
			return api.ActionResult{}, err
		}
	}
	e.disarm(ctx, api.ActionCommit, api.ActionRollBack)
	e.setState(ctx, api.StateCommitted)
	return api.ActionResult{Message: "committed", Point: e.s.FailoverTo, Target: e.s.Target}, nil
}

func (e *entity) reprotect(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	if e.s.Target == nil {
		return api.ActionResult{}, fault.New(api.CodeInternal, "reprotect of %s: its target machine is not known", e.s.Name)
	}
	e.setState(ctx, api.StateReprotecting)
	policy := e.s.PolicySpec.ForFailback()
	epoch := e.s.Assignment.Epoch + 1
	out, err := child[failback.Moved](ctx, e, api.WorkflowReprotect, "reprotect", failback.ReprotectParams{
		VM: e.s.VM, Disks: e.s.Protected, Target: *e.s.Target, NewEpoch: epoch, Site: e.in.Site,
		Location: q.Request.Location, Reason: q.Request.Reason,
		Grant:  api.GrantInput{Machine: e.s.Machine, Name: e.s.Name, Disks: e.s.Protected, Policy: policy, Target: e.s.TargetSpec, Attached: true},
		Assign: api.AssignInput{Machine: e.s.Machine, Disks: e.targetDisks(), Group: policy.Group()},
	})
	if err != nil {
		e.s.Assignment.Epoch = epoch
		e.setState(ctx, api.StateCommitted)
		return api.ActionResult{}, err
	}
	e.s.Assignment, e.assigned = out.Assignment, out.Assignment.Epoch
	e.moved(out.Transfer)
	e.clearStream(ctx)
	message := "replicating back"
	if out.Made != nil {
		e.remade(ctx, *out.Made)
		message += " on to a VM that was made anew: " + e.s.VM.Name + " in vCenter " + e.s.VM.VCenter
	}
	for _, w := range out.Warnings {
		message += "; " + w
	}
	e.setState(ctx, api.StateProtectedReverse)
	return api.ActionResult{Message: message, Transfer: &out.Transfer, Target: e.s.Target}, nil
}

func (e *entity) failback(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	if e.s.State == api.StateResyncRequired { // of a failback that was put back late
		if _, err := e.resync(ctx, api.QueuedAction{Action: api.ActionResync, Request: api.ActionRequest{Reason: "before the failback"}}); err != nil {
			return api.ActionResult{}, err
		}
	}
	e.setState(ctx, api.StateFailingBack)
	epoch := e.s.Assignment.Epoch + 1
	out, err := child[failback.Result](ctx, e, api.WorkflowFailback, "failback", failback.Params{
		VM: e.s.VM, Disks: e.s.Protected, Target: *e.s.Target, TargetRun: e.s.TargetRun,
		Source: e.s.Assignment, NewEpoch: epoch, Asked: q.Asked, Verify: q.Request.Verify,
	})
	if err != nil {
		e.s.Assignment.Epoch, e.assigned = epoch+1, 0
		if report, ok := runbook.ReportOf(err); ok && report.HasBegun(failback.StepPowerOn) {
			e.raise(ctx, api.Problem{
				Code: api.CodeForcedShutdown, Component: "failback", Health: api.Critical,
				Cause:  "the original machine may have written to its disks before the failback was put back",
				Action: "Resynchronise, then fail back again.",
			})
			e.setState(ctx, api.StateResyncRequired)
			return api.ActionResult{}, err
		}
		e.setState(ctx, api.StateProtectedReverse)
		return api.ActionResult{}, err
	}
	message := "failed back" + e.releaseRelay(ctx)
	e.s.Assignment = api.Assignment{Epoch: epoch}
	out.VM.Tags = e.s.VM.Tags // which discovery alone tells
	e.s.VM, e.assigned = out.VM, 0
	e.settleRemade(ctx)
	e.setState(ctx, api.StateFailedBack)
	return api.ActionResult{Message: message, Point: &out.Point, RTO: out.RTO}, nil
}

func (e *entity) reenable(ctx workflow.Context) (api.ActionResult, error) {
	epoch := e.s.Assignment.Epoch + 1
	e.doing(ctx, "re-enabling replication")
	out, err := child[failback.Moved](ctx, e, api.WorkflowReenable, "reenable", failback.ReenableParams{
		VM: e.s.VM, Target: e.s.Target, TargetRun: e.s.TargetRun, NewEpoch: epoch, Site: e.in.Site,
		Grant:  api.GrantInput{Machine: e.s.Machine, Name: e.s.Name, Disks: e.s.Protected, Policy: e.s.PolicySpec, Target: e.s.TargetSpec},
		Assign: api.AssignInput{Machine: e.s.Machine, Disks: e.s.Protected, Group: e.s.PolicySpec.Group()},
	})
	if err != nil {
		e.s.Assignment.Epoch = epoch
		return api.ActionResult{}, err
	}
	e.s.Assignment, e.assigned = out.Assignment, out.Assignment.Epoch
	e.s.Target, e.s.TargetRun, e.s.FailoverTo = nil, "", nil
	e.moved(out.Transfer)
	e.clearStream(ctx)
	e.setState(ctx, api.StateProtected)
	message := "protected again"
	for _, w := range out.Warnings {
		message += "; " + w
	}
	return api.ActionResult{Message: message, Transfer: &out.Transfer}, nil
}

func (e *entity) setPolicy(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	p := *q.Request.Policy
	policy, spec, hash, follows := e.s.Policy, e.s.PolicySpec, e.s.PolicyHash, e.s.Follows
	e.s.Policy, e.s.PolicySpec, e.s.PolicyHash = p.Name, p, q.Request.PolicyHash
	if q.Request.By != byVault {
		e.s.Follows = ""
	}
	if err := call.VaultJoin(ctx, e.member()); err != nil {
		e.s.Policy, e.s.PolicySpec, e.s.PolicyHash, e.s.Follows = policy, spec, hash, follows
		return api.ActionResult{}, err
	}
	if p.ConsistencyGroup == nil {
		e.clear(ctx, api.CodeGroupMissed) // else the watch says when it is over
	}
	if e.s.State == e.replicating() {
		if err := call.Grant(ctx, e.grant()); err != nil {
			e.assigned = 0 // it is granted anew before the watch goes on
			return api.ActionResult{}, err
		}
	}
	return api.ActionResult{Message: "policy " + p.Name}, nil
}

func (e *entity) unprotect(ctx workflow.Context, q api.QueuedAction) (api.ActionResult, error) {
	owner := api.FenceInput{Machine: e.s.Machine, Epoch: e.s.Assignment.Epoch}
	if err := call.Unassign(ctx, api.UnassignInput{Machine: e.s.Machine, Reason: "no longer protected"}); err != nil {
		return api.ActionResult{}, err
	}
	if e.s.Test != nil && !e.s.Test.Cleaned {
		if _, err := e.cleanup(ctx, ""); err != nil {
			return api.ActionResult{}, err
		}
	}
	message := "no longer protected"
	if e.s.Assignment.Server != "" {
		if err := call.Revoke(ctx, e.s.Assignment.Server, owner, serverLimit); err != nil {
			message += "; " + e.s.Assignment.Server + " was not told: " + fault.Message(err)
		}
	}
	message += e.releaseRelay(ctx)
	if !q.Request.KeepData && owner.Epoch > 0 {
		if err := call.RemoveReplica(ctx, owner); err != nil {
			return api.ActionResult{}, err
		}
		message += "; replica and recovery points are deleted"
	}
	if err := call.VaultLeave(ctx, e.s.Machine); err != nil {
		return api.ActionResult{}, err
	}
	e.s.Problems = nil
	e.setState(ctx, api.StateDisabled)
	e.gone = true
	return api.ActionResult{Message: message}, nil
}
