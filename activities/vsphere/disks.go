package vsphere

import (
	"context"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Limits of a master target's controllers (LSI Logic: units 0 to 15, 7 is the
// controller itself).
const (
	unitsPerController = 16
	controllerUnit     = 7
	maxControllers     = 4
)

// AttachDisks attaches the original VM's disks to the master target's VM. The
// original must be off, and its datastores mounted on the master target's host. Its
// snapshots are deleted: with them, what is written to its disks would be lost.
func (a *Activities) AttachDisks(ctx context.Context, in api.AttachInput) error {
	return a.onVM(ctx, in.Original, func(s *session, original *object.VirtualMachine) error {
		props, err := s.properties(ctx, original, "name", "config", "snapshot", "runtime.powerState", "datastore")
		if err != nil {
			return err
		}
		switch {
		case props.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff:
			return failed(api.CodeSourceRunning, nil, "VM %s is %s: it must be off before its disks are attached elsewhere", props.Name, props.Runtime.PowerState)
		case props.Config == nil:
			return failed(api.CodeVCenter, nil, "vCenter %s cannot read the configuration of VM %s now", s.name, in.Original.InstanceUUID)
		}
		target, err := s.byName(ctx, in.MasterTarget)
		if err != nil {
			return err
		}
		if err := s.sharesDatastores(ctx, target, props); err != nil {
			return err
		}
		if props.Snapshot != nil && len(props.Snapshot.RootSnapshotList) > 0 {
			consolidate := true
			task, err := original.RemoveAllSnapshot(ctx, &consolidate)
			if err := s.finish(ctx, "delete the snapshots of VM "+props.Name, task, err); err != nil {
				return err
			}
			// The disks are other files now.
			if props, err = s.properties(ctx, original, "name", "config"); err != nil {
				return err
			}
		}
		return s.attach(ctx, target, props, in)
	})
}

// sharesDatastores checks that the target's host can reach the VM's datastores.
func (s *session) sharesDatastores(ctx context.Context, target *object.VirtualMachine, vm mo.VirtualMachine) error {
	host, err := target.HostSystem(ctx)
	if err != nil {
		return failed(api.CodeVCenter, err, "find the master target's host in vCenter %s", s.name)
	}
	var props mo.HostSystem
	if err := host.Properties(ctx, host.Reference(), []string{"name", "datastore"}, &props); err != nil {
		return failed(api.CodeVCenter, err, "read the master target's host in vCenter %s", s.name)
	}
	mounted := map[types.ManagedObjectReference]bool{}
	for _, ds := range props.Datastore {
		mounted[ds] = true
	}
	for _, ds := range vm.Datastore {
		if !mounted[ds] {
			return failed(api.CodeInvalid, nil, "datastore %s of VM %s is not mounted on the master target's host %s", ds.Value, vm.Name, props.Name)
		}
	}
	return nil
}

// attach adds the disks that are not there yet, in one reconfiguration.
func (s *session) attach(ctx context.Context, target *object.VirtualMachine, vm mo.VirtualMachine, in api.AttachInput) error {
	devices, err := target.Device(ctx)
	if err != nil {
		return failed(api.CodeVCenter, err, "read the devices of master target %s", in.MasterTarget)
	}
	have := disksByUUID(devices)
	originals := disksByUUID(object.VirtualDeviceList(vm.Config.Hardware.Device))
	slots := freeSlots(devices)
	var changes []types.BaseVirtualDeviceConfigSpec
	var wanted []string
	for _, d := range in.Disks {
		if have[d.BackingUUID] == nil {
			wanted = append(wanted, d.BackingUUID)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if err := s.heldByOthers(ctx, wanted, vm.Self, target.Reference()); err != nil {
		return err
	}
	more, room := moreControllers(devices, len(wanted)-len(slots))
	changes, slots = append(changes, more...), append(slots, room...)
	for i, d := range in.Disks {
		if have[d.BackingUUID] != nil {
			continue
		}
		original := originals[d.BackingUUID]
		if original == nil {
			return failed(api.CodeDiskChanged, nil, "VM %s has no disk with backing uuid %s (%s) any more", vm.Name, d.BackingUUID, d.Label)
		}
		if len(slots) == 0 {
			return failed(api.CodeNoServer, nil, "master target %s has no free place for a disk on its %d controllers: use another master target for some of the machines", in.MasterTarget, maxControllers)
		}
		changes = append(changes, attachment(original, slots[0], int32(-100-i)))
		slots = slots[1:]
	}
	task, err := target.Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: changes})
	return s.finish(ctx, "attach disks of VM "+vm.Name+" to "+in.MasterTarget, task, err)
}

// slot is a free place on a SCSI controller.
type slot struct{ controller, unit int32 }

func freeSlots(devices object.VirtualDeviceList) []slot {
	taken := map[slot]bool{}
	for _, d := range devices {
		if v := d.GetVirtualDevice(); v.UnitNumber != nil {
			taken[slot{v.ControllerKey, *v.UnitNumber}] = true
		}
	}
	var free []slot
	for _, c := range devices.SelectByType((*types.VirtualSCSIController)(nil)) {
		for unit := range int32(unitsPerController) {
			s := slot{c.GetVirtualDevice().Key, unit}
			if unit != controllerUnit && !taken[s] {
				free = append(free, s)
			}
		}
	}
	return free
}

// moreControllers gives what adds controllers for so many disks, and the places on them.
func moreControllers(devices object.VirtualDeviceList, disks int) (add []types.BaseVirtualDeviceConfigSpec, room []slot) {
	taken := map[int32]bool{}
	for _, c := range devices.SelectByType((*types.VirtualSCSIController)(nil)) {
		taken[c.(types.BaseVirtualSCSIController).GetVirtualSCSIController().BusNumber] = true
	}
	for bus := int32(0); bus < maxControllers && len(room) < disks; bus++ {
		if taken[bus] {
			continue
		}
		key := -1 - bus
		add = append(add, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd,
			Device: &types.VirtualLsiLogicController{VirtualSCSIController: types.VirtualSCSIController{
				SharedBus:         types.VirtualSCSISharingNoSharing,
				VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}, BusNumber: bus},
			}},
		})
		for unit := range int32(unitsPerController) {
			if unit != controllerUnit {
				room = append(room, slot{key, unit})
			}
		}
	}
	return add, room
}

