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
		api.ActCommitMachine: a.CommitMachine,
	}
}

// Failed makes the error of a call; what the target refused is not tried again.
func Failed(cause error, format string, args ...any) error {
	if errors.Is(cause, context.Canceled) {
		return cause
	}
	code := api.CodeTarget
	var fault *Fault
	switch {
	case errors.As(cause, &fault):
		code = fault.Code
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
// counts is what leads out of it, not what it is called. If a machine is to be made
// there, it also checks whether it could be.
func (a *Activities) CheckNetwork(ctx context.Context, in api.CheckNetworkInput) error {
	ctx, end := Begin(ctx)
	defer end()
	n, err := a.cloud.Network(ctx, in.Network)
	if err != nil {
		return Failed(err, "network %s", in.Network)
	}
	if in.Isolated && len(n.WaysOut) > 0 {
		return Failed(NotIsolated(n), "test network")
	}
	if in.For == nil {
		return nil
	}
	return a.precheck(ctx, *in.For)
}

// NotIsolated says why a network is no place for a test.
func NotIsolated(n Network) error {
	return &Fault{Code: api.CodeNotIsolated, Text: fmt.Sprintf(
		"network %s is not isolated, it has %s: a test machine there could reach production; name another network", n.Name, strings.Join(n.WaysOut, ", "))}
}

// precheck refuses, before anything is made, what would be refused later.
func (a *Activities) precheck(ctx context.Context, in api.CreateMachineInput) error {
	spec, err := a.spec(ctx, in)
	if err != nil {
		return err
	}
	checker, ok := a.cloud.(Checker)
	if !ok {
		return nil
	}
	disks := make([]DiskSpec, len(in.Disks))
	for i := range in.Disks {
		disks[i] = diskSpec(in, i, spec.Tags)
	}
	if err := checker.Precheck(ctx, Ref{Name: in.Name, Run: in.Run}, spec, disks); err != nil {
		return Failed(err, "machine %s cannot be made", in.Name)
	}
	return nil
}

// CreateMachine makes the machine, switched off, with disks from the recovery
// point. Disks that an earlier try filled are used as they are.
func (a *Activities) CreateMachine(ctx context.Context, in api.CreateMachineInput) (api.TargetMachine, error) {
	ctx, end := Begin(ctx)
	defer end()
	ref := Ref{Name: in.Name, Run: in.Run}
	spec, err := a.spec(ctx, in)
	if err != nil {
		return api.TargetMachine{}, err
	}
	if err := a.createDisks(ctx, ref, in, spec.Tags); err != nil {
		return api.TargetMachine{}, err
	}
	m, err := a.cloud.CreateMachine(ctx, ref, spec)
	if err != nil {
		return api.TargetMachine{}, Failed(err, "create machine %s", in.Name)
	}
	return describe(m), nil
}

// spec says what machine to make.
func (a *Activities) spec(ctx context.Context, in api.CreateMachineInput) (MachineSpec, error) {
	sizes, err := a.sizes(ctx, in)
	if err != nil {
		return MachineSpec{}, err
	}
	t := in.Target
	return MachineSpec{
		Machine: in.Machine, Size: sizes[0], FallBack: sizes[1:], Network: in.Network, Subnet: t.Subnet, Address: address(in),
		AddressPolicy: t.AddressPolicy, Zone: t.Zone, AvailabilitySet: t.AvailabilitySet, Health: t.Health,
		Firmware: in.Firmware, Windows: windows(in.GuestID), Disks: len(in.Disks), Test: in.Test, Tags: tagsOf(in),
	}, nil
}

// tagsOf are the tags of all that is made for the machine; ours win.
func tagsOf(in api.CreateMachineInput) map[string]string {
	tags := maps.Clone(in.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[TagRun], tags[TagMachine], tags[TagTest], tags[TagName] = in.Run, in.Machine.String(), fmt.Sprint(in.Test), in.Name
	if in.PlanRun != "" {
		tags[TagPlan] = in.PlanRun
	}
	return tags
}

// address is the one to keep, which a test beside it must not take.
func address(in api.CreateMachineInput) string {
	if in.Test {
		return ""
	}
	return in.Target.Address
}

// maxFallBack bounds how many sizes are tried when none is named.
const maxFallBack = 3

// sizes are the ones asked for, or the smallest that the machine fits in.
func (a *Activities) sizes(ctx context.Context, in api.CreateMachineInput) ([]string, error) {
	all, err := a.cloud.Sizes(ctx)
	if err != nil {
		return nil, Failed(err, "list the target's machine sizes")
	}
	var out []string
	if in.Target.Size == "" {
		for _, s := range all {
			if s.CPUs >= in.CPUs && s.MemoryMB >= in.Memory && unfit(s, in) == "" && len(out) < 1+maxFallBack {
				out = append(out, s.Name)
			}
		}
		if len(out) == 0 {
			return nil, refused(api.CodeInvalid, "no machine size of the target has %d CPUs, %d MiB and %d disks for a machine with %s", in.CPUs, in.Memory, len(in.Disks), firmware(in.Firmware))
		}
		return out, nil
	}
	for _, name := range append([]string{in.Target.Size}, in.Target.FallBackSizes...) {
		i := slices.IndexFunc(all, func(s Size) bool { return s.Name == name })
		if i < 0 {
			return nil, refused(api.CodeInvalid, "the target has no machine size %s", name)
		}
		if why := unfit(all[i], in); why != "" {
			return nil, refused(api.CodeInvalid, "machine %s %s: choose another size", in.Name, why)
		}
		out = append(out, name)
	}
	return out, nil
}

// unfit says why a machine cannot have a size, however small it may be.
func unfit(s Size, in api.CreateMachineInput) string {
	switch {
	case len(in.Disks) > s.MaxDisks:
		return fmt.Sprintf("has %d disks, size %s takes %d", len(in.Disks), s.Name, s.MaxDisks)
	case len(s.Firmware) > 0 && !slices.Contains(s.Firmware, firmware(in.Firmware)):
		return fmt.Sprintf("boots with %s, which size %s does not", firmware(in.Firmware), s.Name)
	case in.Target.Zone != "" && !slices.Contains(s.Zones, in.Target.Zone):
		return fmt.Sprintf("is to be in zone %s, where size %s is not offered", in.Target.Zone, s.Name)
	}
	return ""
}

// firmware: vCenter says nothing of old machines, which have a BIOS.
func firmware(f string) string {
	if f == "" {
		return "bios"
	}
	return f
}

// StartMachine starts the machine.
func (a *Activities) StartMachine(ctx context.Context, in api.TargetRef) (api.TargetMachine, error) {
	ctx, end := Begin(ctx)
	defer end()
	m, err := a.cloud.Start(ctx, Ref(in))
	if err != nil {
		return api.TargetMachine{}, Failed(err, "start machine %s", in.Name)
	}
	return describe(m), nil
}

// CheckMachine says whether the started machine is up.
func (a *Activities) CheckMachine(ctx context.Context, in api.TargetRef) (api.CheckResult, error) {
	ctx, end := Begin(ctx)
	defer end()
	ready, evidence, err := a.cloud.Check(ctx, Ref(in))
	if err != nil {
		return api.CheckResult{}, Failed(err, "check machine %s", in.Name)
	}
	return api.CheckResult{Ready: ready, Evidence: evidence}, nil
}

// StopMachine stops the machine.
func (a *Activities) StopMachine(ctx context.Context, in api.TargetRef) error {
	ctx, end := Begin(ctx)
	defer end()
	if err := a.cloud.Stop(ctx, Ref(in)); err != nil {
		return Failed(err, "stop machine %s", in.Name)
	}
	return nil
}

// DeleteMachine deletes the machine, its disks and all else that carries its tags.
func (a *Activities) DeleteMachine(ctx context.Context, in api.TargetRef) error {
	ctx, end := Begin(ctx)
	defer end()
	if err := a.cloud.Delete(ctx, Ref(in)); err != nil {
		return Failed(err, "delete machine %s", in.Name)
	}
	return nil
}

// CommitMachine deletes what a machine that stays does not need any more.
func (a *Activities) CommitMachine(ctx context.Context, in api.TargetRef) error {
	ctx, end := Begin(ctx)
	defer end()
	committer, ok := a.cloud.(Committer)
	if !ok {
		return nil
	}
	if err := committer.Commit(ctx, Ref(in)); err != nil {
		return Failed(err, "commit machine %s", in.Name)
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
