package vsim

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// collector tells of VMs that are gone also where the simulator forgets it: a VM that was
// made lets it begin a filter anew with the next change, and one that was deleted until
// then is not missed.
type collector struct {
	*simulator.PropertyCollector
	told map[types.ManagedObjectReference]map[types.ManagedObjectReference]bool // filter -> VMs
}

// standInCollector is for a session's own collector, which is in no other registry.
func standInCollector(ctx *simulator.Context, ref types.ManagedObjectReference) {
	if pc, ok := ctx.Session.Registry.Get(ref).(*simulator.PropertyCollector); ok {
		ctx.Session.Registry.Put(&collector{pc, map[types.ManagedObjectReference]map[types.ManagedObjectReference]bool{}})
	}
}

// WaitForUpdatesEx adds to an answer what it leaves out.
func (c *collector) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) soap.HasFault {
	loosen(ctx, c.PropertyCollector)
	answer := c.PropertyCollector.WaitForUpdatesEx(ctx, req)
	body, ok := answer.(*methods.WaitForUpdatesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return answer
	}
	for i := range body.Res.Returnval.FilterSet {
		f := &body.Res.Returnval.FilterSet[i]
		told := c.told[f.Filter]
		if told == nil {
			told = map[types.ManagedObjectReference]bool{}
			c.told[f.Filter] = told
		}
		for _, u := range f.ObjectSet {
			if u.Kind == types.ObjectUpdateKindLeave {
				delete(told, u.Obj)
			} else if u.Obj.Type == "VirtualMachine" {
				told[u.Obj] = true
			}
		}
		for vm := range told {
			if ctx.Map.Get(vm) == nil {
				f.ObjectSet = append(f.ObjectSet, types.ObjectUpdate{Obj: vm, Kind: types.ObjectUpdateKindLeave})
				delete(told, vm)
			}
		}
	}
	return answer
}
