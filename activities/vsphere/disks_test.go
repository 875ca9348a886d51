package vsphere

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/tests/vsim"
	"drover/workflows/api"
)

// TestSixtyDisks: as many as four controllers take, which are added as they are needed.
func TestSixtyDisks(t *testing.T) {
	w := newWorldOf(t, vsim.VMSpec{Name: "big-1", CPUs: 1, MemoryMB: 1024, Disks: sizes(60)}, vsim.VMSpec{Name: "small-1", CPUs: 1, MemoryMB: 1024, Disks: sizes(1)})
	attach := func(name string) error {
		vm, ref := w.vm(t, name)
		_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
		require.NoError(t, err)
		return w.AttachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks})
	}
	require.NoError(t, attach("big-1"))
	mt, err := w.sim.VM(t.Context(), "mt-1")
	require.NoError(t, err)
	devices, err := mt.Device(t.Context())
	require.NoError(t, err)
	places := map[slot]bool{}
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		at := slot{d.GetVirtualDevice().ControllerKey, *d.GetVirtualDevice().UnitNumber}
		require.NotEqual(t, int32(controllerUnit), at.unit)
		require.Less(t, at.unit, int32(unitsPerController))
		require.NotNil(t, devices.FindByKey(at.controller))
		places[at] = true
	}
	require.Len(t, places, 60, "each has a place of its own")
	require.Len(t, devices.SelectByType((*types.VirtualSCSIController)(nil)), maxControllers)
	err = attach("small-1")
	requireCode(t, err, api.CodeNoServer)
	require.ErrorContains(t, err, "no free place")
}

// TestSnapshotsAreDeleted before the disks are attached.
func TestSnapshotsAreDeleted(t *testing.T) {
	w := newWorld(t)
	vm, ref := w.vm(t, "db-1")
	admin, err := w.sim.VM(t.Context(), "db-1")
	require.NoError(t, err)
	for _, name := range []string{"one", "two"} {
		task, err := admin.CreateSnapshot(t.Context(), name, "", false, false)
		require.NoError(t, err)
		require.NoError(t, task.Wait(t.Context()))
	}
	_, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	require.NoError(t, w.AttachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks}))
	_, err = admin.FindSnapshot(t.Context(), "one")
	require.Error(t, err)
}

// TestDiskOfAThirdVM: who has it is said, and nothing is attached.
func TestDiskOfAThirdVM(t *testing.T) {
	w := newWorld(t)
	vm, ref := w.vm(t, "db-1")
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	db, err := w.sim.VM(t.Context(), "db-1")
	require.NoError(t, err)
	app, err := w.sim.VM(t.Context(), "app-1")
	require.NoError(t, err)
	devices, err := db.Device(t.Context())
	require.NoError(t, err)
	disk := devices.SelectByType((*types.VirtualDisk)(nil))[0].(*types.VirtualDisk)
	other, err := app.Device(t.Context())
	require.NoError(t, err)
	task, err := app.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		attachment(disk, freeSlots(other)[0], -1)}})
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	err = w.AttachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks})
	requireRetried(t, err, api.CodeVCenter)
	require.ErrorContains(t, err, "VM app-1")
	mt, err := w.sim.VM(t.Context(), "mt-1")
	require.NoError(t, err)
	require.Empty(t, disksOf(t, mt))
}

func disksOf(t *testing.T, vm *object.VirtualMachine) object.VirtualDeviceList {
	devices, err := vm.Device(t.Context())
	require.NoError(t, err)
	return devices.SelectByType((*types.VirtualDisk)(nil))
}

func sizes(n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = 1 << 20
	}
	return out
}
