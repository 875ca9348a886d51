package discovery

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

const url = "https://x/sdk"

// watched is a discovery whose watch is what the test says.
type watched struct {
	*testsuite.TestWorkflowEnvironment
	t      *testing.T
	starts []time.Duration // of watches, since the beginning
	after  []api.EventCursor
	vms    []api.VM
	told   []any

	tagsError string
}

func vm(n string) api.VM {
	return api.VM{Machine: ident.NewMachineID("v", n), InstanceUUID: n, Name: n, PoweredOn: true}
}

// newWatched: VMs a and b are protected, c is not.
func newWatched(t *testing.T, watch func(n int) error) *watched {
	w := &watched{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment(), t: t}
	w.SetTestTimeout(30 * time.Second)
	begin := w.Now()
	w.RegisterActivityWithOptions(func(_ context.Context, in api.WatchInput) error {
		w.starts, w.after = append(w.starts, w.Now().Sub(begin)), append(w.after, in.After)
		return watch(len(w.starts))
	}, activityNamed(api.ActWatch))
	w.RegisterActivityWithOptions(func(api.VCenter) (api.InventoryResult, error) {
		return api.InventoryResult{UUID: "v", VMs: w.vms, TagsError: w.tagsError}, nil
	}, activityNamed(api.ActInventory))
	w.RegisterActivityWithOptions(func() (api.VaultStatus, error) {
		return api.VaultStatus{Machines: []api.VaultMember{{Machine: vm("a").Machine}, {Machine: vm("b").Machine}}}, nil
	}, activityNamed(api.ActVaultStatus))
	for _, signal := range []string{api.SignalInventory, api.SignalVMEvent} {
		for _, n := range []string{"a", "b"} {
			w.OnSignalExternalWorkflow(mock.Anything, api.MachineWorkflowID(vm(n).Machine), "", signal, mock.Anything).
				Return(func(_, _, _, _ string, arg any) error { w.told = append(w.told, arg); return nil })
		}
	}
	return w
}

func (w *watched) at(d time.Duration, f func()) { w.RegisterDelayedCallback(f, d) }

func (w *watched) report(r api.WatchReport) {
	r.From, r.UUID = url, "v"
	w.SignalWorkflow(api.SignalWatched, r)
}

func (w *watched) run() {
	w.t.Helper()
	w.ExecuteWorkflow(Workflow, api.DiscoveryInput{VCenter: api.VCenter{Name: "vc-1", URL: url}})
	require.True(w.t, w.IsWorkflowCompleted())
}

func (w *watched) status() (s api.DiscoveryStatus) {
	v, err := w.QueryWorkflow(api.QueryStatus)
	require.NoError(w.t, err)
	require.NoError(w.t, v.Get(&s))
	return s
}

func TestWatchedChanges(t *testing.T) {
	w := newWatched(t, func(int) error { return nil })
	a, b, c := vm("a"), vm("b"), vm("c")
	w.vms = []api.VM{a, b, c}
	w.at(time.Minute, func() {
		w.report(api.WatchReport{Full: true, VMs: []api.VM{a, b, c}, After: api.EventCursor{Key: 5}})
	})
	w.at(2*time.Minute, func() {
		require.Empty(t, w.told, "the first look tells nothing")
		w.SignalWorkflow(api.SignalWatched, api.WatchReport{Full: true, From: "https://before/sdk"})
		off, moved := b, c
		off.PoweredOn, moved.Host = false, "esx-2"
		w.report(api.WatchReport{VMs: []api.VM{off, moved}, Events: []api.VMEvent{
			{Machine: b.Machine, Kind: api.VMPoweredOff}, {Machine: c.Machine, Kind: api.VMReset}}, After: api.EventCursor{Key: 7}})
	})
	w.at(3*time.Minute, func() {
		require.Len(t, w.told, 2, "only the protected machine is told")
		require.False(t, w.told[0].(api.VM).PoweredOn)
		require.Equal(t, api.VMPoweredOff, w.told[1].(api.VMEvent).Kind)
		s := w.status()
		require.True(t, s.Watching)
		require.Len(t, s.VMs, 3)
		require.Equal(t, "esx-2", s.VMs[2].Host)
		w.report(api.WatchReport{Gone: []string{"a"}, VMs: []api.VM{vm("new")}, After: api.EventCursor{Key: 8}})
	})
	w.at(4*time.Minute, func() {
		require.Len(t, w.told, 3)
		require.Equal(t, api.VMGone, w.told[2].(api.VMEvent).Kind)
		require.Equal(t, []string{"b", "c", "new"}, namesOf(w.status().VMs))
		w.report(api.WatchReport{VMs: []api.VM{a}}) // registered again
	})
	w.at(5*time.Minute, func() { require.Equal(t, "a", w.told[3].(api.VM).Name) })
	w.at(6*time.Minute, func() { // a pass that is asked for
		w.vms = []api.VM{a, b}
		w.UpdateWorkflow(api.DiscoveryRefresh, "", &refreshed{t, func(s api.DiscoveryStatus) {
			require.Equal(t, []string{"a", "b"}, namesOf(s.VMs))
			require.Equal(t, 1, s.Passes)
		}})
	})
	w.at(7*time.Minute, func() {
		require.Equal(t, 1, w.status().Passes, "one pass is enough for one who asks")
		w.CancelWorkflow()
	})
	w.run()
}

