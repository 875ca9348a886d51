package vsphere

import (
	"context"
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
)

// AttachDisks attaches the original VM's disks to the master target's VM. The
// original must be off, without snapshots, and its datastores mounted on the
// master target's host.
func (a *Activities) AttachDisks(ctx context.Context, in api.AttachInput) error {
	return a.onVM(ctx, in.Original, func(s *session, original *object.VirtualMachine) error {
		props, err := s.properties(ctx, original, "name", "config", "snapshot", "runtime.powerState", "datastore")
		if err != nil {
			return err
		}
		switch {
		case props.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff:
			return failed(api.CodeSourceRunning, nil, "VM %s is %s: it must be off before its disks are attached elsewhere", props.Name, props.Runtime.PowerState)
		case props.Snapshot != nil && props.Snapshot.CurrentSnapshot != nil:
			return failed(api.CodeInvalid, nil, "VM %s has snapshots: delete them first, or the blocks written to its disks would be lost", props.Name)
		}
		target, err := s.byName(ctx, in.MasterTarget)
		if err != nil {
			return err
		}
		if err := s.sharesDatastores(ctx, target, props); err != nil {
			return err
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
	for i, d := range in.Disks {
		if have[d.BackingUUID] != nil {
			continue
		}
		original := originals[d.BackingUUID]
		if original == nil {
			return failed(api.CodeDiskChanged, nil, "VM %s has no disk with backing uuid %s (%s) any more", vm.Name, d.BackingUUID, d.Label)
		}
		if len(slots) == 0 {
			return failed(api.CodeNoServer, nil, "master target %s has no free place for a disk: add a controller or another master target", in.MasterTarget)
		}
		changes = append(changes, attachment(original, slots[0], int32(-100-i)))
		slots = slots[1:]
	}
	if len(changes) == 0 {
		return nil
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
