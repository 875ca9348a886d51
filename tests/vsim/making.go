package vsim

import (
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// making keeps a VM that is being created locked until its task is over. The simulator
// puts a VM into the inventory first and fills it in afterwards without its lock: who
// watched would see half a VM, and race with it.
type making struct {
	mu      sync.Mutex
	folders map[types.ManagedObjectReference]*simulator.Context // creations, one per folder at a time
	unlock  map[*simulator.Context]func()
}

func newMaking() *making {
	return &making{folders: map[types.ManagedObjectReference]*simulator.Context{}, unlock: map[*simulator.Context]func(){}}
}

// Reference is its own: it stands for no object.
func (*making) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Drover", Value: "making"}
}

// begin is called with the folder locked, before the task.
func (m *making) begin(ctx *simulator.Context, folder types.ManagedObjectReference) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.folders[folder] = ctx
}

// PutObject holds on to the VM's lock, which the creation has while it puts the VM into
// its folder.
func (m *making) PutObject(ctx *simulator.Context, o mo.Reference) {
	vm, ok := o.(*simulator.VirtualMachine)
	if !ok || vm.Parent == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if by := m.folders[*vm.Parent]; by != nil && m.unlock[by] == nil {
		m.unlock[by] = ctx.Map.AcquireLock(by, vm)
	}
}

// UpdateObject lets go when the creation's task is over.
func (m *making) UpdateObject(ctx *simulator.Context, o mo.Reference, _ []types.PropertyChange) {
	task, ok := o.(*mo.Task)
	if !ok || task.Info.State != types.TaskInfoStateSuccess && task.Info.State != types.TaskInfoStateError {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if unlock := m.unlock[ctx]; unlock != nil {
		unlock()
		delete(m.unlock, ctx)
	}
	for folder, by := range m.folders {
		if by == ctx {
			delete(m.folders, folder)
		}
	}
}

// RemoveObject has nothing to do.
func (*making) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}
