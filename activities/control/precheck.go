package control

import (
	"context"

	"drover/activities/activityerr"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// dryRun stands where a run's workflow id would: nothing is made under it.
const dryRun = "dry-run"

// TargetOf gives what a failover would make of a machine as it is now, for the target to
// check. The recovery point is not chosen: it decides nothing that is checked.
func (c *Control) TargetOf(ctx context.Context, in api.PrecheckInput) (api.CheckNetworkInput, error) {
	s, known, err := c.machineStatus(ctx, in.Machine)
	if err != nil {
		return api.CheckNetworkInput{}, err
	}
	if !known {
		return api.CheckNetworkInput{}, activityerr.New(api.CodeNotFound, "machine %s is not under protection", in.Machine)
	}
	wanted := api.MachineOf(s.VM, s.Protected, s.TargetSpec, dryRun, replica.Point{})
	if in.Kind == api.PlanTest {
		wanted = api.TestOf(s.VM, s.Protected, s.TargetSpec, dryRun, replica.Point{}, in.Network)
	}
	out := api.CheckNetworkInput{Network: wanted.Network, Isolated: wanted.Test, For: &wanted}
	if out.Network == "" {
		return out, activityerr.New(api.CodeInvalid, "machine %s has no network to come up in; name one in its target or in the run", s.Name)
	}
	return out, nil
}

// ReturnOf gives what a reprotect would take of a machine as it is now, or make at the
// location, for vCenter to check.
func (c *Control) ReturnOf(ctx context.Context, in api.PrecheckInput) (api.MakeVMInput, error) {
	s, known, err := c.machineStatus(ctx, in.Machine)
	if err != nil {
		return api.MakeVMInput{}, err
	}
	if !known {
		return api.MakeVMInput{}, activityerr.New(api.CodeNotFound, "machine %s is not under protection", in.Machine)
	}
	return api.MakeVMInput{VM: s.VM, Disks: s.Protected, At: in.Location, Run: dryRun}, nil
}
