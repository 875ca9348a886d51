package machine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/failback"
	"drover/workflows/failover"
	"drover/workflows/fault"
	"drover/workflows/resync"
	"drover/workflows/rollback"
)

// world is a machine's entity with everything around it.
type world struct {
	*testsuite.TestWorkflowEnvironment
	t        *testing.T
	mu       sync.Mutex // activities run side by side
	called   []string
	fails    map[string]error // by activity, once
	watching []byte           // token of the replication activity under way
	granted  []ident.Epoch
	assigns  []api.AssignInput
	avoided  [][]string // servers, at each choice
	at       time.Duration
	report   *api.AgentReport // of the agent that is waited for
	input    api.MachineInput
	vm       *api.VM // as vCenter tells it; nil: as it was
	bases    []api.BaseInput
	slow     bool // resyncs take until finish
	point    func() replica.Point
	based    func() // a base pass was made
	joined   []api.VaultMember
	grants   []api.GrantInput
	makes    []api.MakeVMInput
	unmakes  []api.UnmakeVMInput
	points   []ident.Seq // to be chosen next; 9 after them
}

func newWorld(t *testing.T) *world {
	w := &world{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment(), t: t,
		fails: map[string]error{}, input: testInput()}
	w.point = func() replica.Point { return replica.Point{ID: 9, Final: true, Time: w.Now()} }
	w.based = func() {}
	w.SetTestTimeout(30 * time.Second)
	for name, f := range map[string]any{
		api.WorkflowMachine:            Workflow,
		api.WorkflowInitialReplication: resync.InitialReplication, api.WorkflowResync: w.resync, api.WorkflowFailover: failover.Workflow,
		api.WorkflowTestFailover: failover.TestWorkflow, api.WorkflowReprotect: failback.Reprotect, api.WorkflowFailback: failback.Workflow, api.WorkflowReenable: failback.Reenable,
		api.WorkflowRollBack: rollback.Workflow, api.WorkflowChangePoint: rollback.ChangePoint,
	} {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	w.activities()
	return w
}

// resync is the runbook; a slow one waits before it begins.
func (w *world) resync(ctx workflow.Context, p resync.Params) (api.Transfer, error) {
	if w.slow {
		s := workflow.NewSelector(ctx)
		s.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
		s.AddReceive(workflow.GetSignalChannel(ctx, "finish"), func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) })
		s.Select(ctx)
	}
	return resync.Resync(ctx, p)
}

// finish lets the resync under way come to its end.
func (w *world) finish() { require.NoError(w.t, w.SignalWorkflowByID(w.status().Child, "finish", nil)) }

func (w *world) note(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.called = append(w.called, name)
	err := w.fails[name]
	delete(w.fails, name)
	return err
}

