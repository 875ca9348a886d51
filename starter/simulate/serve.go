package simulate

import (
	"context"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"

	"drover/workflows/api"
)

// Model is the model behind a real Temporal worker: it answers the calls of a plan of one
// machine and of that machine.
type Model struct{ w *world }

// NewModel has the plan's one machine protected.
func NewModel(p api.Plan) (*Model, error) {
	o := Options{Plan: p, Kind: api.PlanTest}
	w, err := newWorld(o)
	if err == nil {
		w.begin(o)
	}
	return &Model{w}, err
}

// Input starts the machine's entity.
func (m *Model) Input() api.MachineInput {
	machine := m.w.machines[0]
	return api.MachineInput{VM: machine.vm, Policy: machine.status.PolicySpec, Target: machine.status.TargetSpec, Carry: &api.MachineCarry{
		Status: machine.status, Version: carryVer, Joined: true, Assigned: machine.status.Assignment.Epoch,
	}}
}

// Fail lets the next call of this name fail once; a plan's action is named by its step.
func (m *Model) Fail(name string) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	machine := m.w.machines[0].name
	if _, isCall := m.w.count[Call{Name: name}]; isCall {
		machine = ""
	}
	n := m.w.count[Call{Machine: machine, Name: name}] + 1
	m.w.options.Faults = append(m.w.options.Faults, Fault{Call: Call{machine, name, n}})
}

// Register registers the calls; act runs an action of the machine's entity, status asks it.
func (m *Model) Register(r Registry, act func(context.Context, api.MachineActionInput) (api.ActionResult, error), status func(context.Context) (api.MachineStatus, error)) {
	machine := m.w.machines[0]
	machine.kill = func(string) {}
	m.w.planCalls(except{r, []string{api.ActMachineAction, api.ActDoneBefore, api.ActReleasePoint}})
	m.w.machineCalls(except{r, []string{api.ActReplicate, api.ActNotify}}, machine, time.Now)
	reg := func(name string, f any) { r.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	reg(api.ActMachineAction, act)
	reg(api.ActDoneBefore, func(ctx context.Context, in api.MachineActionInput) (api.DoneBefore, error) {
		s, err := status(ctx)
		return s.DoneBefore(in.Action), err
	})
	reg(api.ActTargetOf, func(api.PrecheckInput) (api.CheckNetworkInput, error) {
		return api.CheckNetworkInput{Network: "production"}, nil
	})
	reg(api.ActReturnOf, func(api.PrecheckInput) (api.MakeVMInput, error) { return api.MakeVMInput{VM: machine.vm}, nil })
	reg(api.ActReplicate, func(ctx context.Context, _ api.ReplicateInput) (api.ReplicateResult, error) {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			activity.RecordHeartbeat(ctx)
			select {
			case <-ctx.Done():
				return api.ReplicateResult{}, ctx.Err()
			case <-tick.C:
			}
		}
	})
}

// except leaves some calls out.
type except struct {
	Registry
	names []string
}

func (e except) RegisterActivityWithOptions(f any, options activity.RegisterOptions) {
	if !slices.Contains(e.names, options.Name) {
		e.Registry.RegisterActivityWithOptions(f, options)
	}
}
