package vsphere

import (
	"context"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// PowerOnVM powers the VM on.
func (a *Activities) PowerOnVM(ctx context.Context, ref api.VMRef) error {
	return a.onVM(ctx, ref, func(s *session, vm *object.VirtualMachine) error {
		state, err := s.power(ctx, vm)
		if err != nil || state == types.VirtualMachinePowerStatePoweredOn {
			return err
		}
		task, err := vm.PowerOn(ctx)
		return s.finish(ctx, "power on VM "+ref.InstanceUUID, task, err)
	})
}

// ShutdownVM brings the VM down: by its guest within the limit, else, if that was asked
// for, by switching it off. A frozen guest cannot shut down: it is switched off.
func (a *Activities) ShutdownVM(ctx context.Context, in api.ShutdownInput) (api.ShutdownResult, error) {
	var out api.ShutdownResult
	err := a.onVM(ctx, in.VMRef, func(s *session, vm *object.VirtualMachine) error {
		state, err := s.power(ctx, vm)
		if err != nil {
			return err
		}
		if state == types.VirtualMachinePowerStatePoweredOff {
			out.How = "off already"
			return nil
		}
		out.WasOn = true
		if !in.Freeze {
			asked := vm.ShutdownGuest(ctx)
			if asked == nil && s.wentOff(ctx, vm, in.Limit.D()) {
				out.How = "guest shutdown"
				return nil
			}
			switch {
			case away(asked):
				return failed(api.CodeVCenter, asked, "shut down the guest of VM %s in vCenter %s", in.InstanceUUID, s.name)
			case !in.Force && asked != nil:
				return failed(api.CodeSourceRunning, asked, "the guest of VM %s cannot be shut down", in.InstanceUUID)
			case !in.Force:
				return failed(api.CodeSourceRunning, nil, "the guest of VM %s did not shut down within %s", in.InstanceUUID, in.Limit)
			}
		}
		out.How = "power off"
		return s.powerOff(ctx, vm, in.InstanceUUID)
	})
	return out, err
}

func (s *session) powerOff(ctx context.Context, vm *object.VirtualMachine, name string) error {
	task, err := vm.PowerOff(ctx)
	err = s.finish(ctx, "power off VM "+name, task, err)
	if err == nil {
		return nil
	}
	// It may have gone off by itself in between.
	if state, e := s.power(ctx, vm); e == nil && state == types.VirtualMachinePowerStatePoweredOff {
		return nil
	}
	return err
}

// wentOff waits until the VM is off, at most for the limit.
func (s *session) wentOff(ctx context.Context, vm *object.VirtualMachine, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		state, err := s.power(ctx, vm)
		if err == nil && state == types.VirtualMachinePowerStatePoweredOff {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(powerPoll):
		}
	}
}

func (s *session) power(ctx context.Context, vm *object.VirtualMachine) (types.VirtualMachinePowerState, error) {
	props, err := s.properties(ctx, vm, "runtime.powerState")
	return props.Runtime.PowerState, err
}
