package target

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.temporal.io/sdk/temporal"

	"drover/datapath/replica"
	"drover/workflows/api"
)

// Activities on the target cloud.
type Activities struct {
	cloud Cloud
	store replica.Store
}

// New makes the activities; disks are made from the recovery points of the store.
func New(cloud Cloud, store replica.Store) *Activities {
	return &Activities{cloud: cloud, store: store}
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any {
	return map[string]any{
		api.ActCheckNetwork:  a.CheckNetwork,
		api.ActCreateMachine: a.CreateMachine,
		api.ActStartMachine:  a.StartMachine,
		api.ActCheckMachine:  a.CheckMachine,
		api.ActStopMachine:   a.StopMachine,
		api.ActDeleteMachine: a.DeleteMachine,
	}
}

// failed makes the error of a call; what the target refused is not tried again.
func failed(cause error, format string, args ...any) error {
	code := api.CodeTarget
	switch {
	case errors.Is(cause, ErrNotFound), errors.Is(cause, replica.ErrNotFound):
		code = api.CodeNotFound
	case errors.Is(cause, replica.ErrCorrupt):
		code = api.CodeReplicaDamaged
	}
	return temporal.NewApplicationErrorWithOptions(fmt.Sprintf(format, args...)+": "+cause.Error(), code, temporal.ApplicationErrorOptions{
		NonRetryable: !api.Retryable(code) || errors.Is(cause, ErrRefused), Cause: cause,
	})
}

func refused(code, format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf(format, args...), code, nil)
}

// CheckNetwork checks that the network is there, and isolated if it must be. What
// counts is what leads out of it, not what it is called.
func (a *Activities) CheckNetwork(ctx context.Context, in api.CheckNetworkInput) error {
	n, err := a.cloud.Network(ctx, in.Network)
	if err != nil {
		return failed(err, "network %s", in.Network)
	}
	if in.Isolated && len(n.WaysOut) > 0 {
		return refused(api.CodeNotIsolated,
			"network %s is not isolated, it has %s: a test machine there could reach production; name another network", in.Network, strings.Join(n.WaysOut, ", "))
	}
	return nil
}

// CreateMachine makes the machine, switched off, with disks from the recovery
// point. Disks that an earlier try filled are used as they are.
func (a *Activities) CreateMachine(ctx context.Context, in api.CreateMachineInput) (api.TargetMachine, error) {
	ref := Ref{Name: in.Name, Run: in.Run}
	size, err := a.size(ctx, in)
	if err != nil {
		return api.TargetMachine{}, err
	}
	tags := maps.Clone(in.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[TagRun], tags[TagMachine], tags[TagTest] = in.Run, in.Machine.String(), fmt.Sprint(in.Test)
	if err := a.createDisks(ctx, ref, in, tags); err != nil {
		return api.TargetMachine{}, err
	}
	m, err := a.cloud.CreateMachine(ctx, ref, MachineSpec{
		Size: size, Network: in.Network, Subnet: in.Target.Subnet, Address: address(in), Test: in.Test, Tags: tags,
	})
	if err != nil {
		return api.TargetMachine{}, failed(err, "create machine %s", in.Name)
	}
	return describe(m), nil
}

// address is the one to keep, which a test beside it must not take.
func address(in api.CreateMachineInput) string {
	if in.Test {
		return ""
	}
	return in.Target.Address
}

// size is the one asked for, or the smallest that the machine fits in.
func (a *Activities) size(ctx context.Context, in api.CreateMachineInput) (string, error) {
	sizes, err := a.cloud.Sizes(ctx)
	if err != nil {
		return "", failed(err, "list the target's machine sizes")
	}
	i := slices.IndexFunc(sizes, func(s Size) bool {
		if in.Target.Size != "" {
			return s.Name == in.Target.Size
		}
		return s.CPUs >= in.CPUs && s.MemoryMB >= in.Memory && s.MaxDisks >= len(in.Disks)
	})
	switch {
	case i >= 0 && len(in.Disks) <= sizes[i].MaxDisks:
		return sizes[i].Name, nil
	case i >= 0:
		return "", refused(api.CodeInvalid, "machine %s has %d disks, size %s takes %d: choose another size", in.Name, len(in.Disks), sizes[i].Name, sizes[i].MaxDisks)
	case in.Target.Size != "":
		return "", refused(api.CodeInvalid, "the target has no machine size %s", in.Target.Size)
	}
	return "", refused(api.CodeInvalid, "no machine size of the target has %d CPUs, %d MiB and %d disks", in.CPUs, in.Memory, len(in.Disks))
}

// StartMachine starts the machine.
func (a *Activities) StartMachine(ctx context.Context, in api.TargetRef) (api.TargetMachine, error) {
	m, err := a.cloud.Start(ctx, Ref(in))
	if err != nil {
		return api.TargetMachine{}, failed(err, "start machine %s", in.Name)
	}
	return describe(m), nil
}

// CheckMachine says whether the started machine is up.
func (a *Activities) CheckMachine(ctx context.Context, in api.TargetRef) (api.CheckResult, error) {
	ready, evidence, err := a.cloud.Check(ctx, Ref(in))
	if err != nil {
		return api.CheckResult{}, failed(err, "check machine %s", in.Name)
	}
	return api.CheckResult{Ready: ready, Evidence: evidence}, nil
}

// StopMachine stops the machine.
func (a *Activities) StopMachine(ctx context.Context, in api.TargetRef) error {
	if err := a.cloud.Stop(ctx, Ref(in)); err != nil {
		return failed(err, "stop machine %s", in.Name)
	}
	return nil
}

// DeleteMachine deletes the machine, its disks and all else that carries its tags.
func (a *Activities) DeleteMachine(ctx context.Context, in api.TargetRef) error {
	if err := a.cloud.Delete(ctx, Ref(in)); err != nil {
		return failed(err, "delete machine %s", in.Name)
	}
	return nil
}

func describe(m Machine) api.TargetMachine {
	out := api.TargetMachine{
		Name: m.Name, Instance: m.Instance, Network: m.Network, Address: m.Address, Size: m.Size, Running: m.Running, Tags: m.Tags,
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, api.TargetDisk{ID: d.ID, Name: d.Name, BackingUUID: d.BackingUUID, Size: d.Size, Location: d.Location})
	}
	return out
}
