package vsphere

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/datapath/ident"
	"drover/workflows/api"
)

const inventoryTimeout = 5 * time.Minute // one request

var inventoryProperties = []string{"name", "parent", "config", "runtime.powerState", "runtime.host"}

// Inventory reads all VMs of a vCenter, ordered by name. Templates, and VMs that
// vCenter itself cannot read now, are left out.
func (a *Activities) Inventory(ctx context.Context, v api.VCenter) (api.InventoryResult, error) {
	var out api.InventoryResult
	err := a.on(ctx, v, func(s *session) error {
		vms, err := s.list(ctx, inventoryProperties)
		if err != nil {
			return err
		}
		vms = slices.DeleteFunc(vms, func(vm mo.VirtualMachine) bool { return vm.Config == nil || vm.Config.Template })
		out = api.InventoryResult{UUID: s.client.ServiceContent.About.InstanceUuid}
		known, err := s.namesOf(ctx, vms)
		if err != nil {
			return err
		}
		refs := make([]types.ManagedObjectReference, len(vms))
		for i, vm := range vms {
			refs[i] = vm.Self
		}
		var tags tagsOf
		tags, out.TagsError = s.tags(ctx, refs, newTagNames())
		for _, vm := range vms {
			described := describe(v.Name, out.UUID, vm, known)
			described.Tags = tags[vm.Self]
			out.VMs = append(out.VMs, described)
		}
		return nil
	})
	api.SortVMs(out.VMs)
	return out, err
}

// describe gives a VM in our words, without its tags.
func describe(vcenter, vcenterUUID string, vm mo.VirtualMachine, known names) api.VM {
	c := vm.Config
	out := api.VM{
		Machine: machineOf(vcenterUUID, c), Host: known.of(vm.Runtime.Host), Folder: known.of(vm.Parent),
		VCenter: vcenter, VCenterUUID: vcenterUUID, InstanceUUID: c.InstanceUuid, BIOSUUID: c.Uuid,
		Name: nameOf(vm), GuestID: c.GuestId, Firmware: c.Firmware,
		CPUs: c.Hardware.NumCPU, MemoryMB: c.Hardware.MemoryMB,
		PoweredOn: vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn,
	}
	if c.Hardware.NumCoresPerSocket != nil {
		out.CoresPerSocket = *c.Hardware.NumCoresPerSocket
	}
	if b := c.BootOptions; b != nil && b.EfiSecureBootEnabled != nil {
		out.SecureBoot = *b.EfiSecureBootEnabled
	}
	keys, devices := extra(c.ExtraConfig), object.VirtualDeviceList(c.Hardware.Device)
	for _, device := range devices {
		switch d := device.(type) {
		case *types.VirtualDisk:
			out.Disks = append(out.Disks, describeDisk(out.Machine, d, devices, keys))
		case types.BaseVirtualEthernetCard:
			out.NICs = append(out.NICs, describeNIC(d, known))
		}
	}
	return out
}

// escaped is how vCenter writes what cannot stand in a path.
var escaped = strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%25", "%")

// nameOf gives the VM's name as people know it.
func nameOf(vm mo.VirtualMachine) string {
	if vm.Name == "" {
		return vm.Config.Name
	}
	return escaped.Replace(vm.Name)
}

func describeDisk(machine ident.MachineID, d *types.VirtualDisk, devices object.VirtualDeviceList, keys map[string]string) api.VMDisk {
	out := api.VMDisk{Label: label(&d.VirtualDevice), Size: d.CapacityInBytes, At: placeOf(d, devices)}
	switch b := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		out.BackingUUID, out.File = b.Uuid, b.FileName
	case *types.VirtualDiskSeSparseBackingInfo:
		out.BackingUUID, out.File = b.Uuid, b.FileName
	case *types.VirtualDiskSparseVer2BackingInfo:
		out.BackingUUID, out.File = b.Uuid, b.FileName
	}
	out.BackingUUID = strings.ToLower(out.BackingUUID)
	out.ID = diskOf(machine, out.BackingUUID, keys)
	return out
}

func describeNIC(d types.BaseVirtualEthernetCard, known names) api.VMNIC {
	card := d.GetVirtualEthernetCard()
	out := api.VMNIC{Label: label(&card.VirtualDevice), MAC: card.MacAddress, Type: cardType(d)}
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		out.Network = b.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		if out.Network = known.of(portgroup(b)); out.Network == "" {
			out.Network = b.Port.PortgroupKey
		}
	}
	return out
}

func label(d *types.VirtualDevice) string {
	if d.DeviceInfo == nil {
		return ""
	}
	return d.DeviceInfo.GetDescription().Label
}

// VerifyVMReady checks that the VM is powered on, and gives it as it is now.
func (a *Activities) VerifyVMReady(ctx context.Context, ref api.VMRef) (api.VM, error) {
	var out api.VM
	err := a.onVM(ctx, ref, func(s *session, vm *object.VirtualMachine) error {
		props, err := s.properties(ctx, vm, inventoryProperties...)
		if err != nil {
			return err
		}
		if props.Config == nil {
			return failed(api.CodeVCenter, nil, "vCenter %s cannot read the configuration of VM %s now", s.name, ref.InstanceUUID)
		}
		known, err := s.namesOf(ctx, []mo.VirtualMachine{props})
		if err != nil {
			return err
		}
		out = describe(ref.VCenter, s.client.ServiceContent.About.InstanceUuid, props, known)
		if !out.PoweredOn {
			return failed(api.CodeVCenter, nil, "VM %s is %s, want it powered on", out.Name, props.Runtime.PowerState)
		}
		return nil
	})
	return out, err
}
