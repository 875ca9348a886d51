package vsphere

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"go.temporal.io/sdk/activity"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// Bounds of making a VM.
const (
	makeLimit = 5 * time.Minute        // vCenter's task goes on whatever becomes of the call
	makePoll  = 500 * time.Millisecond // while other tries' tasks are waited for
	makeOther = 2 * time.Minute
)

// instanceOf derives the VM's uuids from machine and run: a second try finds by them what
// the first one made.
func instanceOf(machine ident.MachineID, run, what string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("drover-remade:"+what+":"+machine.String()+":"+run)).String()
}

// CheckLocation says what would keep the machine's VM from being made anew where the
// location says, or, without one, that the original is gone. It changes nothing.
func (a *Activities) CheckLocation(ctx context.Context, in api.MakeVMInput) error {
	if in.At == nil || in.At.OnlyIfGone {
		ref := api.VMRef{VCenter: in.VM.VCenter, InstanceUUID: in.VM.InstanceUUID}
		err := a.onVM(ctx, ref, func(*session, *object.VirtualMachine) error { return nil })
		if err == nil || !isNotFound(err) {
			return err
		}
		if in.At == nil {
			return failed(api.CodeVMGone, nil, "%s", in.VM.Gone())
		}
	}
	return a.atLocation(ctx, in, func(s *session) error {
		_, err := s.groundOf(ctx, in)
		return err
	})
}

// atLocation calls f in the vCenter in which the VM is to be made.
func (a *Activities) atLocation(ctx context.Context, in api.MakeVMInput, f func(*session) error) error {
	if in.At == nil {
		return failed(api.CodeInvalid, nil, "make VM %s anew: no location given", in.VM.Name)
	}
	if wrong := api.ValidateLocation(*in.At); len(wrong) > 0 {
		return failed(api.CodeInvalid, nil, "make VM %s anew: location.%s", in.VM.Name, wrong[0].Error())
	}
	vcenter, err := a.config.Lookup(ctx, in.VCenter())
	if err != nil {
		return err
	}
	return a.on(ctx, vcenter, f)
}

// MakeVM makes the machine's VM anew, switched off and with empty disks. What an earlier
// try of the run made is found, and used.
func (a *Activities) MakeVM(ctx context.Context, in api.MakeVMInput) (api.MadeVM, error) {
	var out api.MadeVM
	if in.Run == "" || in.MasterTarget == "" || len(in.Disks) == 0 {
		return out, failed(api.CodeInvalid, nil, "make VM %s anew: run, master target and disks are needed", in.VM.Name)
	}
	again := activity.IsActivity(ctx) && activity.GetInfo(ctx).Attempt > 1
	err := a.atLocation(ctx, in, func(s *session) error {
		vm, err := s.madeBy(ctx, in.VM.Machine, in.Run, again)
		again = true
		if err != nil {
			return err
		}
		if vm == nil {
			if vm, err = s.make(ctx, in); err != nil {
				return err
			}
		}
		out, err = s.finishVM(ctx, vm, in)
		return err
	})
	return out, err
}

// make has vCenter make the VM. The task is waited for when the call is cancelled, too:
// else the undo would look for what is not there yet.
func (s *session) make(ctx context.Context, in api.MakeVMInput) (*object.VirtualMachine, error) {
	g, err := s.groundOf(ctx, in)
	if err != nil {
		return nil, err
	}
	devices, err := hardware(in, g.store.Name, g.networks)
	if err != nil {
		return nil, err
	}
	host, pool := object.NewHostSystem(s.client.Client, g.host.Self), object.NewResourcePool(s.client.Client, g.pool)
	task, err := object.NewFolder(s.client.Client, g.folder).CreateVM(ctx, specOf(in, g, devices), pool, host)
	if err != nil {
		return nil, failed(api.CodeVCenter, err, "make VM %s in vCenter %s", g.name, s.name)
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeLimit)
	defer cancel()
	if err := s.finish(wait, "make VM "+g.name, task, nil); err != nil {
		return nil, err
	}
	vm, err := s.madeBy(wait, in.VM.Machine, in.Run, true)
	if err == nil && vm == nil {
		err = failed(api.CodeVCenter, nil, "vCenter %s says that it made VM %s, and does not show it", s.name, g.name)
	}
	return vm, err
}

