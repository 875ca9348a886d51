// Package machine has the entity of a protected machine: one workflow for as long
// as the machine is protected. It owns the machine's state, takes every operator
// action as an update and as a signal of the same name, runs the runbooks as
// children, and watches replication in between.
//
//	machine.go   the main loop
//	state.go     states, and which action is possible in which
//	requests.go  updates and signals: validation, idempotence, the queue
//	stop.go      ending a resync before its end
//	follow.go    changes in the vault: policy and plans
//	actions.go   what the actions do, one function each
//	replicate.go what goes on between actions: enabling, base copy, watching
//	forced.go    what vCenter saw happen to the VM
//	disks.go     what the agent reports, and disks that change
//	back.go      roll-back, change of recovery point, and what it does by itself later
//	remade.go    a VM that was made anew
//	problems.go  problems and health
//	visible.go   search attributes and memo, for Temporal's UI
package machine

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// carryVersion is the version of api.MachineCarry that this code writes.
const carryVersion = 1

// Bounds of an entity.
const (
	maxRecent    = 50 // requests whose result is remembered
	maxTransfers = 16
	maxProblems  = 32
)

// entity is a machine's state. Everything but the fields below the line is carried
// across continue-as-new.
type entity struct {
	in       api.MachineInput
	s        api.MachineStatus
	counter  int
	recent   []api.RecentRequest
	queue    []api.QueuedAction
	joined   bool
	assigned ident.Epoch
	lastSeen time.Time
	news     *api.VaultNews

	version    workflow.Version // of this run's commands; see visible.go
	published  []string         // search attributes and memo, as they were written last
	id         string
	running    *api.QueuedAction
	ended      bool // the action that ran has ended, the loop has not looked yet
	background *background
	gone       bool // unprotected

	cancelAction workflow.CancelFunc // of the action that runs
	stopping     string              // why the resync that runs is being stopped
	asides       int                 // things under way that nobody waits for
	signals      []workflow.ReceiveChannel

	timing       []api.Timer // that are waited for
	taking       bool        // takeDisks runs
	disksNews    bool        // of agent or vCenter, since takeDisks looked
	stirred      bool        // what goes on between actions may have to be started
	vcenterError string      // why vCenter did not tell about disks
}

// Workflow is the entity. It ends when the machine is unprotected.
func Workflow(ctx workflow.Context, in api.MachineInput) (api.MachineStatus, error) {
	e := &entity{in: in, id: workflow.GetInfo(ctx).WorkflowExecution.ID}
	e.version = workflow.GetVersion(ctx, "machine", workflow.DefaultVersion, 1)
	if err := e.restore(ctx); err != nil {
		return api.MachineStatus{}, err
	}
	if err := e.handlers(ctx); err != nil {
		return e.s, err
	}
	if e.s.Forced != nil {
		workflow.Go(ctx, e.awaitBoot)
	}
	e.show(ctx)
	e.judgeDisks(ctx)
	for !e.gone {
		if e.mayContinueAsNew(ctx) {
			e.stopBackground(ctx)
			if e.settled(ctx) {
				return e.s, workflow.NewContinueAsNewError(ctx, api.WorkflowMachine, e.carry())
			}
		}
		e.startBackground(ctx)
		e.expire(ctx)
		if err := workflow.Await(ctx, func() bool { return e.due(ctx) }); err != nil {
			return e.s, err // the workflow itself was cancelled
		}
		e.step(ctx)
	}
	// Whoever waits for the end of the unprotect gets it.
	return e.s, workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) })
}

// due reports whether there is something to do.
func (e *entity) due(ctx workflow.Context) bool {
	return e.ended || e.stirred || e.mayFollow() || e.background != nil && e.background.done ||
		e.running == nil && len(e.queue) > 0 || e.mayContinueAsNew(ctx)
}

// step does what is due, without waiting.
func (e *entity) step(ctx workflow.Context) {
	e.ended, e.stirred = false, false
	if e.background != nil && e.background.done {
		b := e.background
		e.background = nil
		b.then()
	}
	if e.mayFollow() {
		e.follow(ctx)
	}
	if e.running == nil && len(e.queue) > 0 {
		next := e.queue[0]
		e.queue = e.queue[1:]
		e.running = &next
		ctx, e.cancelAction = workflow.WithCancel(ctx)
		workflow.Go(ctx, func(ctx workflow.Context) { e.act(ctx, next) })
	}
}

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

// protected lists the disks of a VM that are not excluded.
func protected(vm api.VM, exclude []string) []api.VMDisk {
	var out []api.VMDisk
	for _, d := range vm.Disks {
		skip := false
		for _, x := range exclude {
			skip = skip || x == d.Label || x == d.BackingUUID
		}
		if !skip {
			out = append(out, d)
		}
	}
	return out
}
