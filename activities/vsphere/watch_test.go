package vsphere

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/tests/vsim"
	"drover/workflows/api"
)

const seenIn = time.Minute // it takes one or two, but for the race detector on a busy machine

// watching runs a watch and gives what it tells.
type watching struct {
	*world
	t       *testing.T
	reports chan api.WatchReport
	ended   chan error
	stop    context.CancelFunc
}

func (w *world) watch(t *testing.T, after api.EventCursor) *watching {
	t.Helper()
	x := &watching{world: w, t: t, reports: make(chan api.WatchReport, 1000), ended: make(chan error, 1)}
	w.config.Tell = func(_ context.Context, vcenter string, r api.WatchReport) error {
		require.Equal(t, "vc-1", vcenter)
		x.reports <- r
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	x.stop = stop
	go func() {
		x.ended <- w.Watch(ctx, api.WatchInput{VCenter: w.vcenter, For: api.Duration(time.Minute), After: after})
	}()
	t.Cleanup(func() { stop(); <-x.ended })
	return x
}

// see waits for a report of which it is true.
func (x *watching) see(what string, is func(api.WatchReport) bool) api.WatchReport {
	x.t.Helper()
	limit := time.After(seenIn)
	for {
		select {
		case r := <-x.reports:
			if is(r) {
				return r
			}
		case err := <-x.ended:
			x.ended <- err
			x.t.Fatalf("%s: the watch ended: %v", what, err)
		case <-limit:
			x.t.Fatalf("%s was not seen", what)
		}
	}
}

func full(r api.WatchReport) bool { return r.Full }

// vmThat finds a VM in a report.
func vmThat(is func(api.VM) bool) func(api.WatchReport) bool {
	return func(r api.WatchReport) bool {
		for _, vm := range r.VMs {
			if is(vm) {
				return true
			}
		}
		return false
	}
}

func (x *watching) do(task *object.Task, err error) {
	x.t.Helper()
	require.NoError(x.t, err)
	require.NoError(x.t, task.Wait(x.t.Context()))
}

// TestWatchSeesChanges: all that can become of a VM is told in seconds.
func TestWatchSeesChanges(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	before, err := w.Inventory(ctx, w.vcenter)
	require.NoError(t, err)
	x := w.watch(t, api.EventCursor{})
	first := x.see("all", full)
	require.Equal(t, before.VMs, first.VMs, "a watch and a pass see the same")
	require.Equal(t, before.UUID, first.UUID)
	require.NotEmpty(t, first.VMs[0].Host)

	db, err := w.sim.VM(ctx, "db-1")
	require.NoError(t, err)
	devices, err := db.Device(ctx)
	require.NoError(t, err)
	disk := devices.SelectByType((*types.VirtualDisk)(nil))[1].(*types.VirtualDisk)
	disk.CapacityInBytes, disk.CapacityInKB = 4<<20, 4<<10
	require.NoError(t, db.EditDevice(ctx, disk))
	x.see("a disk that grew", vmThat(func(vm api.VM) bool {
		return vm.Name == "db-1" && len(vm.Disks) == 2 && vm.Disks[1].Size == 4<<20
	}))
	require.NoError(t, db.RemoveDevice(ctx, true, disk))
	x.see("a disk that went", vmThat(func(vm api.VM) bool { return vm.Name == "db-1" && len(vm.Disks) == 1 }))
	x.do(db.Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		attachment(disk, slot{disk.ControllerKey, *disk.UnitNumber}, -1),
	}}))
	x.see("a disk that came", vmThat(func(vm api.VM) bool { return vm.Name == "db-1" && len(vm.Disks) == 2 }))

	nic := devices.SelectByType((*types.VirtualEthernetCard)(nil))[0].(types.BaseVirtualEthernetCard)
	nic.GetVirtualEthernetCard().Backing = &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "VM Network"}}
	nic.GetVirtualEthernetCard().MacAddress = "00:50:56:00:00:99"
	require.NoError(t, db.EditDevice(ctx, nic.(types.BaseVirtualDevice)))
	x.see("another network card", vmThat(func(vm api.VM) bool {
		return vm.Name == "db-1" && len(vm.NICs) == 1 && vm.NICs[0].MAC == "00:50:56:00:00:99"
	}))

	root, err := find.NewFinder(w.sim.Client().Client).Folder(ctx, "/DC0/vm")
	require.NoError(t, err)
	folder, err := root.CreateFolder(ctx, "moved")
	require.NoError(t, err)
	x.do(folder.MoveInto(ctx, []types.ManagedObjectReference{db.Reference()}))
	x.see("a VM in another folder", vmThat(func(vm api.VM) bool { return vm.Name == "db-1" && vm.Folder == "moved" }))

	x.do(db.Rename(ctx, "renamed"))
	renamed := x.see("a new name", vmThat(func(vm api.VM) bool { return vm.Name == "renamed" }))
	require.Equal(t, first.VMs[1].Machine, renamed.VMs[0].Machine, "it is the same machine")

	made := x.make("new-1")
	x.see("a new VM", vmThat(func(vm api.VM) bool { return vm.Name == "new-1" }))
	var props mo.VirtualMachine
	require.NoError(t, made.Properties(ctx, made.Reference(), []string{"config.instanceUuid"}, &props))
	x.do(made.Destroy(ctx))
	gone := x.see("a VM that was deleted", func(r api.WatchReport) bool { return len(r.Gone) > 0 })
	require.Equal(t, []string{props.Config.InstanceUuid}, gone.Gone)
}