// heldByOthers refuses disks that another VM has than the two that may.
func (s *session) heldByOthers(ctx context.Context, uuids []string, may ...types.ManagedObjectReference) error {
	holder, err := s.holder(ctx, func(b *types.VirtualDiskFlatVer2BackingInfo) bool {
		return slices.Contains(uuids, strings.ToLower(b.Uuid))
	}, may...)
	if err != nil || holder == "" {
		return err
	}
	return failed(api.CodeVCenter, nil, "a disk is attached to VM %s in vCenter %s, too: detach it there", holder, s.name)
}

// holder names a VM, other than those, that has a disk of which is is true; "": none.
func (s *session) holder(ctx context.Context, is func(*types.VirtualDiskFlatVer2BackingInfo) bool, but ...types.ManagedObjectReference) (string, error) {
	vms, err := s.list(ctx, []string{"name", "config.hardware.device"})
	if err != nil {
		return "", err
	}
	for _, vm := range vms {
		if vm.Config == nil || slices.Contains(but, vm.Self) {
			continue
		}
		for _, d := range object.VirtualDeviceList(vm.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
			b, ok := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			if ok && is(b) {
				return vm.Name, nil
			}
		}
	}
	return "", nil
}

// attachment adds an existing disk file; it is not part of the master target's
// snapshots.
func attachment(original *types.VirtualDisk, at slot, key int32) types.BaseVirtualDeviceConfigSpec {
	backing := *original.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	backing.DiskMode = string(types.VirtualDiskModeIndependent_persistent)
	unit := at.unit
	return &types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd,
		Device: &types.VirtualDisk{
			VirtualDevice:   types.VirtualDevice{Key: key, ControllerKey: at.controller, UnitNumber: &unit, Backing: &backing},
			CapacityInBytes: original.CapacityInBytes, CapacityInKB: original.CapacityInKB,
		},
	}
}

// DetachDisks takes the disks off the master target's VM and keeps their files.
func (a *Activities) DetachDisks(ctx context.Context, in api.AttachInput) error {
	return a.onVM(ctx, in.Original, func(s *session, _ *object.VirtualMachine) error {
		target, err := s.byName(ctx, in.MasterTarget)
		if err != nil {
			return err
		}
		devices, err := target.Device(ctx)
		if err != nil {
			return failed(api.CodeVCenter, err, "read the devices of master target %s", in.MasterTarget)
		}
		have := disksByUUID(devices)
		var changes []types.BaseVirtualDeviceConfigSpec
		for _, d := range in.Disks {
			if disk := have[d.BackingUUID]; disk != nil {
				changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk})
			}
		}
		if len(changes) == 0 {
			return nil
		}
		task, err := target.Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: changes})
		return s.finish(ctx, "detach disks from "+in.MasterTarget, task, err)
	})
}

// disksByUUID gives the disks with flat files by the uuid of their backing.
func disksByUUID(devices object.VirtualDeviceList) map[string]*types.VirtualDisk {
	out := map[string]*types.VirtualDisk{}
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		if b, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && b.Uuid != "" {
			out[strings.ToLower(b.Uuid)] = disk
		}
	}
	return out
}
