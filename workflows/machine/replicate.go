package machine

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/resync"
)

// Bounds of what goes on between actions.
const (
	agentLimit  = 24 * time.Hour // one wait for an agent; then it waits again
	serverLimit = 5 * time.Minute
	retryPause  = 30 * time.Second // after something failed that may mend itself
	autoResync  = 10 * time.Second // from marked to resync, when that is automatic at any time
)

// background is what goes on between actions in a state. It can be stopped at any
// time and started again.
type background struct {
	cancel      workflow.CancelFunc
	done        bool
	stopped     bool
	restartable bool // may be stopped for continue-as-new
	then        func()
}

// startBackground starts what the present state wants.
func (e *entity) startBackground(ctx workflow.Context) {
	if e.background != nil || e.stopsBackground() {
		return
	}
	switch e.s.State {
	case api.StateEnabling:
		e.inBackground(ctx, true, e.enable)
	case api.StateInitialReplication:
		e.inBackground(ctx, false, e.initial)
	case api.StateProtected, api.StateProtectedReverse:
		e.inBackground(ctx, true, e.replicate)
	case api.StateResyncRequired:
		w := e.s.PolicySpec.Resync
		if w.Automatic && w.Window.Start == "" && !e.s.ResyncHeld && e.missingOf(e.s.Protected) == nil {
			e.inBackground(ctx, true, e.resyncSoon)
		}
	}
}

// stopsBackground reports whether an action runs, or is about to, that the
// background must not go on beside.
func (e *entity) stopsBackground() bool {
	action := ""
	switch {
	case e.running != nil:
		action = e.running.Action
	case len(e.queue) > 0:
		action = e.queue[0].Action
	}
	return action != "" && !beside(action)
}

// beside reports whether replication goes on while the action runs.
func beside(action string) bool {
	return action == api.ActionTestFailover || action == api.ActionCleanup
}

// inBackground runs f, which gives what is to be done in the main loop after it.
func (e *entity) inBackground(ctx workflow.Context, restartable bool, f func(workflow.Context) func()) {
	inner, cancel := workflow.WithCancel(ctx)
	b := &background{cancel: cancel, restartable: restartable}
	e.background = b
	workflow.Go(inner, func(inner workflow.Context) {
		then := f(inner)
		b.then = func() {
			if then != nil && !b.stopped {
				then()
			}
		}
		b.done = true
	})
}

// stopBackground ends what goes on and waits for its end. What it came to in the
// meantime does not count any more.
func (e *entity) stopBackground(ctx workflow.Context) {
	b := e.background
	if b == nil {
		return
	}
	b.stopped = true
	b.cancel()
	if err := workflow.Await(ctx, func() bool { return b.done }); err != nil {
		workflow.GetLogger(ctx).Warn("background work did not end", "error", err)
	}
	if e.background == b {
		e.background = nil
	}
}

// pause waits a while; false when the work is stopped meanwhile.
func pause(ctx workflow.Context, d time.Duration) bool { return workflow.Sleep(ctx, d) == nil }

// enable gets everything together that a first copy needs.
func (e *entity) enable(ctx workflow.Context) func() {
	for !e.joined {
		err := call.VaultJoin(ctx, e.member())
		if err == nil {
			e.joined = true
			break
		}
		e.failed(ctx, "vault", "Look at the configuration server's log.", err)
		if !pause(ctx, retryPause) {
			return nil
		}
	}
	e.doing(ctx, "waiting for the agent")
	if !e.awaitAgent(ctx) {
		return nil
	}
	for {
		e.doing(ctx, "choosing a process server")
		err := e.choose(ctx, nil)
		if err == nil {
			break
		}
		e.failed(ctx, "process server", "Start a process server that reaches the configuration server.", err)
		if !pause(ctx, retryPause) {
			return nil
		}
	}
	e.clearStream(ctx)
	return func() { e.doing(ctx, ""); e.setState(ctx, api.StateInitialReplication) }
}