// specOf is the VM as it was, but for its uuids and addresses.
func specOf(in api.MakeVMInput, g ground, devices []types.BaseVirtualDeviceConfigSpec) types.VirtualMachineConfigSpec {
	instance := instanceOf(in.VM.Machine, in.Run, "instance")
	spec := types.VirtualMachineConfigSpec{
		Name: g.name, GuestId: in.VM.GuestID, Firmware: in.VM.Firmware, NumCPUs: in.VM.CPUs, MemoryMB: int64(in.VM.MemoryMB),
		InstanceUuid: instance, Uuid: instanceOf(in.VM.Machine, in.Run, "bios"),
		Annotation: "Made by Drover for the failback of machine " + in.VM.Machine.String() + " (" + in.VM.Name + ").",
		Files:      &types.VirtualMachineFileInfo{VmPathName: "[" + g.store.Name + "]"}, DeviceChange: devices,
		ExtraConfig: []types.BaseOptionValue{
			&types.OptionValue{Key: keyMachine, Value: in.VM.Machine.String() + " " + instance},
			&types.OptionValue{Key: keyRun, Value: in.Run},
			&types.OptionValue{Key: "disk.EnableUUID", Value: "TRUE"}, // the agent finds its disks by them
		},
	}
	if n := in.VM.CoresPerSocket; n > 0 {
		spec.NumCoresPerSocket = &n
	}
	if in.VM.SecureBoot {
		spec.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(true)}
	}
	return spec
}

// finishVM notes in the VM which of its disks is which, and gives it as it is.
func (s *session) finishVM(ctx context.Context, vm *object.VirtualMachine, in api.MakeVMInput) (api.MadeVM, error) {
	var out api.MadeVM
	props, err := s.properties(ctx, vm, inventoryProperties...)
	if err != nil {
		return out, err
	}
	if props.Config == nil {
		return out, failed(api.CodeVCenter, nil, "vCenter %s cannot read the configuration of VM %s now", s.name, in.VM.Name)
	}
	keys, at := extra(props.Config.ExtraConfig), map[api.Place]string{}
	devices := object.VirtualDeviceList(props.Config.Hardware.Device)
	for backing, d := range disksByUUID(devices) {
		at[placeOf(d, devices)] = backing
	}
	var notes []types.BaseOptionValue
	for i, place := range placesOf(in) {
		backing, there := at[place]
		if !there {
			return out, failed(api.CodeVCenter, nil, "vCenter %s made VM %s without %s on %s %d:%d", s.name, in.VM.Name, in.Disks[i].Label, place.Controller, place.Bus, place.Unit)
		}
		if id := in.Disks[i].ID.String(); keys[keyDisk+backing] != id {
			notes = append(notes, &types.OptionValue{Key: keyDisk + backing, Value: id})
		}
	}
	if len(notes) > 0 {
		task, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: notes})
		if err := s.finish(ctx, "note the disks of VM "+in.VM.Name, task, err); err != nil {
			return out, err
		}
		if props, err = s.properties(ctx, vm, inventoryProperties...); err != nil {
			return out, err
		}
	}
	return s.madeOf(ctx, props, in)
}

func (s *session) madeOf(ctx context.Context, props mo.VirtualMachine, in api.MakeVMInput) (api.MadeVM, error) {
	known, err := s.namesOf(ctx, []mo.VirtualMachine{props})
	if err != nil {
		return api.MadeVM{}, err
	}
	out := api.MadeVM{VM: describe(in.VCenter(), s.client.ServiceContent.About.InstanceUuid, props, known)}
	byID := map[ident.DiskID]api.VMDisk{}
	for _, d := range out.VM.Disks {
		byID[d.ID] = d
	}
	for _, d := range in.Disks {
		made, there := byID[d.ID]
		if !there || made.Size < d.Size || out.VM.Machine != in.VM.Machine {
			return out, failed(api.CodeVCenter, nil, "vCenter %s did not make VM %s as it was asked to: %s is missing or too small", s.name, in.VM.Name, d.Label)
		}
		made.Size = d.Size
		out.Disks = append(out.Disks, made)
	}
	return out, nil
}

// madeBy gives the VM that the run made; nil when it made none. patient waits for tasks
// that may be making it, those of a try whose answer was lost, and refuses when a VM with
// another uuid says that it is it.
func (s *session) madeBy(ctx context.Context, machine ident.MachineID, run string, patient bool) (*object.VirtualMachine, error) {
	instance := instanceOf(machine, run, "instance")
	vm, err := s.byInstance(ctx, instance)
	if isNotFound(err) && patient {
		if err := s.awaitMaking(ctx); err != nil {
			return nil, err
		}
		if vm, err = s.byInstance(ctx, instance); isNotFound(err) {
			return nil, s.noOther(ctx, run)
		}
	}
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	props, err := s.properties(ctx, vm, "name", "config.extraConfig")
	if err != nil {
		return nil, err
	}
	if props.Config == nil || extra(props.Config.ExtraConfig)[keyRun] != run {
		return nil, failed(api.CodeNotOurs, nil, "VM %s in vCenter %s has the instance uuid %s and does not say that Drover made it: look what it is", props.Name, s.name, instance)
	}
	return vm, nil
}

