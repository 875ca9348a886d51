package vsphere

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/types"

	"drover/tests/vsim"
	"drover/workflows/api"
)

// TestSeveralVCenters: VMs with the same uuids in two of them are different machines. Each
// has a session and a watch of its own; one that is away delays nothing of the other.
func TestSeveralVCenters(t *testing.T) {
	spec := []vsim.VMSpec{{Name: "db-1", CPUs: 1, MemoryMB: 1024, Disks: sizes(1)}}
	w, second := newWorldIn(t, vsim.Spec{VMs: spec}), newWorldIn(t, vsim.Spec{Name: "2", VMs: spec})
	lines := map[string]*vsim.Proxy{"vc-1": w.through(t), "vc-2": second.through(t)}
	second.vcenter.Name = "vc-2"
	where := map[string]api.VCenter{"vc-1": w.vcenter, "vc-2": second.vcenter}
	sims := map[string]*vsim.Sim{"vc-1": w.sim, "vc-2": second.sim}
	reports := map[string]chan api.WatchReport{"vc-1": make(chan api.WatchReport, 100), "vc-2": make(chan api.WatchReport, 100)}
	w.config.Lookup = func(_ context.Context, name string) (api.VCenter, error) { return where[name], nil }
	w.config.Tell = func(_ context.Context, name string, r api.WatchReport) error { reports[name] <- r; return nil }

	ctx, stop := context.WithCancel(t.Context())
	ended := map[string]chan error{"vc-1": make(chan error, 1), "vc-2": make(chan error, 1)}
	for name, v := range where {
		go func() { ended[name] <- w.Watch(ctx, api.WatchInput{VCenter: v, For: api.Duration(time.Minute)}) }()
	}
	see := func(name string, is func(api.VM) bool) api.VM {
		t.Helper()
		for limit := time.After(seenIn); ; {
			select {
			case r := <-reports[name]:
				for _, vm := range r.VMs {
					require.Equal(t, name, vm.VCenter)
					if is(vm) {
						return vm
					}
				}
			case <-limit:
				t.Fatalf("nothing was seen in %s", name)
			}
		}
	}
	isDB := func(vm api.VM) bool { return vm.Name == "db-1" }
	one, two := see("vc-1", isDB), see("vc-2", isDB)
	require.Equal(t, one.InstanceUUID, two.InstanceUUID)
	require.Equal(t, one.BIOSUUID, two.BIOSUUID)
	require.NotEqual(t, one.VCenterUUID, two.VCenterUUID)
	require.NotEqual(t, one.Machine, two.Machine)
	require.NotEqual(t, one.Disks[0].ID, two.Disks[0].ID)

	// The first is away. The second is watched and acted upon.
	lines["vc-1"].Down(true)
	requireRetried(t, <-ended["vc-1"], api.CodeVCenterAway)
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: api.VMRef{VCenter: "vc-2", InstanceUUID: two.InstanceUUID}, Freeze: true})
	require.NoError(t, err)
	see("vc-2", func(vm api.VM) bool { return vm.Name == "db-1" && !vm.PoweredOn })
	lines["vc-1"].Down(false)
	vm, err := w.VerifyVMReady(t.Context(), api.VMRef{VCenter: "vc-1", InstanceUUID: one.InstanceUUID})
	require.NoError(t, err)
	require.True(t, vm.PoweredOn, "the one of the same uuid was not touched")

	// One loses its session: the other keeps its own.
	n, err := sims["vc-1"].EndSessions(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = w.VerifyVMReady(t.Context(), api.VMRef{VCenter: "vc-1", InstanceUUID: one.InstanceUUID})
	require.NoError(t, err)
	require.Equal(t, 1, lines["vc-2"].Calls("Login"))
	stop()
	require.ErrorIs(t, <-ended["vc-2"], context.Canceled)

	places := len(w.sessions.by)
	require.Equal(t, 2, places)
	for i := range maxVCenters - places {
		_, err := w.sessions.place(fmt.Sprintf("more-%d", i))
		require.NoError(t, err)
	}
	_, err = w.sessions.place("too-many")
	requireCode(t, err, api.CodeInvalid)
}

// TestAttachingThatFails: whatever goes wrong on the way, the next try finds what the one
// before did, and what is undone leaves nothing attached.
func TestAttachingThatFails(t *testing.T) {
	w := newWorld(t)
	p := w.through(t)
	vm, ref := w.vm(t, "db-1")
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	mt, err := w.sim.VM(t.Context(), "mt-1")
	require.NoError(t, err)
	in := api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks}

	w.sim.FailTask("ReconfigVM_Task", &types.GenericVmConfigFault{Reason: "out of memory"})
	requireRetried(t, w.AttachDisks(t.Context(), in), api.CodeVCenter)
	require.Empty(t, disksOf(t, mt), "all or none")
	require.NoError(t, w.DetachDisks(t.Context(), in), "the undo of a step that did nothing")

	for _, step := range []struct {
		do   func(context.Context, api.AttachInput) error
		left int
	}{{w.AttachDisks, 2}, {w.DetachDisks, 0}} {
		p.Trouble("ReconfigVM_Task", vsim.LostReply)
		requireRetried(t, step.do(t.Context(), in), api.CodeVCenterAway)
		require.Eventually(t, func() bool { return len(disksOf(t, mt)) == step.left }, 10*time.Second, 20*time.Millisecond, "vCenter did it")
		tasks := p.Calls("ReconfigVM_Task")
		require.NoError(t, step.do(t.Context(), in))
		require.Equal(t, tasks, p.Calls("ReconfigVM_Task"), "it is done already")
	}

	w.sim.Deny("drover", "VirtualMachine.Config.AddExistingDisk", "mt-1")
	requireCode(t, w.AttachDisks(t.Context(), in), api.CodeVCenterDenied)
	require.Empty(t, disksOf(t, mt))
	require.Eventually(t, func() bool { return w.PowerOnVM(t.Context(), ref) == nil }, 10*time.Second, 50*time.Millisecond, "the original can run again")
}

// TestOriginalsDatastoreIsNotThere: the master target's host must see it.
func TestOriginalsDatastoreIsNotThere(t *testing.T) {
	w := newWorld(t)
	vm, ref := w.vm(t, "db-1")
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	w.sim.Unmount("mt-1")
	err = w.AttachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks})
	requireCode(t, err, api.CodeInvalid)
	require.ErrorContains(t, err, "is not mounted on the master target's host")
	mt, err := w.sim.VM(t.Context(), "mt-1")
	require.NoError(t, err)
	require.Empty(t, disksOf(t, mt))
}
