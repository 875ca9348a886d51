package vsim

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// needed is the privilege that a call takes.
var needed = map[string]string{
	"PowerOnVM_Task": "VirtualMachine.Interact.PowerOn", "PowerOffVM_Task": "VirtualMachine.Interact.PowerOff",
	"ShutdownGuest": "VirtualMachine.Interact.PowerOff", "ReconfigVM_Task": "VirtualMachine.Config.AddExistingDisk",
	"RemoveAllSnapshots_Task": "VirtualMachine.State.RemoveSnapshot", "CreateVM_Task": "VirtualMachine.Inventory.Create",
}

// before sees every call. It refuses what the user may not do, and lets VMs answer as
// real ones do.
func (s *Sim) before(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if ctx.Session == nil {
		return nil, nil
	}
	if id, known := needed[m.Name]; known && s.lacks(ctx, id, m.This) {
		return nil, &types.NoPermission{Object: &m.This, PrivilegeId: id}
	}
	switch object := ctx.Map.Get(m.This).(type) {
	case *simulator.VirtualMachine:
		standIn(ctx, &vm{object, s})
	case *simulator.Folder:
		standIn(ctx, &folder{object, s})
	case *simulator.AuthorizationManager:
		standIn(ctx, &rights{object, s})
	}
	switch m.Name {
	case "WaitForUpdatesEx":
		standInCollector(ctx, m.This)
	case "Logout":
		ctx.Session.Registry.Put(&logout{ctx.Map.SessionManager(), s}) // its last call
	}
	for _, e := range ctx.Session.All("VirtualMachine") {
		if ctx.Map.Get(e.Reference()) == nil { // deleted: what stands for it in the session goes, too
			ctx.Session.Remove(ctx, e.Reference())
		}
	}
	return nil, nil
}

// standIn lets the session's calls of an object go to what stands for it. It is put once
// and with the object's lock, because the registry writes to what it is given.
func standIn(ctx *simulator.Context, object mo.Reference) {
	if ctx.Session.Registry.Get(object.Reference()) == nil {
		ctx.WithLock(object, func() { ctx.Session.Registry.Put(object) })
	}
}

// lacks reports whether the session's user was restricted on the object.
func (s *Sim) lacks(ctx *simulator.Context, privilege string, on types.ManagedObjectReference) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	objects, restricted := s.denied[ctx.Session.UserName+" "+privilege]
	if !restricted || len(objects) == 0 {
		return restricted
	}
	e, ok := ctx.Map.Get(on).(mo.Entity)
	return ok && objects[e.Entity().Name]
}

// rights answers by the restrictions; the simulator's own say yes to everything.
type rights struct {
	*simulator.AuthorizationManager
	sim *Sim
}

func (r *rights) HasPrivilegeOnEntities(ctx *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	res := new(types.HasPrivilegeOnEntitiesResponse)
	for _, e := range req.Entity {
		p := types.EntityPrivilege{Entity: e}
		for _, id := range req.PrivId {
			p.PrivAvailability = append(p.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: !r.sim.lacks(ctx, id, e)})
		}
		res.Returnval = append(res.Returnval, p)
	}
	return &methods.HasPrivilegeOnEntitiesBody{Res: res}
}

// vm answers as a real one where the simulator's does not.
type vm struct {
	*simulator.VirtualMachine
	sim *Sim
}

// fails gives a task that ends with the fault, as real hosts tell of it.
func (v *vm) fails(ctx *simulator.Context, name string, fault types.BaseMethodFault) types.ManagedObjectReference {
	task := simulator.CreateTask(v.VirtualMachine, name, func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, fault })
	return task.Run(ctx)
}

// PowerOnVMTask fails while a disk is in use elsewhere, as for a locked file.
func (v *vm) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	fault := v.sim.taskFault("PowerOnVM_Task")
	if file := v.sim.heldElsewhere(v.VirtualMachine); file != "" && fault == nil {
		fault = &types.FileLocked{FileFault: types.FileFault{File: file}}
	}
	if fault != nil {
		return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: v.fails(ctx, "powerOn", fault)}}
	}
	return v.VirtualMachine.PowerOnVMTask(ctx, req)
}

// PowerOffVMTask is not clean.
func (v *vm) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	if fault := v.sim.taskFault("PowerOffVM_Task"); fault != nil {
		return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: v.fails(ctx, "powerOff", fault)}}
	}
	ctx.Update(v.VirtualMachine, []types.PropertyChange{{Name: "runtime.cleanPowerOff", Val: false}})
	return v.VirtualMachine.PowerOffVMTask(ctx, req)
}

// ReconfigVMTask fails when it is told to.
func (v *vm) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	if fault := v.sim.taskFault("ReconfigVM_Task"); fault != nil {
		return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: v.fails(ctx, "reconfigVm", fault)}}
	}
	return v.VirtualMachine.ReconfigVMTask(ctx, req)
}

// DestroyTask fails when it is told to.
func (v *vm) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	if fault := v.sim.taskFault("Destroy_Task"); fault != nil {
		return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: v.fails(ctx, "destroy", fault)}}
	}
	return v.VirtualMachine.DestroyTask(ctx, req)
}

// folder makes VMs as a real one.
type folder struct {
	*simulator.Folder
	sim *Sim
}

// CreateVMTask fails when it is told to, and for a name that is taken.
func (f *folder) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	fault := f.sim.taskFault("CreateVM_Task")
	for _, child := range f.ChildEntity {
		if e, ok := ctx.Map.Get(child).(mo.Entity); ok && e.Entity().Name == req.Config.Name && fault == nil {
			fault = &types.DuplicateName{Name: req.Config.Name, Object: child}
		}
	}
	if fault == nil {
		f.sim.making.begin(ctx, f.Self)
		return f.Folder.CreateVMTask(ctx, req)
	}
	task := simulator.CreateTask(f.Folder, "createVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, fault })
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: task.Run(ctx)}}
}

// ShutdownGuest needs running Tools, is clean, and takes a while.
func (v *vm) ShutdownGuest(ctx *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	v.sim.mu.Lock()
	none, hangs := v.sim.noTools[v.Name], v.sim.hangs[v.Name]
	v.sim.mu.Unlock()
	switch {
	case none:
		return &methods.ShutdownGuestBody{Fault_: simulator.Fault("", &types.ToolsUnavailable{})}
	case hangs:
		return &methods.ShutdownGuestBody{Res: &types.ShutdownGuestResponse{}}
	}
	ctx.Update(v.VirtualMachine, []types.PropertyChange{{Name: "runtime.cleanPowerOff", Val: true}})
	return v.VirtualMachine.ShutdownGuest(ctx, req)
}

// ResetVMTask is one event, and the power stays on.
func (v *vm) ResetVMTask(ctx *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	event := &types.VmResettingEvent{VmEvent: types.VmEvent{Event: About(v.Name, v.Self)}}
	ctx.Map.EventManager().PostEvent(ctx, &types.PostEvent{EventToPost: event})
	task := simulator.CreateTask(v.VirtualMachine, "reset", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, nil })
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: task.Run(ctx)}}
}

func (s *Sim) taskFault(method string) types.BaseMethodFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults[method]
	delete(s.faults, method)
	return f
}

// heldElsewhere gives a file of the VM's disks that another VM runs with.
func (s *Sim) heldElsewhere(vm *simulator.VirtualMachine) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range diskFiles(vm.Config) {
		if holder, held := s.holders[d]; held && holder != vm.Name {
			return d
		}
	}
	return ""
}