func namesOf(vms []api.VM) (out []string) {
	for _, vm := range vms {
		out = append(out, vm.Name)
	}
	return out
}

// TestVCenterAwayForAnHour: the workflow says why it sees nothing, keeps what it knows,
// tries at most once a minute, and goes on from the event that it knew.
func TestVCenterAwayForAnHour(t *testing.T) {
	const back = 65 * time.Minute
	w := newWatched(t, nil)
	begin := w.Now()
	w.OnActivity(api.ActWatch, mock.Anything, mock.Anything).Return(func(_ context.Context, in api.WatchInput) error {
		require.Equal(t, 15*time.Minute, in.For.D())
		at := w.Now().Sub(begin)
		w.starts, w.after = append(w.starts, at), append(w.after, in.After)
		if at < back {
			return temporal.NewApplicationError("connect to vCenter vc-1: connection refused", api.CodeVCenterAway)
		}
		return nil
	})
	w.at(time.Second, func() {
		w.report(api.WatchReport{Full: true, VMs: []api.VM{vm("a")}, After: api.EventCursor{Key: 42, Time: begin}})
	})
	var tries int
	w.at(time.Hour, func() {
		s := w.status()
		require.Contains(t, s.Error, "connection refused")
		require.False(t, s.Watching)
		require.Less(t, s.Since.Sub(begin), 2*time.Minute)
		require.Len(t, s.VMs, 1, "what is known stays")
		tries = len(w.starts)
	})
	w.at(back+2*time.Minute, func() {
		require.Less(t, tries, 70)
		require.Greater(t, tries, 50)
		require.Equal(t, int32(42), w.after[len(w.after)-1].Key)
		w.report(api.WatchReport{Full: true, VMs: []api.VM{vm("a"), vm("b")}})
	})
	w.at(back+3*time.Minute, func() {
		s := w.status()
		require.Empty(t, s.Error)
		require.True(t, s.Watching)
		require.Len(t, s.VMs, 2)
	})
	w.at(back+4*time.Minute, w.CancelWorkflow)
	w.run()
}

// TestTagsOfVMs: a machine is told of them; while they cannot be read, those known stay, and
// the reason is shown.
func TestTagsOfVMs(t *testing.T) {
	gold, silver := []api.VMTag{{Category: "tier", Name: "gold"}}, []api.VMTag{{Category: "tier", Name: "silver"}}
	with := func(n string, tags []api.VMTag) api.VM {
		v := vm(n)
		v.Tags = tags
		return v
	}
	w := newWatched(t, func(int) error { return nil })
	const why = "read the tags: 503"
	w.at(time.Minute, func() {
		w.report(api.WatchReport{Full: true, VMs: []api.VM{with("a", gold), vm("b"), with("c", gold)}})
	})
	w.at(2*time.Minute, func() { w.report(api.WatchReport{VMs: []api.VM{with("a", silver), with("c", silver)}}) })
	w.at(3*time.Minute, func() {
		require.Len(t, w.told, 1, "the protected one")
		require.Equal(t, silver, w.told[0].(api.VM).Tags)
		w.report(api.WatchReport{Full: true, VMs: []api.VM{vm("a"), vm("b"), vm("c")}, TagsError: why})
	})
	w.at(4*time.Minute, func() {
		s := w.status()
		require.Equal(t, why, s.TagsError)
		require.True(t, s.Watching)
		require.Empty(t, s.Error, "it is watched nevertheless")
		require.Equal(t, silver, s.VMs[0].Tags)
		require.Len(t, w.told, 1)
		w.vms, w.tagsError = []api.VM{vm("a"), vm("b"), vm("c")}, why
		w.UpdateWorkflow(api.DiscoveryRefresh, "", &refreshed{t, func(s api.DiscoveryStatus) {
			require.Equal(t, why, s.TagsError)
			require.Equal(t, silver, s.VMs[0].Tags, "after a pass, too")
		}})
	})
	w.at(5*time.Minute, func() { w.report(api.WatchReport{Full: true, VMs: []api.VM{vm("a"), vm("b"), with("c", silver)}}) })
	w.at(6*time.Minute, func() {
		s := w.status()
		require.Empty(t, s.TagsError)
		require.Empty(t, s.VMs[0].Tags)
		require.Len(t, w.told, 2, "it has none any more")
		require.Empty(t, w.told[1].(api.VM).Tags)
		w.CancelWorkflow()
	})
	w.run()
}

// TestRunOfBeforeTagsTellsNothingOfThem: its history would be another one.
func TestRunOfBeforeTagsTellsNothingOfThem(t *testing.T) {
	w := newWatched(t, func(int) error { return nil })
	w.OnGetVersion(changeTags, workflow.DefaultVersion, workflow.Version(1)).Return(workflow.DefaultVersion)
	w.OnGetVersion(changeWatch, workflow.DefaultVersion, workflow.Version(1)).Return(workflow.Version(1))
	tagged := vm("a")
	tagged.Tags = []api.VMTag{{Category: "tier", Name: "gold"}}
	w.at(time.Minute, func() { w.report(api.WatchReport{Full: true, VMs: []api.VM{vm("a")}}) })
	w.at(2*time.Minute, func() { w.report(api.WatchReport{VMs: []api.VM{tagged}}) })
	w.at(3*time.Minute, func() {
		require.Empty(t, w.told)
		require.Equal(t, tagged.Tags, w.status().VMs[0].Tags, "but shows them")
		w.CancelWorkflow()
	})
	w.run()
}
