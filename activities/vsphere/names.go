package vsphere

import (
	"context"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// names of hosts and folders. They are read once for each pass or watch: one that is
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
	var ask []types.ManagedObjectReference
	for ref := range which {
		vm := vms[ref]
		if vm == nil {
			continue
		}
		for _, r := range []*types.ManagedObjectReference{vm.Parent, vm.Runtime.Host} {
			if r == nil {
				continue
			}
			if _, known := n[*r]; !known {
				n[*r] = ""
				ask = append(ask, *r)
			}
		}
	}
	if len(ask) == 0 {
		return nil
	}
	var got []mo.ManagedEntity
	err := property.DefaultCollector(s.client.Client).Retrieve(ctx, ask, []string{"name"}, &got)
	if err != nil && !fault.Is(err, &types.ManagedObjectNotFound{}) {
		return err
	}
	for _, e := range got {
		n[e.Self] = e.Name
	}
	return nil
}
