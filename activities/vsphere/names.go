package vsphere

import (
	"context"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// names of hosts, folders and distributed port groups. They are read once for each pass or watch: one that is
// renamed shows with the next.
type names map[types.ManagedObjectReference]string

func (n names) of(ref *types.ManagedObjectReference) string {
	if ref == nil {
		return ""
	}
	return n[*ref]
}

// namesOf reads all that the VMs need.
func (s *session) namesOf(ctx context.Context, vms []mo.VirtualMachine) (names, error) {
	n := names{}
	raw, which := map[types.ManagedObjectReference]*mo.VirtualMachine{}, map[types.ManagedObjectReference]bool{}
	for i := range vms {
		raw[vms[i].Self], which[vms[i].Self] = &vms[i], true
	}
	if err := n.learn(ctx, s, raw, which); err != nil {
		return nil, failed(api.CodeVCenter, err, "read names of hosts and folders in vCenter %s", s.name)
	}
	return n, nil
}

// learn reads the names that the VMs need and that are not known. What the user may not
// see has none.
func (n names) learn(ctx context.Context, s *session, vms map[types.ManagedObjectReference]*mo.VirtualMachine, which map[types.ManagedObjectReference]bool) error {
	var ask, groups []types.ManagedObjectReference
	want := func(list *[]types.ManagedObjectReference, refs ...*types.ManagedObjectReference) {
		for _, r := range refs {
			if r == nil {
				continue
			}
			if _, known := n[*r]; !known {
				n[*r] = ""
				*list = append(*list, *r)
			}
		}
	}
	for ref := range which {
		if vm := vms[ref]; vm != nil {
			want(&ask, vm.Parent, vm.Runtime.Host)
			want(&groups, portgroups(vm)...)
		}
	}
	var entities []mo.ManagedEntity
	if err := n.ask(ctx, s, ask, &entities); err != nil {
		return err
	}
	for _, e := range entities {
		n[e.Self] = e.Name
	}
	// Apart from the others: a card may still name a group that was deleted.
	var networks []mo.Network
	if err := n.ask(ctx, s, groups, &networks); err != nil {
		return err
	}
	for _, g := range networks {
		n[g.Self] = g.Name
	}
	return nil
}

// portgroups are those of the VM's network cards.
func portgroups(vm *mo.VirtualMachine) (out []*types.ManagedObjectReference) {
	if vm.Config == nil {
		return nil
	}
	for _, d := range vm.Config.Hardware.Device {
		if b, ok := d.GetVirtualDevice().Backing.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo); ok {
			out = append(out, portgroup(b))
		}
	}
	return out
}

// portgroup is the group of a card: its key is vCenter's id of it.
func portgroup(b *types.VirtualEthernetCardDistributedVirtualPortBackingInfo) *types.ManagedObjectReference {
	return &types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}
}

// ask reads names into a list. What the user may not see has none.
func (names) ask(ctx context.Context, s *session, refs []types.ManagedObjectReference, into any) error {
	if len(refs) == 0 {
		return nil
	}
	err := property.DefaultCollector(s.client.Client).Retrieve(ctx, refs, []string{"name"}, into)
	if err != nil && !fault.Is(err, &types.ManagedObjectNotFound{}) {
		return err
	}
	return nil
}
