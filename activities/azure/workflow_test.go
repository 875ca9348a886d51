package azure_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/activities/azure"
	"drover/activities/target"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/tests/azurearm"
	"drover/workflows/api"
	"drover/workflows/failover"
	entities "drover/workflows/machine"
	"drover/workflows/resync"
)

// entity is a machine's workflow over the target's activities as they are; what is
// on the source's side answers at once.
type entity struct {
	*testsuite.TestWorkflowEnvironment
	w  *world
	at time.Duration

	relay  bool                        // of the target
	assign func(api.AssignInput)       // hears of assignments
	base   func(context.Context) error // fails base passes
}

func newEntity(w *world) *entity {
	e := &entity{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment(), w: w}
	e.SetTestTimeout(time.Minute)
	for name, f := range map[string]any{
		api.WorkflowMachine: entities.Workflow, api.WorkflowInitialReplication: resync.InitialReplication,
		api.WorkflowFailover: failover.Workflow, api.WorkflowTestFailover: failover.TestWorkflow,
	} {
		e.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
	for name, f := range w.activities().Activities() {
		e.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	e.source()
	return e
}

type none struct{}

func answer[In, Out any](e *entity, name string, f func(In) Out) {
	e.RegisterActivityWithOptions(func(_ context.Context, in In) (Out, error) { return f(in), nil }, activity.RegisterOptions{Name: name})
}

func (e *entity) source() {
	point := func() replica.Point {
		p := input("").Point
		p.Time = e.Now()
		return p
	}
	answer(e, api.ActVaultJoin, func(api.VaultMember) none { return none{} })
	answer(e, api.ActVaultLeave, func(ident.MachineID) none { return none{} })
	answer(e, api.ActAwaitAgent, func(in api.AwaitAgentInput) api.AgentInfo { return api.AgentInfo{Instance: in.Instance} })
	answer(e, api.ActChooseServer, func(in api.ChooseServerInput) api.Assignment {
		return api.Assignment{Server: "ps-1", Role: in.Role, Address: "ps-1:9443"}
	})
	answer(e, api.ActAssign, func(in api.AssignInput) none {
		if e.assign != nil {
			e.assign(in)
		}
		return none{}
	})
	answer(e, api.ActUnassign, func(api.UnassignInput) none { return none{} })
	answer(e, api.ActGrant, func(api.GrantInput) none { return none{} })
	e.RegisterActivityWithOptions(func(ctx context.Context, in api.BaseInput) (api.Transfer, error) {
		if e.base != nil {
			return api.Transfer{Cause: in.Cause}, e.base(ctx)
		}
		return api.Transfer{Cause: in.Cause}, nil
	}, activity.RegisterOptions{Name: api.ActBase})
	for _, name := range []string{api.ActRevoke, api.ActFence, api.ActRelease, api.ActRemoveReplica} {
		answer(e, name, func(api.FenceInput) none { return none{} })
	}
	answer(e, api.ActFinalCut, func(api.FenceInput) replica.Point { return point() })
	answer(e, api.ActChoosePoint, func(api.ChoosePointInput) replica.Point { return point() })
	answer(e, api.ActReleasePoint, func(api.ReleasePointInput) none { return none{} })
	answer(e, api.ActShutdownVM, func(api.ShutdownInput) api.ShutdownResult { return api.ShutdownResult{WasOn: true} })
	answer(e, api.ActPowerOnVM, func(api.VMRef) none { return none{} })
	answer(e, api.ActNotify, func(api.Notification) none { return none{} })
	e.RegisterActivityWithOptions(func(context.Context, api.ReplicateInput) (api.ReplicateResult, error) {
		return api.ReplicateResult{}, activity.ErrResultPending
	}, activity.RegisterOptions{Name: api.ActReplicate})
}

// reply notes what became of an update.
type reply struct {
	result api.ActionResult
	err    error
	done   bool
}

func (r *reply) Accept()          {}
func (r *reply) Reject(err error) { r.err = err }
func (r *reply) Complete(v any, err error) {
	r.done, r.err = true, err
	r.result, _ = v.(api.ActionResult)
}

func (e *entity) then(f func()) {
	e.at += time.Hour
	e.RegisterDelayedCallback(f, e.at)
}

func (e *entity) ask(action string, r api.ActionRequest) *reply {
	out := &reply{}
	id := "u-" + action + e.at.String()
	e.then(func() { e.UpdateWorkflow(action, id, out, r) })
	return out
}

func (e *entity) play(t *testing.T) {
	in := input("")
	in.Target.Relay = e.relay
	end := e.ask(api.ActionUnprotect, api.ActionRequest{})
	e.ExecuteWorkflow(api.WorkflowMachine, api.MachineInput{
		VM: api.VM{
			Machine: in.Machine, VCenter: "vc", InstanceUUID: "i", BIOSUUID: "b", Name: "db-1", CPUs: 2, MemoryMB: 4096,
			Firmware: "efi", GuestID: "debian12_64Guest", Disks: in.Disks,
		},
		Target: in.Target,
		Policy: api.Policy{Name: "gold", CutInterval: api.Duration(30 * time.Second), Retention: replica.DefaultRetention()},
	})
	require.True(t, e.IsWorkflowCompleted())
	require.NoError(t, e.GetWorkflowError())
	require.NoError(t, end.err)
}

func TestTestFailoverFailoverAndCommit(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	e := newEntity(w)
	vms := func() []string { return w.List("Microsoft.Compute/virtualMachines") }

	test := e.ask(api.ActionTestFailover, api.ActionRequest{PlanRun: "plan-drill-1"})
	e.then(func() {
		require.Len(t, vms(), 1)
		require.Equal(t, "true", w.Get(vms()[0], "tags", target.TagTest))
		require.Equal(t, "plan-drill-1", w.Get(vms()[0], "tags", target.TagPlan))
	})
	clean := e.ask(api.ActionCleanup, api.ActionRequest{})
	e.then(func() { require.Empty(t, w.left()) })
	over := e.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	commit := e.ask(api.ActionCommit, api.ActionRequest{})
	e.then(func() { require.Equal(t, "true", w.Get(vms()[0], "tags", "drover-committed")) })
	e.play(t)
	for _, r := range []*reply{test, clean, over, commit} {
		require.NoError(t, r.err)
		require.True(t, r.done)
	}
	require.Contains(t, test.result.Target.Network, "sandbox")
	require.Contains(t, over.result.Target.Network, "prod")
	require.True(t, over.result.Target.Running)
	w.content0(*over.result.Target)
}

func TestFailoverThatFailsPutsAllBack(t *testing.T) {
	w := newWorld(t, azure.WayUpload)
	e := newEntity(w)
	var quota, isolated, late *reply
	e.then(func() { w.SetQuota("cores", 1) })
	quota = e.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	e.then(func() {
		require.Empty(t, w.left(), "it is refused before anything is made")
		w.SetQuota("cores", 100)
		w.Set(azurearm.ID(group, "Microsoft.Network/virtualNetworks", "sandbox"), []any{map[string]any{"name": "to-prod"}}, "properties", "virtualNetworkPeerings")
	})
	isolated = e.ask(api.ActionTestFailover, api.ActionRequest{})
	e.then(func() {
		require.Empty(t, w.left())
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/virtualMachines/", Status: 400, Code: "InvalidParameter"})
	})
	late = e.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	e.then(func() { require.Empty(t, w.left(), "disks and card are deleted again") })
	e.play(t)
	require.ErrorContains(t, quota.err, api.CodeQuota)
	require.ErrorContains(t, isolated.err, "peering to-prod")
	require.ErrorContains(t, late.err, "InvalidParameter")
}

// files is a replica store that is read from; data in two ranges.
type files struct {
	replica.Store
	replica.Reader
	w *world
}

type fileDisk struct{ content []byte }

func (f *files) OpenReader(context.Context, ident.MachineID) (replica.Reader, error) { return f, nil }
func (*files) Close() error                                                          { return nil }
func (f *files) OpenDisk(_ context.Context, _ ident.Seq, disk ident.DiskID) (replica.DiskReader, error) {
	for i, d := range input("").Disks {
		if d.ID == disk {
			return &fileDisk{f.w.content[i]}, nil
		}
	}
	return nil, replica.ErrNotFound
}

func (d *fileDisk) Size() int64                  { return int64(len(d.content)) }
func (*fileDisk) Close() error                   { return nil }
func (*fileDisk) ReadSums(int64, []uint64) error { return errors.ErrUnsupported }
func (d *fileDisk) ReadAt(p []byte, off int64) (int, error) {
	if n := copy(p, d.content[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (d *fileDisk) NextData(offset int64) (checksum.Range, bool, error) {
	for _, r := range []checksum.Range{{Offset: 0, Length: 6 << 20}, {Offset: diskSize - 4096, Length: 4096}} {
		if offset < r.End() {
			start := max(offset, r.Offset)
			return checksum.Range{Offset: start, Length: r.End() - start}, true, nil
		}
	}
	return checksum.Range{}, false, nil
}

// TestFromAnyStore: without snapshots in Azure the disks' content is sent.
func TestFromAnyStore(t *testing.T) {
	w := newWorld(t, "")
	a := target.New(w.cloud(), &files{w: w})
	in := input("failover/1")
	w.Inject(azurearm.Fault{Method: "PUT", Path: "/disks/", Status: 403, Code: "AuthorizationFailure", Times: 3})
	for try := 0; ; try++ {
		_, err := a.CreateMachine(t.Context(), in)
		if err == nil {
			break
		}
		require.Less(t, try, 5, "%v", err)
	}
	m, err := a.StartMachine(t.Context(), ref(in))
	require.NoError(t, err)
	w.content0(m)
}
