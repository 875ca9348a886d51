package control

import (
	"context"

	"drover/activities/activityerr"
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
	test := in.Kind == api.PlanTest
	out := api.CheckNetworkInput{Network: s.TargetSpec.Network, Isolated: test}
	name := s.VM.Name
	if test {
		out.Network, name = s.TargetSpec.TestNetwork, api.TestName(s.VM)
		if in.Network != "" {
			out.Network = in.Network
		}
	}
	if out.Network == "" {
		return out, activityerr.New(api.CodeInvalid, "machine %s has no network to come up in; name one in its target or in the run", s.Name)
	}
	out.For = &api.CreateMachineInput{
		Machine: in.Machine, Name: name, Run: dryRun, Disks: s.Protected, CPUs: s.VM.CPUs, Memory: s.VM.MemoryMB,
		Target: s.TargetSpec, Network: out.Network, Test: test, Tags: s.TargetSpec.Tags, Firmware: s.VM.Firmware, GuestID: s.VM.GuestID,
	}
	return out, nil
}
