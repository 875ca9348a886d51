package vsphere

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// Keys that a VM which was made anew carries in its extra configuration. Guests neither
// see nor change them. The first names the VM's own instance uuid, too: a copy of the VM
// is not the machine.
const (
	keyMachine = "drover.machine" // machine id and instance uuid
	keyRun     = "drover.run"     // that made it
	keyDisk    = "drover.disk."   // and a backing's uuid: the disk's id
)

// Kinds of controllers, as api.Place has them.
const (
	pvscsi      = "pvscsi"
	lsilogic    = "lsilogic"
	lsilogicSAS = "lsilogic-sas"
	buslogic    = "buslogic"
	sata        = "sata"
	nvme        = "nvme"
	ide         = "ide"
)

// extra gives the keys of ours in a VM's extra configuration.
func extra(all []types.BaseOptionValue) map[string]string {
	out := map[string]string{}
	for _, o := range all {
		v := o.GetOptionValue()
		if text, ok := v.Value.(string); ok && strings.HasPrefix(v.Key, "drover.") {
			out[v.Key] = text
		}
	}
	return out
}

// ours leaves nothing but the keys of ours.
func ours(all []types.BaseOptionValue) (out []types.BaseOptionValue) {
	for _, o := range all {
		if strings.HasPrefix(o.GetOptionValue().Key, "drover.") {
			out = append(out, o)
		}
	}
	return out
}

// machineOf is the machine whose VM it is: for one that was made anew the one that it was
// made for.
func machineOf(vcenterUUID string, c *types.VirtualMachineConfigInfo) ident.MachineID {
	id, instance, _ := strings.Cut(extra(c.ExtraConfig)[keyMachine], " ")
	if m, err := ident.ParseMachineID(id); err == nil && strings.EqualFold(instance, c.InstanceUuid) {
		return m
	}
	return ident.NewMachineID(vcenterUUID, c.InstanceUuid)
}

// diskOf is the id of a machine's disk.
func diskOf(machine ident.MachineID, backing string, keys map[string]string) ident.DiskID {
	if id, err := ident.ParseDiskID(keys[keyDisk+backing]); err == nil {
		return id
	}
	return ident.NewDiskID(machine, backing)
}

// placeOf says where a disk is attached; nothing when its controller is none that we know.
func placeOf(d *types.VirtualDisk, devices object.VirtualDeviceList) api.Place {
	c := devices.FindByKey(d.ControllerKey)
	kind := controllerKind(c)
	if kind == "" || d.UnitNumber == nil {
		return api.Place{}
	}
	return api.Place{Controller: kind, Bus: c.(types.BaseVirtualController).GetVirtualController().BusNumber, Unit: *d.UnitNumber}
}

func controllerKind(c types.BaseVirtualDevice) string {
	switch c.(type) {
	case *types.ParaVirtualSCSIController:
		return pvscsi
	case *types.VirtualLsiLogicController:
		return lsilogic
	case *types.VirtualLsiLogicSASController:
		return lsilogicSAS
	case *types.VirtualBusLogicController:
		return buslogic
	case *types.VirtualAHCIController:
		return sata
	case *types.VirtualNVMEController:
		return nvme
	case *types.VirtualIDEController:
		return ide
	}
	return ""
}

// cardType is govmomi's word for a network card, and vCenter's in the names of its files.
func cardType(d types.BaseVirtualEthernetCard) string {
	switch d.(type) {
	case *types.VirtualVmxnet3:
		return "vmxnet3"
	case *types.VirtualVmxnet2:
		return "vmxnet2"
	case *types.VirtualE1000e:
		return "e1000e"
	case *types.VirtualE1000:
		return "e1000"
	case *types.VirtualPCNet32:
		return "pcnet32"
	}
	return ""
}