// make creates a VM without disks.
func (x *watching) make(name string) *object.VirtualMachine {
	x.t.Helper()
	ctx := x.t.Context()
	finder := find.NewFinder(x.sim.Client().Client)
	folder, err := finder.Folder(ctx, "/DC0/vm")
	require.NoError(x.t, err)
	pool, err := finder.DefaultResourcePool(ctx)
	require.NoError(x.t, err)
	task, err := folder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name: name, GuestId: "otherGuest", Files: &types.VirtualMachineFileInfo{VmPathName: "[local-1]"},
	}, pool, nil)
	require.NoError(x.t, err)
	info, err := task.WaitForResult(ctx)
	require.NoError(x.t, err)
	return object.NewVirtualMachine(x.sim.Client().Client, info.Result.(types.ManagedObjectReference))
}

// TestWatchSeesForce: stops that were not clean are told apart from clean ones, also those
// that happened while nobody watched.
func TestWatchSeesForce(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	db, err := w.sim.VM(ctx, "db-1")
	require.NoError(t, err)
	x := w.watch(t, api.EventCursor{})
	var machine api.VM
	for _, vm := range x.see("all", full).VMs {
		if vm.Name == "db-1" {
			machine = vm
		}
	}
	happens := func(kind api.VMEventKind) api.WatchReport {
		t.Helper()
		return x.see(string(kind), func(r api.WatchReport) bool {
			for _, e := range r.Events {
				require.Equal(t, machine.Machine, e.Machine)
				require.NotEmpty(t, e.Text)
				require.Equal(t, kind, e.Kind, "nothing else is told")
			}
			return len(r.Events) > 0
		})
	}
	require.NoError(t, db.ShutdownGuest(ctx))
	x.see("clean shutdown", vmThat(func(vm api.VM) bool { return !vm.PoweredOn }))
	x.do(db.PowerOn(ctx))
	x.see("power on", vmThat(func(vm api.VM) bool { return vm.PoweredOn }))
	x.do(db.PowerOff(ctx))
	happens(api.VMPoweredOff)
	x.do(db.PowerOn(ctx))
	x.do(db.Reset(ctx))
	happens(api.VMReset)
	about := vsim.About("db-1", db.Reference())
	require.NoError(t, w.sim.Post(ctx, &types.VmGuestOSCrashedEvent{VmEvent: types.VmEvent{Event: about}}))
	happens(api.VMCrashed)
	require.NoError(t, w.sim.Post(ctx, &types.EventEx{Event: about, EventTypeId: "com.vmware.vc.ha.VmRestartedByHAEvent",
		ObjectType: "VirtualMachine", ObjectId: db.Reference().Value}))
	last := happens(api.VMHARestarted)
	x.stop()

	x.do(db.Reset(ctx))
	x = w.watch(t, last.After)
	x.see("all", func(r api.WatchReport) bool {
		require.True(t, r.Full)
		require.Len(t, r.Events, 1, "what is known is not told again, what happened meanwhile is")
		require.Equal(t, api.VMReset, r.Events[0].Kind)
		return true
	})
}

// TestWatchEnds: with the session, the line, the time, or who is told; the next one begins
// with all there is.
func TestWatchEnds(t *testing.T) {
	w := newWorld(t)
	p := w.through(t)
	x := w.watch(t, api.EventCursor{})
	x.see("all", full)
	_, err := w.sim.EndSessions(t.Context())
	require.NoError(t, err)
	x.see("all again, in a new session", full)
	p.Down(true)
	err = <-x.ended
	x.ended <- err
	requireRetried(t, err, api.CodeVCenterAway)
	p.Down(false)

	w.config.Tell = func(context.Context, string, api.WatchReport) error { return errors.New("Temporal is away") }
	err = w.Watch(t.Context(), api.WatchInput{VCenter: w.vcenter, For: api.Duration(time.Minute)})
	require.ErrorContains(t, err, "Temporal is away")
	w.config.Tell = func(context.Context, string, api.WatchReport) error { return nil }
	require.NoError(t, w.Watch(t.Context(), api.WatchInput{VCenter: w.vcenter, For: api.Duration(time.Millisecond)}))
	requireCode(t, w.Watch(t.Context(), api.WatchInput{VCenter: w.vcenter, For: api.Duration(2 * watchMost)}), api.CodeInvalid)
}

var many = flag.Int("vms", 110, "VMs of TestWatchOfMany; make test-vsphere takes 300")

// TestWatchOfMany: many VMs come in several answers and are told at once; then each change
// is one VM.
func TestWatchOfMany(t *testing.T) {
	w := newWorld(t)
	x := &watching{world: w, t: t}
	for i := range *many {
		x.make(fmt.Sprintf("many-%03d", i))
	}
	x = w.watch(t, api.EventCursor{})
	require.Len(t, x.see("all", full).VMs, 3+*many)
	for _, name := range []string{"many-007", fmt.Sprintf("many-%03d", *many-1)} {
		vm, err := w.sim.VM(t.Context(), name)
		require.NoError(t, err)
		x.do(vm.PowerOn(t.Context()))
		r := x.see(name, vmThat(func(vm api.VM) bool { return vm.Name == name && vm.PoweredOn }))
		require.Len(t, r.VMs, 1)
	}
}
