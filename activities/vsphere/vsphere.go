// Package vsphere has the activities that ask vCenter for something: inventory,
// power, and the attachment of disks to a master target. One session per vCenter is
// kept and shared by all calls; one that vCenter ended is opened again, once per call.
//
// What a call is to bring about may be so already, from an earlier try: then it
// changes nothing.
package vsphere

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Bounds of the calls.
const (
	loginTimeout = 30 * time.Second
	powerPoll    = 250 * time.Millisecond // while a guest shuts down
	keepAlive    = 5 * time.Minute
	MaxVMs       = 10_000 // of one vCenter
)

// Config of the activities.
type Config struct {
	// Secrets is the directory of the files that api.VCenter.Credentials names.
	Secrets string
	// Lookup gives the vCenter of a name.
	Lookup func(ctx context.Context, name string) (api.VCenter, error)
	// Tell sends what a watch saw to the discovery of the vCenter.
	Tell   func(ctx context.Context, vcenter string, r api.WatchReport) error
	Logger *slog.Logger
	// KeepAlive is how often an idle session shows a sign of life; 0: 5 minutes, where
	// vCenter ends it after 30.
	KeepAlive time.Duration
	// Gather is how long a watch gathers changes after it told of some; 0: a second.
	Gather time.Duration
	// GuestProgram is how long one program in a guest may take; 0: 2 minutes.
	GuestProgram time.Duration
}

// Activities on vCenter. Close ends their sessions.
type Activities struct {
	config   Config
	sessions sessions
}

// New makes the activities.
func New(c Config) (*Activities, error) {
	if c.Secrets == "" || c.Lookup == nil || c.Tell == nil || c.Logger == nil {
		return nil, errors.New("vsphere: secrets directory, lookup, tell and logger are needed")
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = keepAlive
	}
	if c.Gather == 0 {
		c.Gather = watchPause
	}
	if c.GuestProgram == 0 {
		c.GuestProgram = guestProgram
	}
	return &Activities{config: c, sessions: sessions{by: map[string]*place{}}}, nil
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any {
	return map[string]any{
		api.ActInventory:     a.Inventory,
		api.ActWatch:         a.Watch,
		api.ActCheckVCenter:  a.CheckPrivileges,
		api.ActShutdownVM:    a.ShutdownVM,
		api.ActPowerOnVM:     a.PowerOnVM,
		api.ActAttachDisks:   a.AttachDisks,
		api.ActDetachDisks:   a.DetachDisks,
		api.ActVerifyVMReady: a.VerifyVMReady,
		api.ActCheckLocation: a.CheckLocation,
		api.ActMakeVM:        a.MakeVM,
		api.ActUnmakeVM:      a.UnmakeVM,
	}
}

// onVM calls f with the VM, in its vCenter's session.
func (a *Activities) onVM(ctx context.Context, ref api.VMRef, f func(*session, *object.VirtualMachine) error) error {
	vcenter, err := a.config.Lookup(ctx, ref.VCenter)
	if err != nil {
		return err
	}
	return a.on(ctx, vcenter, func(s *session) error {
		vm, err := s.byInstance(ctx, ref.InstanceUUID)
		if err != nil {
			return err
		}
		return f(s, vm)
	})
}

// byInstance finds a VM by its instance uuid.
func (s *session) byInstance(ctx context.Context, uuid string) (*object.VirtualMachine, error) {
	isInstance := true
	ref, err := object.NewSearchIndex(s.client.Client).FindByUuid(ctx, nil, uuid, true, &isInstance)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "find VM %s in vCenter %s", uuid, s.name)
	}
	vm, ok := ref.(*object.VirtualMachine)
	if !ok {
		return nil, failed(api.CodeNotFound, nil, "vCenter %s has no VM with instance uuid %s: was it deleted or unregistered?", s.name, uuid)
	}
	return vm, nil
}

// byName finds a VM by its name; a master target's VM has its server's name.
func (s *session) byName(ctx context.Context, name string) (*object.VirtualMachine, error) {
	vms, err := s.list(ctx, []string{"name"})
	if err != nil {
		return nil, err
	}
	var found *object.VirtualMachine
	for _, vm := range vms {
		if vm.Name != name {
			continue
		}
		if found != nil {
			return nil, failed(api.CodeInvalid, nil, "vCenter %s has several VMs named %s: rename the ones that are not the master target", s.name, name)
		}
		found = object.NewVirtualMachine(s.client.Client, vm.Self)
	}
	if found == nil {
		return nil, failed(api.CodeNotFound, nil, "vCenter %s has no VM named %s: a master target's VM must carry the server's name", s.name, name)
	}
	return found, nil
}

// properties reads some properties of a VM.
func (s *session) properties(ctx context.Context, vm *object.VirtualMachine, names ...string) (mo.VirtualMachine, error) {
	var out mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), names, &out); err != nil {
		return out, failed(api.CodeVCenter, err, "read VM %s from vCenter %s", vm.Reference().Value, s.name)
	}
	return out, nil
}

// finish waits for a task.
func (s *session) finish(ctx context.Context, what string, task *object.Task, err error) error {
	if err == nil {
		err = task.Wait(ctx)
	}
	if err == nil {
		return nil
	}
	var locked *types.FileLocked
	if _, ok := fault.As(err, &locked); ok {
		return failed(api.CodeVCenter, err, "%s in vCenter %s: %s", what, s.name, s.whoLocks(ctx, locked.File, task))
	}
	return failed(api.CodeVCenter, err, "%s in vCenter %s", what, s.name)
}

// whoLocks says who has a file open, as far as vCenter shows it.
func (s *session) whoLocks(ctx context.Context, file string, task *object.Task) string {
	var info mo.Task
	but := []types.ManagedObjectReference{}
	if err := task.Properties(ctx, task.Reference(), []string{"info.entity"}, &info); err == nil && info.Info.Entity != nil {
		but = append(but, *info.Info.Entity)
	}
	holder, err := s.holder(ctx, func(b *types.VirtualDiskFlatVer2BackingInfo) bool { return b.FileName == file }, but...)
	if err != nil || holder == "" {
		return "the disk file " + file + " is locked, and no other VM in sight has it; look on the datastore for the host that does (vmkfstools -D)"
	}
	return "the disk file " + file + " is in use by VM " + holder + "; detach it there"
}
