package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"drover/workflows/api"
)

// others are workflows that neither a plan nor a machine starts: a schedule or a person
// does.
func (p *player) others(ctx context.Context) error {
	for _, o := range []struct {
		workflow string
		in       any
		fails    bool
	}{
		{api.WorkflowResyncWindow, api.ResyncWindowInput{Policy: "gold"}, false},
		{api.WorkflowCheckVCenter, api.CheckVCenterInput{VCenter: "vc-1", Functions: []string{"protect"}}, false},
		{api.WorkflowPush, api.PushInput{Machine: p.machine.VM.Machine, Name: p.machine.VM.Name, Instance: p.machine.VM.BIOSUUID, Address: "db-1", Credentials: "guests"}, false},
		{api.WorkflowPush, api.PushInput{Machine: p.machine.VM.Machine, Name: p.machine.VM.Name, Address: unreachable, Remove: true}, true},
	} {
		run, err := p.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: api.ControlQueue}, o.workflow, o.in)
		if err == nil {
			err = run.Get(ctx, nil)
		}
		if (err != nil) != o.fails {
			return fmt.Errorf("%s: %w", o.workflow, errors.Join(err, ctx.Err()))
		}
	}
	return nil
}

const unreachable = "nowhere" // a guest

// answer registers what stands for the outside of the others. The window's first look finds
// the machine, the next one nothing.
func (p *player) answer(w worker.Worker) {
	register := func(name string, f any) { w.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	register(api.ActResyncWork, func(context.Context, api.ResyncWorkInput) (api.ResyncWork, error) {
		work := api.ResyncWork{Open: true, Ends: time.Now().Add(time.Hour), AtOnce: 1}
		if p.looks.Add(1) == 1 {
			work.Marked = []api.ResyncCandidate{{Server: "ps", Member: api.VaultMember{Machine: p.machine.VM.Machine, Name: p.machine.VM.Name, Policy: "gold"}}}
		}
		return work, nil
	})
	register(api.ActCheckVCenter, func(context.Context, api.CheckVCenterInput) (api.VCenterCheck, error) {
		return api.VCenterCheck{User: "drover@vsphere.local", Objects: 3}, nil
	})
	register(api.ActPush, func(_ context.Context, in api.PushInput) (api.PushResult, error) {
		if in.Address == unreachable {
			return api.PushResult{}, errors.New("no route to host")
		}
		return api.PushResult{Started: true, Steps: []api.PushStep{{Name: "package", Result: "installed"}}}, nil
	})
}
