package vsim

import (
	"context"
	"encoding/pem"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Client is an administrator's, for what tests do to the vCenter.
func (s *Sim) Client() *govmomi.Client { return s.client }

// FailTask lets the task of the next call of a method ("PowerOnVM_Task") end with the fault.
func (s *Sim) FailTask(method string, fault types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[method] = fault
}

// NoTools lets a VM have no running Tools.
func (s *Sim) NoTools(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noTools[vm] = true
}

// Hang lets a VM's guest never come to the end of a shutdown.
func (s *Sim) Hang(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs[vm] = true
}

// Tools lets a VM's Tools answer again.
func (s *Sim) Tools(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.noTools, vm)
}

// Unmount takes all datastores from the host that runs a VM.
func (s *Sim) Unmount(name string) {
	all := s.model.Map()
	ctx := &simulator.Context{Context: context.Background(), Map: all}
	for _, e := range all.All("VirtualMachine") {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		var host *types.ManagedObjectReference
		ctx.WithLock(vm, func() {
			if vm.Name == name {
				host = vm.Runtime.Host
			}
		})
		if host != nil {
			h := all.Get(*host).(*simulator.HostSystem)
			ctx.WithLock(h, func() { h.Datastore = nil })
		}
	}
}

// Deny takes a privilege from a user, on the named objects or on all.
func (s *Sim) Deny(user, privilege string, objects ...string) {
	names := map[string]bool{}
	for _, o := range objects {
		names[o] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[user+" "+privilege] = names
}

// Logins says who may log in from now on.
func (s *Sim) Logins(valid func(user, password string) bool) {
	s.model.Map().SessionManager().ValidLogin = func(req *types.Login) bool {
		return req.UserName == s.spec.User && req.Password == s.spec.Password || valid(req.UserName, req.Password)
	}
}

// EndSessions ends all sessions but the administrator's, and says how many there were.
func (s *Sim) EndSessions(ctx context.Context) (int, error) {
	keys, err := s.sessions(ctx)
	if err != nil || len(keys) == 0 {
		return 0, err
	}
	return len(keys), s.client.SessionManager.TerminateSession(ctx, keys)
}

// Sessions says how many there are beside the administrator's.
func (s *Sim) Sessions(ctx context.Context) (int, error) {
	keys, err := s.sessions(ctx)
	return len(keys), err
}

func (s *Sim) sessions(ctx context.Context) ([]string, error) {
	var m mo.SessionManager
	ref := *s.client.ServiceContent.SessionManager
	if err := s.client.RetrieveOne(ctx, ref, []string{"sessionList"}, &m); err != nil {
		return nil, err
	}
	mine, err := s.client.SessionManager.UserSession(ctx)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, other := range m.SessionList {
		if other.Key != mine.Key {
			keys = append(keys, other.Key)
		}
	}
	return keys, nil
}

// About is an event about a VM, with what the simulator's texts of events name.
func About(name string, vm types.ManagedObjectReference) types.Event {
	return types.Event{
		Vm:         &types.VmEventArgument{EntityEventArgument: types.EntityEventArgument{Name: name}, Vm: vm},
		Host:       &types.HostEventArgument{},
		Datacenter: &types.DatacenterEventArgument{},
	}
}

// Post lets an event happen.
func (s *Sim) Post(ctx context.Context, e types.BaseEvent) error {
	return event.NewManager(s.client.Client).PostEvent(ctx, e)
}

// VM finds a VM by its name.
func (s *Sim) VM(ctx context.Context, name string) (*object.VirtualMachine, error) {
	return find.NewFinder(s.client.Client).VirtualMachine(ctx, "/DC0/vm/"+name)
}

func encodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
