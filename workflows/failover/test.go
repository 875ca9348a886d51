package failover

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// TestParams of a test failover. They stand in histories.
type TestParams struct {
	VM      api.VM            `json:"vm"`
	Disks   []api.VMDisk      `json:"disks"`
	Target  api.Target        `json:"target"`
	Request api.ActionRequest `json:"request"`
}

// TestResult of a test failover that passed.
type TestResult struct {
	Point   replica.Point     `json:"point"`
	Machine api.TargetMachine `json:"machine"`
}

// TestWorkflow brings up a copy of the machine in an isolated network, beside
// replication that goes on. It stays up until cleaned up, unless a step fails:
// then all that was made is deleted.
func TestWorkflow(ctx workflow.Context, p TestParams) (TestResult, error) {
	id := workflow.GetInfo(ctx).WorkflowExecution.ID
	hold := &failover{Params: Params{VM: p.VM, Request: p.Request}, id: id}
	machine := func() api.CreateMachineInput {
		in := api.TestOf(p.VM, p.Disks, p.Target, id, hold.out.Point, p.Request.Network)
		in.PlanRun = p.Request.PlanRun
		return in
	}
	if machine().Network == "" {
		return TestResult{}, fault.New(api.CodeInvalid, "test failover of %s: no test network; name one in the request or in the machine's target", p.VM.Name)
	}
	var out TestResult
	ref := api.TargetRef{Name: api.TestName(p.VM), Run: id}
	steps := []runbook.Step{
		{Name: "check that the network is isolated", Do: func(ctx workflow.Context) error {
			wanted := machine()
			return call.CheckNetwork(ctx, api.CheckNetworkInput{Network: wanted.Network, Isolated: true, For: &wanted})
		}},
		{Name: "choose the recovery point", Do: hold.choosePoint, Undo: hold.releasePoint},
		{Name: "create the machine", Do: func(ctx workflow.Context) (err error) {
			out.Machine, err = call.CreateMachine(ctx, machine())
			return err
		}, Undo: func(ctx workflow.Context) error { return call.DeleteMachine(ctx, ref) }},
		{Name: "start the machine", Do: func(ctx workflow.Context) (err error) {
			out.Machine, err = call.StartMachine(ctx, ref)
			return err
		}},
		{Name: "check the machine", Do: func(ctx workflow.Context) error { return call.CheckMachine(ctx, ref) }},
	}
	if err := runbook.Run(ctx, "test failover of "+p.VM.Name, steps); err != nil {
		return TestResult{}, err
	}
	out.Point = hold.out.Point
	return out, nil
}