// placesOf gives each disk its place: the one it had, as the disk says or the VM, or, where
// that is not known of all, one after the other on LSI Logic controllers.
func placesOf(in api.MakeVMInput) []api.Place {
	out := make([]api.Place, len(in.Disks))
	known := true
	for i, d := range in.Disks {
		if out[i] = d.At; d.At.Controller == "" {
			if j := slices.IndexFunc(in.VM.Disks, func(v api.VMDisk) bool { return v.ID == d.ID }); j >= 0 {
				out[i] = in.VM.Disks[j].At
			}
		}
		known = known && out[i].Controller != ""
	}
	if known {
		return out
	}
	at := slot{}
	for i := range out {
		if at.unit == controllerUnit {
			at.unit++
		}
		out[i] = api.Place{Controller: lsilogic, Bus: at.controller, Unit: at.unit}
		if at.unit++; at.unit == unitsPerController {
			at = slot{controller: at.controller + 1}
		}
	}
	return out
}

// Keys of devices that are not made yet, apart from each other.
const (
	newControllers = -1000
	newDisks       = -2000
	newCards       = -3000
	firstIDE       = 200 // that of bus 0; every VM has it
)

// hardware gives what adds the disks with their controllers, and the network cards.
func hardware(in api.MakeVMInput, datastore string, networks []types.BaseVirtualDeviceBackingInfo) ([]types.BaseVirtualDeviceConfigSpec, error) {
	var devices []types.BaseVirtualDevice
	controllers := map[api.Place]int32{} // without the unit
	for i, at := range placesOf(in) {
		unit := at.Unit
		at.Unit = 0
		key, there := controllers[at]
		if !there {
			c, k := controller(at, int32(newControllers-len(controllers)))
			if controllers[at] = k; c != nil {
				devices = append(devices, c)
			}
			key = k
		}
		devices = append(devices, newDisk(in.Disks[i], datastore, key, unit, int32(newDisks-i)))
	}
	for i, backing := range networks {
		kind := in.VM.NICs[i].Type
		if kind == "" {
			kind = "vmxnet3"
		}
		card, err := object.VirtualDeviceList{}.CreateEthernetCard(kind, backing)
		if err != nil {
			return nil, failed(api.CodeInvalid, err, "network card %s of VM %s", in.VM.NICs[i].Label, in.VM.Name)
		}
		card.GetVirtualDevice().Key = int32(newCards - i)
		devices = append(devices, card)
	}
	specs := make([]types.BaseVirtualDeviceConfigSpec, len(devices))
	for i, d := range devices {
		spec := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
		if _, disk := d.(*types.VirtualDisk); disk {
			spec.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
		}
		specs[i] = spec
	}
	return specs, nil
}

// controller gives the one of a place and its key; nil for one that every VM has.
func controller(at api.Place, key int32) (types.BaseVirtualDevice, int32) {
	base := types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}, BusNumber: at.Bus}
	scsi := types.VirtualSCSIController{VirtualController: base, SharedBus: types.VirtualSCSISharingNoSharing, ScsiCtlrUnitNumber: controllerUnit}
	switch at.Controller {
	case pvscsi:
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, key
	case lsilogicSAS:
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, key
	case buslogic:
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}, key
	case sata:
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: base}}, key
	case nvme:
		return &types.VirtualNVMEController{VirtualController: base}, key
	case ide:
		return nil, firstIDE + at.Bus
	}
	return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, key
}

// newDisk is an empty thin disk; vCenter names its file.
func newDisk(d api.VMDisk, datastore string, controller, unit, key int32) *types.VirtualDisk {
	kib := (d.Size + 1023) / 1024
	return &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: key, ControllerKey: controller, UnitNumber: &unit, DeviceInfo: &types.Description{Label: d.Label},
			Backing: &types.VirtualDiskFlatVer2BackingInfo{
				DiskMode: string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(true),
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[" + datastore + "]"},
			},
		},
		CapacityInKB: kib, CapacityInBytes: kib * 1024,
	}
}
