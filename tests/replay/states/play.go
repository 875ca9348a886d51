package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// scene is a run of the plan, with what people do when it is in a state.
type scene struct {
	in    api.PlanRunInput
	fails []string // calls, once each
	does  []move
	ends  string
	then  api.State // of the machine
}

// move is what is done when the run is in the state.
type move struct {
	at, what, step string
}

// scenes come to every state that a run of a plan can be in.
var scenes = []scene{
	{in: api.PlanRunInput{Kind: api.PlanPlanned, DryRun: true}, ends: api.RunDone, then: api.StateProtected},
	{in: api.PlanRunInput{Kind: api.PlanPlanned, Verify: true}, fails: []string{api.ActStartMachine},
		does: []move{{api.RunStopped, api.PlanRetry, ""}, {api.RunWaiting, api.PlanApprove, ""}}, ends: api.RunDone, then: api.StateFailedOver},
	{in: api.PlanRunInput{Kind: api.PlanRollBack}, ends: api.RunDone, then: api.StateProtected},
	{in: api.PlanRunInput{Kind: api.PlanUnplanned, Reason: "a drill"}, fails: []string{api.ActShutdownVM, "after/tell"},
		does: []move{{api.RunStopped, api.PlanBack, ""}}, ends: api.RunUndone, then: api.StateProtected},
	{in: api.PlanRunInput{Kind: api.PlanPlanned}, fails: []string{"before/announce"},
		does: []move{{api.RunStopped, api.PlanSkip, ""}, {api.RunWaiting, api.PlanPause, ""}, {api.RunWaiting, api.PlanApprove, ""}, {api.RunPaused, api.PlanCancel, ""}},
		ends: api.RunCancelled, then: api.StateFailedOver},
	// It is failed over already: these pass over it.
	{in: api.PlanRunInput{Kind: api.PlanPlanned}, does: []move{{api.RunWaiting, api.PlanReject, ""}, {api.RunStopped, api.PlanCancel, ""}},
		ends: api.RunCancelled, then: api.StateFailedOver},
	{in: api.PlanRunInput{Kind: api.PlanPlanned}, does: []move{{api.RunWaiting, api.PlanApprove, ""}}, ends: api.RunDone, then: api.StateFailedOver},
	{in: api.PlanRunInput{Kind: api.PlanCommit}, fails: []string{api.ActReleasePoint}, does: []move{{api.RunStopped, api.PlanRetry, ""}}, ends: api.RunDone, then: api.StateCommitted},
	{in: api.PlanRunInput{Kind: api.PlanReturn, PauseBetween: true}, fails: []string{api.ActDetachDisks},
		does: []move{{api.RunPaused, api.PlanResume, ""}, {api.RunStopped, api.PlanRetry, ""}, {api.RunPaused, api.PlanResume, ""}}, ends: api.RunDone, then: api.StateProtected},
	{in: api.PlanRunInput{Kind: api.PlanTest, CleanAfter: api.Duration(time.Second)}, ends: api.RunDone, then: api.StateProtected},
}

// play plays the scenes, and what single machines do besides.
func (p *player) play(ctx context.Context) error {
	for i, s := range scenes {
		if err := p.scene(ctx, s); err != nil {
			return fmt.Errorf("scene %d, %s: %w", i+1, s.in.Kind, err)
		}
	}
	return errors.Join(p.others(ctx), p.alone(ctx))
}

func (p *player) scene(ctx context.Context, s scene) error {
	p.runs++
	id := fmt.Sprintf("plan-states-%d", p.runs)
	for _, name := range s.fails {
		p.model.Fail(name)
	}
	s.in.Plan, s.in.By = plan().Name, "anna"
	if _, err := p.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: api.ControlQueue}, api.WorkflowRecoveryPlan, s.in); err != nil {
		return err
	}
	for _, m := range s.does {
		if err := p.await(ctx, id, m.at); err != nil {
			return err
		}
		if err := p.say(ctx, id, m); err != nil {
			return err
		}
	}
	if err := p.await(ctx, id, s.ends); err != nil {
		return err
	}
	return p.machineIs(ctx, s.then)
}

func (p *player) say(ctx context.Context, run string, m move) error {
	h, err := p.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: run, UpdateName: m.what, Args: []any{api.StepDecision{Step: m.step, By: "anna"}}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.what, err)
	}
	return nil
}

// await waits until the run is in the state.
func (p *player) await(ctx context.Context, run, state string) error {
	var s api.PlanStatus
	err := p.until(ctx, func() (bool, error) {
		v, err := p.QueryWorkflow(ctx, run, "", api.QueryStatus)
		if err == nil {
			err = v.Get(&s)
		}
		return s.State == state, err
	})
	if err != nil {
		return fmt.Errorf("wait for %s (it is %s: %s): %w", state, s.State, s.Message, err)
	}
	return nil
}

func (p *player) machineIs(ctx context.Context, state api.State) error {
	var s api.MachineStatus
	err := p.until(ctx, func() (_ bool, err error) {
		s, err = p.status(ctx)
		return s.State == state && s.Doing == "" && len(s.Timers) == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for the machine to be %s (it is %s, %s): %w", state, s.State, s.Doing, err)
	}
	return nil
}

func (p *player) until(ctx context.Context, f func() (bool, error)) error {
	deadline := time.Now().Add(startLimit)
	for {
		ok, err := f()
		switch {
		case ok:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("not within %s: %w", startLimit, err)
		}
		time.Sleep(pause)
	}
}

// alone are actions of the machine without a plan.
func (p *player) alone(ctx context.Context) error {
	for _, a := range []struct {
		action string
		r      api.ActionRequest
		then   api.State
	}{
		{api.ActionFailover, api.ActionRequest{Planned: true}, api.StateFailedOver},
		{api.ActionChangePoint, api.ActionRequest{Point: api.PointCustom, PointID: ident.Seq(1)}, api.StateFailedOver},
		{api.ActionRollBack, api.ActionRequest{}, api.StateProtected},
		{api.ActionFailover, api.ActionRequest{Planned: true, CommitAfter: api.Duration(time.Second), OnTimer: api.ActionRollBack}, api.StateProtected},
		{api.ActionFailover, api.ActionRequest{Planned: true, CommitAfter: api.Duration(time.Second)}, api.StateCommitted},
		{api.ActionReprotect, api.ActionRequest{}, api.StateProtectedReverse},
		{api.ActionRollBack, api.ActionRequest{}, api.StateCommitted},
		{api.ActionReprotect, api.ActionRequest{}, api.StateProtectedReverse},
		{api.ActionFailback, api.ActionRequest{Verify: true}, api.StateFailedBack},
		{api.ActionRollBack, api.ActionRequest{}, api.StateCommitted},
	} {
		p.acts++
		a.r.RequestID, a.r.By = fmt.Sprintf("alone-%d", p.acts), "anna"
		if _, err := p.act(ctx, api.MachineActionInput{Machine: p.machine.VM.Machine, Action: a.action, Request: a.r}); err != nil {
			return fmt.Errorf("%s: %w", a.action, err)
		}
		if err := p.machineIs(ctx, a.then); err != nil {
			return fmt.Errorf("%s: %w", a.action, err)
		}
	}
	return nil
}