func reg[In, Out any](w *world, name string, f func(In) Out) {
	w.RegisterActivityWithOptions(func(_ context.Context, in In) (Out, error) {
		err := w.note(name)
		if err != nil {
			var none Out
			return none, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		return f(in), nil
	}, activity.RegisterOptions{Name: name})
}

type none struct{}

func (w *world) activities() {
	reg(w, api.ActVaultJoin, func(m api.VaultMember) none { w.joined = append(w.joined, m); return none{} })
	reg(w, api.ActVaultLeave, func(ident.MachineID) none { return none{} })
	reg(w, api.ActAwaitAgent, func(in api.AwaitAgentInput) api.AgentInfo {
		return api.AgentInfo{Instance: in.Instance, Report: w.report}
	})
	reg(w, api.ActChooseServer, func(in api.ChooseServerInput) api.Assignment {
		w.avoided = append(w.avoided, in.Avoid)
		name := map[ident.Role]string{ident.RoleProcessServer: "ps-1", ident.RoleMasterTarget: "mt-1"}[in.Role]
		return api.Assignment{Server: name, Role: in.Role, Address: name + ":9443"}
	})
	reg(w, api.ActAssign, func(in api.AssignInput) none { w.assigns = append(w.assigns, in); return none{} })
	reg(w, api.ActUnassign, func(api.UnassignInput) none { return none{} })
	reg(w, api.ActGrant, func(in api.GrantInput) none {
		w.granted, w.grants = append(w.granted, in.Assignment.Epoch), append(w.grants, in)
		return none{}
	})
	reg(w, api.ActRevoke, func(api.FenceInput) none { return none{} })
	reg(w, api.ActFence, func(api.FenceInput) none { return none{} })
	reg(w, api.ActRemoveReplica, func(api.FenceInput) none { return none{} })
	reg(w, api.ActBase, func(in api.BaseInput) api.Transfer {
		w.bases = append(w.bases, in)
		w.based()
		return api.Transfer{DataBytes: 5, Cause: in.Cause}
	})
	reg(w, api.ActFinalCut, func(api.FenceInput) replica.Point { return w.point() })
	reg(w, api.ActRelease, func(api.FenceInput) none { return none{} })
	reg(w, api.ActChoosePoint, func(in api.ChoosePointInput) replica.Point {
		point := w.point()
		if len(w.points) > 0 {
			point.ID, w.points = w.points[0], w.points[1:]
		}
		return point
	})
	reg(w, api.ActReleasePoint, func(api.ReleasePointInput) none { return none{} })
	reg(w, api.ActCheckNetwork, func(api.CheckNetworkInput) none { return none{} })
	target := func(name string) api.TargetMachine {
		return api.TargetMachine{Name: name, Instance: "cloud-1", Disks: []api.TargetDisk{{ID: testVM().Disks[0].ID, BackingUUID: "cloud-disk"}}}
	}
	reg(w, api.ActCreateMachine, func(in api.CreateMachineInput) api.TargetMachine { return target(in.Name) })
	reg(w, api.ActStartMachine, func(in api.TargetRef) api.TargetMachine { return target(in.Name) })
	reg(w, api.ActCheckMachine, func(api.TargetRef) api.CheckResult { return api.CheckResult{Ready: true} })
	reg(w, api.ActStopMachine, func(api.TargetRef) none { return none{} })
	reg(w, api.ActDeleteMachine, func(api.TargetRef) none { return none{} })
	reg(w, api.ActCommitMachine, func(api.TargetRef) none { return none{} })
	reg(w, api.ActShutdownVM, func(api.ShutdownInput) api.ShutdownResult { return api.ShutdownResult{WasOn: true} })
	reg(w, api.ActPowerOnVM, func(api.VMRef) none { return none{} })
	reg(w, api.ActAttachDisks, func(api.AttachInput) none { return none{} })
	reg(w, api.ActDetachDisks, func(api.AttachInput) none { return none{} })
	reg(w, api.ActCheckLocation, func(api.MakeVMInput) none { return none{} })
	reg(w, api.ActMakeVM, func(in api.MakeVMInput) api.MadeVM {
		w.makes = append(w.makes, in)
		vm := in.VM
		vm.Disks = in.Disks
		vm = madeVM(vm)
		return api.MadeVM{VM: vm, Disks: vm.Disks}
	})
	reg(w, api.ActUnmakeVM, func(in api.UnmakeVMInput) none { w.unmakes = append(w.unmakes, in); return none{} })
	reg(w, api.ActVerifyVMReady, func(api.VMRef) api.VM {
		if w.vm != nil {
			return *w.vm
		}
		return testVM()
	})
	reg(w, api.ActNotify, func(api.Notification) none { return none{} })
	// It is left pending: the environment's clock stands while an activity runs.
	w.RegisterActivityWithOptions(func(ctx context.Context, _ api.ReplicateInput) (api.ReplicateResult, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.called = append(w.called, api.ActReplicate)
		w.watching = activity.GetInfo(ctx).TaskToken
		return api.ReplicateResult{}, activity.ErrResultPending
	}, activity.RegisterOptions{Name: api.ActReplicate})
}

func testVM() api.VM {
	m := ident.NewMachineID("v", "db-1")
	return api.VM{Machine: m, VCenter: "vc-1", InstanceUUID: "i-1", BIOSUUID: "b-1", Name: "db-1", CPUs: 2, MemoryMB: 1024,
		Disks: []api.VMDisk{{ID: ident.NewDiskID(m, "d"), BackingUUID: "d", Label: "Hard disk 1", Size: 1 << 20}}}
}

// madeVM is the VM made anew: other uuids, the same disks.
func madeVM(vm api.VM) api.VM {
	vm.VCenter, vm.VCenterUUID, vm.InstanceUUID, vm.BIOSUUID = "vc-2", "v2", "i-2", "b-2"
	vm.Disks = slices.Clone(vm.Disks)
	for i := range vm.Disks {
		vm.Disks[i].BackingUUID, vm.Disks[i].Label = fmt.Sprintf("new-%d", i), fmt.Sprintf("Hard disk %d", i+1)
	}
	return vm
}

func testInput() api.MachineInput {
	return api.MachineInput{VM: testVM(), Target: api.Target{Network: "prod", TestNetwork: "sandbox"},
		Policy: api.Policy{Name: "gold", CutInterval: api.Duration(30 * time.Second), Retention: replica.DefaultRetention()}}
}

// reply notes what became of an update.
type reply struct {
	rejected, done bool
	result         api.ActionResult
	err            error
}

func (r *reply) Accept()          {}
func (r *reply) Reject(err error) { r.rejected, r.err = true, err }
func (r *reply) Complete(v any, err error) {
	r.done, r.err = true, err
	if a, ok := v.(api.ActionResult); ok {
		r.result = a
	}
}

// then does f some time later.
func (w *world) then(f func()) {
	w.at += time.Minute
	w.RegisterDelayedCallback(f, w.at)
}

// ask sends an update some time later.
func (w *world) ask(action string, r api.ActionRequest) *reply {
	out := &reply{}
	id := "u-" + action + w.at.String()
	w.then(func() { w.UpdateWorkflow(action, id, out, r) })
	return out
}

// expect looks at the state some time later.
func (w *world) expect(s api.State) {
	w.then(func() { require.Equal(w.t, s, w.status().State) })
}

func (w *world) status() api.MachineStatus {
	v, err := w.QueryWorkflow(api.QueryStatus)
	require.NoError(w.t, err)
	var s api.MachineStatus
	require.NoError(w.t, v.Get(&s))
	return s
}

// play runs the entity; at the end it is unprotected.
func (w *world) play() {
	end := w.ask(api.ActionUnprotect, api.ActionRequest{})
	w.ExecuteWorkflow(api.WorkflowMachine, w.input)
	require.True(w.t, w.IsWorkflowCompleted())
	require.NoError(w.t, w.GetWorkflowError())
	require.NoError(w.t, end.err)
	require.Equal(w.t, api.StateDisabled, w.status().State)
}

func TestWholeLife(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	test := w.ask(api.ActionTestFailover, api.ActionRequest{})
	again := w.ask(api.ActionTestFailover, api.ActionRequest{})
	clean := w.ask(api.ActionCleanup, api.ActionRequest{})
	over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.expect(api.StateFailedOver)
	commit := w.ask(api.ActionCommit, api.ActionRequest{})
	repro := w.ask(api.ActionReprotect, api.ActionRequest{})
	w.expect(api.StateProtectedReverse)
	wrong := w.ask(api.ActionFailover, api.ActionRequest{})
	back := w.ask(api.ActionFailback, api.ActionRequest{})
	w.expect(api.StateFailedBack)
	re := w.ask(api.ActionReenable, api.ActionRequest{})
	w.expect(api.StateProtected)
	w.then(func() {
		s := w.status()
		require.Len(t, s.Transfers, 3)
		require.Nil(t, s.Target)
		require.Contains(t, s.Possible, api.ActionFailover)
		require.Equal(t, api.Healthy, s.Health, "%v", s.Problems)
	})
	w.play()
	for _, r := range []*reply{test, clean, over, commit, repro, back, re} {
		require.NoError(t, r.err)
		require.True(t, r.done)
	}
	require.Equal(t, api.CodeNotInState, fault.Code(again.err))
	require.True(t, again.rejected)
	require.Equal(t, api.CodeNotInState, fault.Code(wrong.err))
	require.Equal(t, "db-1-test", test.result.Target.Name)
	require.Equal(t, ident.Seq(9), over.result.Point.ID)
	require.NotZero(t, repro.result.Transfer)
	for i := 1; i < len(w.granted); i++ {
		require.GreaterOrEqual(t, w.granted[i], w.granted[i-1], "epochs never fall: %v", w.granted)
	}
	var reverse *api.AssignInput
	for i := range w.assigns {
		if w.assigns[i].Assignment.Role == ident.RoleMasterTarget {
			reverse = &w.assigns[i]
		}
	}
	require.NotNil(t, reverse)
	require.Equal(t, "cloud-disk", reverse.Disks[0].BackingUUID, "the target's agent finds its own disks")
	require.Equal(t, "cloud-1", reverse.Assignment.Instance)
}

func TestBrokenAndResync(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	w.then(func() {
		b := stream.Broken{Code: api.CodeSessionLost, Cause: "no session for 5s"}
		require.NoError(t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
	})
	w.expect(api.StateResyncRequired)
	w.then(func() {
		s := w.status()
		require.Equal(t, api.Critical, s.Health)
		require.Equal(t, api.CodeSessionLost, s.Problems[0].Code)
	})
	planned := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.then(func() { w.fails[api.ActBase] = fault.New(api.CodeReplicaDamaged, "it broke again") })
	failed := w.ask(api.ActionResync, api.ActionRequest{})
	w.expect(api.StateResyncRequired)
	good := w.ask(api.ActionResync, api.ActionRequest{})
	idle := w.ask(api.ActionResync, api.ActionRequest{OnlyIfRequired: true})
	w.expect(api.StateProtected)
	w.then(func() { require.Empty(t, w.status().Problems) })
	w.play()
	require.Equal(t, api.CodeNotInState, fault.Code(planned.err))
	require.Equal(t, api.CodeReplicaDamaged, fault.Code(failed.err))
	require.NoError(t, good.err)
	require.NoError(t, idle.err)
	require.Contains(t, w.called, api.ActNotify)
}

// TestProblemsAreWhole: whatever raised it, an error says all that a person needs.
func TestProblemsAreWhole(t *testing.T) {
	w := newWorld(t)
	w.fails[api.ActChooseServer] = temporal.NewNonRetryableApplicationError("no process server of the site was heard of", api.CodeNoServer, nil)
	look := func(code string, possible bool) {
		w.then(func() {
			p := w.status().Problems[0]
			require.Equal(t, code, p.Code)
			require.Equal(t, possible, p.Failover)
			for _, text := range []string{p.Component, p.Cause, p.Evidence, p.Action, string(p.Health)} {
				require.NotEmpty(t, text, "%+v", p)
				require.NotContains(t, text, "NAME")
			}
			require.False(t, p.Since.IsZero())
		})
	}
	w.at -= 50 * time.Second
	look(api.CodeNoServer, false) // no point to go to yet
	w.expect(api.StateProtected)
	w.then(func() {
		b := stream.Broken{Code: api.CodeReplicaDamaged, Cause: "a gap"}
		require.NoError(t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
	})
	look(api.CodeReplicaDamaged, true)
	w.then(func() { w.fails[api.ActBase] = fault.New(api.CodeReplicaDamaged, "it broke again") })
	w.ask(api.ActionResync, api.ActionRequest{})
	w.then(func() {
		p := w.status().Problems[1]
		require.Equal(t, api.CodeResyncFailed, p.Code)
		require.Contains(t, p.Cause, "it broke again")
		require.Contains(t, p.Action, "drover resync db-1")
		require.Contains(t, p.Evidence, "-resync-")
		require.True(t, p.Failover)
	})
	w.ask(api.ActionFailover, api.ActionRequest{})
	w.play()
}

// TestWhatTheTemporalUIShows: search attributes and memo follow the machine, and are
// written only when they change.
func TestWhatTheTemporalUIShows(t *testing.T) {
	w := newWorld(t)
	w.input.Site = "berlin"
	attributes := map[string]any{}
	memo, memos := "", 0
	w.OnUpsertTypedSearchAttributes(mock.Anything).Run(func(args mock.Arguments) {
		for key, value := range args.Get(0).(temporal.SearchAttributes).GetUntypedValues() {
			attributes[key.GetName()] = value
		}
	}).Return(nil)
	w.OnUpsertMemo(mock.Anything).Run(func(args mock.Arguments) {
		memo, memos = args.Get(0).(map[string]any)[api.MemoSummary].(string), memos+1
	}).Return(nil)
	w.expect(api.StateProtected)
	w.then(func() {
		require.Equal(t, "Protected", attributes[api.SearchState])
		require.Equal(t, "berlin", attributes[api.SearchSite])
		require.Equal(t, "Healthy", attributes[api.SearchHealth])
		require.Equal(t, "gold", attributes[api.SearchPolicy])
		require.Equal(t, "db-1: Protected, Healthy; policy gold", memo)
		require.Equal(t, 3, memos, "Enabling, InitialReplication, Protected")
		e := api.ReplicationEvent{Problem: api.Problem{Code: api.CodeRPO, Cause: "too old"}}
		for range 5 {
			w.SignalWorkflow(api.SignalReplicationEvent, e)
		}
	})
	w.then(func() {
		require.Equal(t, "Warning", attributes[api.SearchHealth])
		require.Equal(t, "db-1: Protected, Warning; policy gold; DRV-3101 too old", memo)
		require.Equal(t, 4, memos)
	})
	w.play()
}

func TestFailedFailoverGoesBackToProtected(t *testing.T) {
	w := newWorld(t)
	w.then(func() {
		w.fails[api.ActCreateMachine] = temporal.NewNonRetryableApplicationError("quota", api.CodeTarget, nil)
	})
	over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.expect(api.StateProtected)
	w.play()
	require.Equal(t, api.CodeTarget, fault.Code(over.err))
	require.ErrorContains(t, over.err, "quota")
	require.Contains(t, w.called, api.ActPowerOnVM)
	require.Contains(t, w.called, api.ActRelease)
	require.Equal(t, w.granted[len(w.granted)-1], w.granted[0]+2, "a newer epoch than the failover's: %v", w.granted)
}

func TestRequestsAreIdempotentAndSignalsWork(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	one := w.ask(api.ActionResync, api.ActionRequest{RequestID: "same"})
	two := w.ask(api.ActionResync, api.ActionRequest{RequestID: "same"})
	w.then(func() { w.SignalWorkflow(api.ActionPause, api.ActionRequest{By: "anna"}) })
	w.expect(api.StatePaused)
	w.then(func() { w.SignalWorkflow(api.ActionCommit, api.ActionRequest{}) })
	w.then(func() {
		s := w.status()
		require.NotNil(t, s.Refused)
		require.Equal(t, api.CodeNotInState, s.Refused.Code)
	})
	resume := w.ask(api.ActionResume, api.ActionRequest{})
	w.expect(api.StateProtected)
	p := testInput().Policy
	p.Name = "silver"
	set := w.ask(api.ActionSetPolicy, api.ActionRequest{Policy: &p})
	bad := w.ask(api.ActionSetPolicy, api.ActionRequest{})
	w.then(func() { require.Equal(t, "silver", w.status().Policy) })
	w.play()
	require.NoError(t, one.err)
	require.Equal(t, one.result, two.result)
	bases := 0
	for _, c := range w.called {
		if c == api.ActBase {
			bases++
		}
	}
	require.Equal(t, 2, bases, "the initial copy and one resync")
	require.NoError(t, resume.err)
	require.NoError(t, set.err)
	require.Equal(t, api.CodeInvalid, fault.Code(bad.err))
}

func TestChangedDisksNeedAResync(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	w.then(func() {
		vm := testVM()
		vm.Disks[0].Size *= 2
		w.SignalWorkflow(api.SignalInventory, vm)
	})
	w.expect(api.StateResyncRequired)
	good := w.ask(api.ActionResync, api.ActionRequest{})
	w.then(func() { require.Equal(t, int64(2<<20), w.status().Protected[0].Size) })
	w.play()
	require.NoError(t, good.err)
}

// TestAgentReports: what the agent says is kept for people, from the first look on.
func TestAgentReports(t *testing.T) {
	w := newWorld(t)
	m := testVM().Machine
	w.report = &api.AgentReport{Machine: m, Instance: "b-1", Version: "1", State: "streaming"}
	w.then(func() {
		require.Equal(t, &api.AgentReport{Machine: m, Instance: "b-1", Version: "1"}, w.status().Agent)
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: m, Version: "2", Preflight: []api.Finding{{Check: "fstab"}}})
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: ident.NewMachineID("v", "other"), Version: "3"})
	})
	w.then(func() {
		require.Equal(t, "2", w.status().Agent.Version)
		require.Len(t, w.status().Agent.Preflight, 1)
	})
	w.play()
}