// agentPatience is how long an agent may be away before it is a problem.
const agentPatience = 20 * time.Second

func (e *entity) awaitAgent(ctx workflow.Context) bool {
	in := api.AwaitAgentInput{Machine: e.s.Machine, Instance: e.s.VM.BIOSUUID}
	limit := agentPatience
	for {
		agent, err := call.AwaitAgent(ctx, in, limit)
		if err == nil {
			if agent.Report != nil {
				e.reported(ctx, *agent.Report)
			}
			e.clear(ctx, api.CodeNoAgent)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		e.raise(ctx, api.Problem{
			Code: api.CodeNoAgent, Component: "agent", Cause: "no agent of " + e.s.Name + " has called from its hardware yet",
			Action: "Install the agent with a token for machine " + e.s.Machine.String() + " and check that it reaches the configuration server.",
		})
		limit = agentLimit
		if !pause(ctx, time.Second) {
			return false
		}
	}
}

// choose picks a process server and raises the epoch.
func (e *entity) choose(ctx workflow.Context, avoid []string) error {
	role, instance := ident.RoleProcessServer, e.s.VM.BIOSUUID
	if e.reverse() {
		return nil // the disks are attached to this master target
	}
	a, err := call.ChooseServer(ctx, api.ChooseServerInput{Machine: e.s.Machine, Role: role, Site: e.in.Site, Group: e.s.PolicySpec.Group(), Avoid: avoid}, serverLimit)
	if err != nil {
		return err
	}
	a.Epoch = max(a.Epoch, e.s.Assignment.Epoch) + 1
	a.Role, a.Instance = role, instance
	e.s.Assignment, e.assigned = a, 0
	return nil
}

// initial makes the first copy.
func (e *entity) initial(ctx workflow.Context) func() {
	in := resync.Params{Grant: e.grant(), Assign: e.assign(), Cause: "initial replication"}
	t, err := child[api.Transfer](ctx, e, api.WorkflowInitialReplication, "initial", in)
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return func() {
			e.assigned = e.s.Assignment.Epoch
			e.moved(t)
			e.clearStream(ctx)
			e.doing(ctx, "")
			e.setState(ctx, api.StateProtected)
			e.judgeDisks(ctx)
		}
	}
	e.failed(ctx, "initial replication", "It is tried again by itself.", err)
	if fault.HostLost(err) {
		if err := e.choose(ctx, []string{e.s.Assignment.Server}); err != nil {
			e.failed(ctx, "process server", "Start a process server.", err)
		}
	}
	pause(ctx, retryPause)
	return nil
}

// replicate lets the machine stream and watches it.
func (e *entity) replicate(ctx workflow.Context) func() {
	if e.assigned != e.s.Assignment.Epoch {
		if err := e.connect(ctx); err != nil {
			return e.lost(ctx, err)
		}
	}
	var out api.ReplicateResult
	err := call.Replicate(ctx, api.ReplicateInput{
		GrantInput: e.grant(), RPOThreshold: e.policy().RPOThreshold, Workflow: e.id,
	}).Get(ctx, &out)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return e.lost(ctx, err)
	}
	if !out.Status.LastSeen.IsZero() {
		e.lastSeen = out.Status.LastSeen
	}
	if out.Broken == nil {
		return nil // the watch ended by itself: watch again
	}
	return func() { e.broken(ctx, *out.Broken) }
}

// connect grants and assigns in the present epoch.
func (e *entity) connect(ctx workflow.Context) error {
	if err := call.Grant(ctx, e.grant()); err != nil {
		return err
	}
	if err := call.Assign(ctx, e.assign()); err != nil {
		return err
	}
	e.assigned = e.s.Assignment.Epoch
	return nil
}