// noOther refuses when a VM carries the run's name and is not known by its uuid: vCenter
// gave it another one, or it is a copy. Which, people have to see.
func (s *session) noOther(ctx context.Context, run string) error {
	vms, err := s.list(ctx, []string{"name", "config.extraConfig"})
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.Config != nil && extra(vm.Config.ExtraConfig)[keyRun] == run {
			return failed(api.CodeNotOurs, nil, "VM %s in vCenter %s says that %s made it, and has another instance uuid: look whether it is a copy, and delete it by hand if nobody needs it", vm.Name, s.name, run)
		}
	}
	return nil
}

// awaitMaking waits until none of the user's tasks that make VMs is under way.
func (s *session) awaitMaking(ctx context.Context) error {
	user, err := s.client.SessionManager.UserSession(ctx)
	if err != nil || user == nil {
		return failed(api.CodeVCenterAway, err, "ask vCenter %s who its user is", s.name)
	}
	for end := time.Now().Add(makeOther); ; {
		making, err := s.making(ctx, user.UserName)
		if err != nil || !making {
			return err
		}
		if time.Now().After(end) {
			return failed(api.CodeVCenter, nil, "vCenter %s is still making a VM for %s; whether it is this one is not known until it has", s.name, user.UserName)
		}
		select {
		case <-ctx.Done():
			return failed(api.CodeVCenter, ctx.Err(), "wait for vCenter %s to make a VM", s.name)
		case <-time.After(makePoll):
		}
	}
}

func (s *session) making(ctx context.Context, user string) (bool, error) {
	if s.client.ServiceContent.TaskManager == nil {
		return false, nil
	}
	var manager []mo.TaskManager
	if err := s.read(ctx, []types.ManagedObjectReference{*s.client.ServiceContent.TaskManager}, []string{"recentTask"}, &manager); err != nil {
		return false, err
	}
	if len(manager) == 0 {
		return false, nil
	}
	for _, ref := range manager[0].RecentTask {
		var t mo.Task
		if err := object.NewTask(s.client.Client, ref).Properties(ctx, ref, []string{"info"}, &t); err != nil {
			if code, _ := classify(err); code == api.CodeNotFound {
				continue // it is over and forgotten
			}
			return false, failed(api.CodeVCenter, err, "read a task of vCenter %s", s.name)
		}
		by, _ := t.Info.Reason.(*types.TaskReasonUser)
		open := t.Info.State == types.TaskInfoStateRunning || t.Info.State == types.TaskInfoStateQueued
		if open && by != nil && by.UserName == user && strings.EqualFold(t.Info.DescriptionId, "Folder.createVm") {
			return true, nil
		}
	}
	return false, nil
}

// UnmakeVM deletes the VM that the run made, with its disks. When it made none that is
// fine. One that runs, or whose disks another VM has, is left.
func (a *Activities) UnmakeVM(ctx context.Context, in api.UnmakeVMInput) error {
	if in.Run == "" {
		return failed(api.CodeInvalid, nil, "delete a VM that was made anew: no run given")
	}
	vcenter, err := a.config.Lookup(ctx, in.VCenter)
	if err != nil {
		return err
	}
	return a.on(ctx, vcenter, func(s *session) error {
		vm, err := s.madeBy(ctx, in.Machine, in.Run, true)
		if err != nil || vm == nil {
			return err
		}
		props, err := s.properties(ctx, vm, "name", "config.hardware.device", "runtime.powerState")
		if err != nil {
			return err
		}
		if props.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
			return failed(api.CodeSourceRunning, nil, "VM %s in vCenter %s is %s: switch it off, then delete it by hand if nobody needs it", props.Name, s.name, props.Runtime.PowerState)
		}
		if props.Config != nil {
			var uuids []string
			for backing := range disksByUUID(props.Config.Hardware.Device) {
				uuids = append(uuids, backing)
			}
			if err := s.heldByOthers(ctx, uuids, vm.Reference()); err != nil {
				return err
			}
		}
		task, err := vm.Destroy(ctx)
		return s.finish(ctx, "delete VM "+props.Name, task, err)
	})
}