// TestAgentOfAnotherRelease is a problem until the servers take it.
func TestAgentOfAnotherRelease(t *testing.T) {
	w := newWorld(t)
	m := testVM().Machine
	problems := func() (found []api.Problem) {
		for _, p := range w.status().Problems {
			if p.Code == api.CodeAgentVersion {
				found = append(found, p)
			}
		}
		return found
	}
	w.then(func() {
		require.Empty(t, problems())
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: m, Version: "1.0.0", Refused: "the agent is of release 1.0"})
	})
	w.then(func() {
		require.Len(t, problems(), 1)
		require.Equal(t, api.Critical, problems()[0].Health)
		require.Equal(t, "the agent is of release 1.0", problems()[0].Cause)
		require.Contains(t, problems()[0].Action, "drover agent install")
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: m, Version: "1.5.0"})
	})
	w.then(func() {
		require.Empty(t, problems())
		require.Equal(t, "1.5.0", w.status().Agent.Version)
	})
	w.play()
}

func TestStateIsCarriedOn(t *testing.T) {
	w := newWorld(t)
	w.then(func() { w.SetContinueAsNewSuggested(true) })
	w.then(func() { w.SignalWorkflow(api.SignalStep, api.StepProgress{}) })
	w.ExecuteWorkflow(api.WorkflowMachine, testInput())
	var again *workflow.ContinueAsNewError
	require.ErrorAs(t, w.GetWorkflowError(), &again)

	next := newWorld(t)
	in := testInput()
	in.Carry = &api.MachineCarry{Version: 1, Joined: true, Assigned: 4, Counter: 7,
		Status: api.MachineStatus{Machine: in.VM.Machine, Name: "db-1", VM: in.VM, State: api.StateProtected, PolicySpec: in.Policy, TargetSpec: in.Target,
			Protected: in.VM.Disks, Assignment: api.Assignment{Epoch: 4, Server: "ps-1", Role: ident.RoleProcessServer}}}
	next.expect(api.StateProtected)
	end := next.ask(api.ActionUnprotect, api.ActionRequest{KeepData: true})
	next.ExecuteWorkflow(api.WorkflowMachine, in)
	require.NoError(t, next.GetWorkflowError())
	require.NoError(t, end.err)
	require.Empty(t, next.granted, "nothing is granted anew")
	require.NotContains(t, next.called, api.ActRemoveReplica)

	in.Carry.Version = 99
	old := newWorld(t)
	old.ExecuteWorkflow(api.WorkflowMachine, in)
	require.ErrorContains(t, old.GetWorkflowError(), "upgrade")
}