// lost decides what to do when the watch failed: another server, another try, or
// a resync.
func (e *entity) lost(ctx workflow.Context, err error) func() {
	if ctx.Err() != nil {
		return nil
	}
	if api.MarksForResync(fault.Code(err)) {
		b := stream.Broken{Code: fault.Code(err), Cause: fault.Message(err), Since: workflow.Now(ctx)}
		return func() { e.broken(ctx, b) }
	}
	e.failed(ctx, "process server "+e.s.Assignment.Server, "It is tried again by itself, on another server if there is one.", err)
	if fault.HostLost(err) {
		if err := e.choose(ctx, []string{e.s.Assignment.Server}); err != nil {
			e.failed(ctx, "process server", "Start a process server.", err)
		}
	}
	e.assigned = 0
	pause(ctx, time.Second)
	if fault.Code(err) != api.CodeServerLost {
		pause(ctx, retryPause)
	}
	return nil
}

// resyncSoon is the automatic resync at any time.
func (e *entity) resyncSoon(ctx workflow.Context) func() {
	if !pause(ctx, autoResync) {
		return nil
	}
	return func() {
		e.signalled(ctx, api.ActionResync, api.ActionRequest{By: "policy " + e.s.Policy, Reason: "automatic", OnlyIfRequired: true})
	}
}

// seen takes what discovery saw of the VM.
func (e *entity) seen(ctx workflow.Context, vm api.VM) {
	if vm.Machine != e.s.Machine || !e.mine(vm.VCenterUUID, vm.InstanceUUID) {
		return
	}
	before, now := e.s.Protected, protected(vm, e.in.Exclude)
	e.s.VM, e.disksNews = vm, true
	e.clear(ctx, api.CodeVMGone)
	if e.sourceReports() {
		e.judgeDisks(ctx)
		return
	}
	if sameDisks(before, now) || e.s.State != api.StateProtected {
		return
	}
	e.broken(ctx, stream.Broken{
		Code: api.CodeDiskChanged, Since: workflow.Now(ctx),
		Cause: "the disks of " + vm.Name + " in vCenter are no longer those that are protected",
	})
	if e.background != nil {
		e.background.stopped = true
		e.background.cancel()
	}
}

func sameDisks(a, b []api.VMDisk) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].ID != b[i].ID || a[i].Size != b[i].Size {
			return false
		}
	}
	return true
}

// policy is the one of the present direction.
func (e *entity) policy() api.Policy {
	if e.reverse() {
		return e.s.PolicySpec.ForFailback()
	}
	return e.s.PolicySpec
}

// grant is what lets the machine stream in the present assignment.
func (e *entity) grant() api.GrantInput {
	return api.GrantInput{
		Machine: e.s.Machine, Name: e.s.Name, Assignment: e.s.Assignment, Disks: e.s.Protected,
		Policy: e.policy(), Target: e.s.TargetSpec, Attached: e.reverse(),
	}
}

// assign is what tells the agent of the machine's present side where to stream.
func (e *entity) assign() api.AssignInput {
	in := api.AssignInput{Machine: e.s.Machine, Assignment: e.s.Assignment, Disks: e.s.Protected, Group: e.policy().Group()}
	if e.reverse() {
		in.Disks = e.targetDisks()
	}
	return in
}

// targetDisks are the machine's disks as the target machine's agent finds them.
func (e *entity) targetDisks() []api.VMDisk {
	if e.s.Target == nil {
		return e.s.Protected
	}
	out := make([]api.VMDisk, 0, len(e.s.Protected))
	for _, d := range e.s.Protected {
		for _, t := range e.s.Target.Disks {
			if t.ID == d.ID {
				d.BackingUUID = t.BackingUUID
			}
		}
		out = append(out, d)
	}
	return out
}

func (e *entity) moved(t api.Transfer) {
	e.s.Transfers = append(e.s.Transfers, t)
	if len(e.s.Transfers) > maxTransfers {
		e.s.Transfers = e.s.Transfers[len(e.s.Transfers)-maxTransfers:]
	}
}

func (e *entity) doing(ctx workflow.Context, what string) {
	e.s.Doing = what
	workflow.SetCurrentDetails(ctx, e.describe())
}
