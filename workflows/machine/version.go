package machine

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// carryVersion is the version of api.MachineCarry that this code writes.
const carryVersion = 1

// Changes of the commands of this workflow, by the names that histories have of them.
const (
	changeVisible = "machine"       // search attributes and memo are written
	changeCommit  = "commit-target" // a commit tells the target
)

func (e *entity) restore(ctx workflow.Context) error {
	if err := e.validate(); err != nil {
		return err
	}
	if c := e.in.Carry; c != nil {
		if c.Version > carryVersion {
			return fmt.Errorf("state of version %d, this worker knows %d: upgrade it", c.Version, carryVersion)
		}
		e.s, e.counter, e.recent, e.queue = c.Status, c.Counter, c.Recent, c.Queue
		e.news = c.News
		e.s.Excluded, e.s.Site = e.in.Exclude, e.in.Site
		e.joined, e.assigned, e.lastSeen = c.Joined, c.Assigned, c.LastSeen
		e.in.Carry = nil
		return nil
	}
	e.s = api.MachineStatus{
		Machine: e.in.VM.Machine, Name: e.in.VM.Name, VM: e.in.VM, Policy: e.in.Policy.Name, PolicySpec: e.in.Policy,
		TargetSpec: e.in.Target, Protected: protected(e.in.VM, e.in.Exclude), State: api.StateEnabling,
		Health: api.Healthy, Since: workflow.Now(ctx), Excluded: e.in.Exclude, Site: e.in.Site, PolicyHash: e.in.PolicyHash,
	}
	return nil
}

// mayContinueAsNew reports whether the history is long and nothing is under way
// that would be lost: no action with its child, no update that waits, no signal that
// has arrived. What the background waits for is begun again by the next run.
func (e *entity) mayContinueAsNew(ctx workflow.Context) bool {
	return workflow.GetInfo(ctx).GetContinueAsNewSuggested() && e.running == nil && !e.ended && e.asides == 0 &&
		workflow.AllHandlersFinished(ctx) && (e.background == nil || e.background.restartable) && !e.waiting()
}

// settled lets what arrived together with the reason to continue as new be taken, and
// reports whether there still is nothing under way: a signal may be in the hands of a
// coroutine that had no turn yet.
func (e *entity) settled(ctx workflow.Context) bool {
	turns := 0
	err := workflow.Await(ctx, func() bool { turns++; return turns > 1 })
	return err == nil && e.mayContinueAsNew(ctx)
}

// waiting reports whether a signal has arrived that was not taken yet.
func (e *entity) waiting() bool {
	return slices.ContainsFunc(e.signals, func(c workflow.ReceiveChannel) bool { return c.Len() > 0 })
}

func (e *entity) carry() api.MachineInput {
	in := e.in
	in.VM, in.Policy = e.s.VM, e.s.PolicySpec
	in.Carry = &api.MachineCarry{
		Version: carryVersion, Status: e.s, Counter: e.counter, Recent: e.recent, Queue: e.queue, News: e.news,
		Joined: e.joined, Assigned: e.assigned, LastSeen: e.lastSeen,
	}
	return in
}