func TestRefusesWhatCannotBeProtected(t *testing.T) {
	for name, change := range map[string]func(*api.MachineInput){
		"no disks": func(in *api.MachineInput) { in.Exclude = []string{"d"} }, "no network": func(in *api.MachineInput) { in.Target.Network = "" },
		"policy": func(in *api.MachineInput) { in.Policy.CutInterval = 0 }, "no VM": func(in *api.MachineInput) { in.VM = api.VM{} },
	} {
		w := newWorld(t)
		in := testInput()
		change(&in)
		w.ExecuteWorkflow(api.WorkflowMachine, in)
		require.Equal(t, api.CodeInvalid, fault.Code(w.GetWorkflowError()), name)
	}
}

func TestMachineMovesWhenItsServerIsLost(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	w.then(func() {
		require.NoError(t, w.CompleteActivity(w.watching, nil, fault.New(api.CodeServerLost, "ps-1 does not answer")))
	})
	w.expect(api.StateProtected)
	w.then(func() {
		s := w.status()
		require.Greater(t, s.Assignment.Epoch, ident.Epoch(1), "the old server is fenced off")
		require.Equal(t, s.Assignment.Epoch, w.granted[len(w.granted)-1])
		require.Equal(t, s.Assignment.Epoch, w.assigns[len(w.assigns)-1].Assignment.Epoch)
		require.Zero(t, s.Resyncs)
	})
	w.play()
	require.Equal(t, [][]string{nil, {"ps-1"}}, w.avoided)
}
