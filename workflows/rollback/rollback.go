// Package rollback has the runbooks that take a machine a step back while that is still
// possible: a failover that is not committed, a reprotect, a failback; and the one that
// makes a failed-over machine anew from another recovery point.
//
// All of them give up what the side that they stop has written since.
package rollback

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

const (
	guestShutdown = 5 * time.Minute
	shutdownLimit = 10 * time.Minute
	revokeLimit   = 10 * time.Minute
)

// Params of a roll-back. They stand in histories.
type Params struct {
	From      api.State         `json:"from"` // the state that is left
	VM        api.VM            `json:"vm"`   // the original
	Disks     []api.VMDisk      `json:"disks"`
	Target    api.TargetMachine `json:"target"`
	TargetRun string            `json:"targetRun"`
	Owner     api.Assignment    `json:"owner"`    // of the machine now
	NewEpoch  ident.Epoch       `json:"newEpoch"` // shuts out whoever writes now
	Point     ident.Seq         `json:"point,omitempty"`
	SourceOff bool              `json:"sourceOff,omitempty"` // leave the source switched off
	Reason    string            `json:"reason,omitempty"`
	// Unmake is the VM that the reprotect made; nil: it took the original.
	Unmake *api.UnmakeVMInput `json:"unmake,omitempty"`
}

// Result of a roll-back.
type Result struct {
	Warnings []string `json:"warnings,omitempty"`
}

type rollback struct {
	Params
	out Result
}

// Workflow takes the machine back. When a step fails, what was done is put back, and the
// machine is as it was, but for its epoch.
func Workflow(ctx workflow.Context, p Params) (Result, error) {
	r := &rollback{Params: p}
	title, steps := "", []runbook.Step(nil)
	switch p.From {
	case api.StateFailedOver:
		title, steps = "roll back the failover of "+p.VM.Name, r.failover()
	case api.StateProtectedReverse:
		title, steps = "roll back the reprotect of "+p.VM.Name, r.reprotect()
	case api.StateFailedBack:
		title, steps = "roll back the failback of "+p.VM.Name, r.failback()
	default:
		return Result{}, fault.New(api.CodeNotInState, "roll-back of %s: nothing can be rolled back in state %s", p.VM.Name, p.From)
	}
	if p.NewEpoch <= p.Owner.Epoch {
		return Result{}, fault.New(api.CodeInvalid, "%s: epoch %d does not follow %d", title, p.NewEpoch, p.Owner.Epoch)
	}
	return r.out, runbook.Run(ctx, title, steps)
}

// failover: never are both sides up; the target's machine is there until the source runs.
func (r *rollback) failover() []runbook.Step {
	return []runbook.Step{
		{Name: "stop the target machine", Do: r.stopTarget, Undo: r.startTarget},
		{Name: "fence the target", Do: r.fence},
		{Name: "power on the source", Do: r.powerOnSource, Undo: r.shutdown},
		{Name: "delete the target machine and let go of its recovery point", Do: r.clean}, // the last: it cannot be put back
	}
}

// reprotect: the target's machine goes on alone, as after the commit.
func (r *rollback) reprotect() []runbook.Step {
	steps := []runbook.Step{
		{Name: "tell the agents to stand by", Do: r.unassign},
		{Name: "finish what was acknowledged and close the disks", Do: r.revoke},
		{Name: "fence the master target", Do: r.fence},
		{Name: "detach the disks from the master target", Do: r.detach, Undo: r.attach},
	}
	if r.Unmake != nil {
		steps = append(steps, runbook.Step{Name: "delete the VM that was made", Do: r.unmake}) // the last: it cannot be put back
	}
	return steps
}

// unmake does not keep the machine for the sake of a leftover, nor for a cancellation that
// comes late.
func (r *rollback) unmake(ctx workflow.Context) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if err := call.UnmakeVM(ctx, *r.Unmake); err != nil {
		r.warn("VM %s that was made in vCenter %s could not be deleted, delete it by hand: %s", r.VM.Name, r.Unmake.VCenter, fault.Message(err))
	}
	return nil
}

// failback: the original goes down again before the target's machine comes up.
func (r *rollback) failback() []runbook.Step {
	return []runbook.Step{
		{Name: "shut down the original", Do: r.shutdown, Undo: r.powerOn},
		{Name: "fence the original", Do: r.fence},
		{Name: "start the target machine", Do: r.startTarget, Undo: r.stopTarget},
		{Name: "check the target machine", Do: func(ctx workflow.Context) error { return call.CheckMachine(ctx, r.target()) }},
	}
}

func (r *rollback) stopTarget(ctx workflow.Context) error { return call.StopMachine(ctx, r.target()) }

func (r *rollback) startTarget(ctx workflow.Context) error {
	_, err := call.StartMachine(ctx, r.target())
	return err
}

func (r *rollback) fence(ctx workflow.Context) error {
	return call.Fence(ctx, api.FenceInput{Machine: r.VM.Machine, Epoch: r.NewEpoch})
}

// powerOnSource goes on without a source that cannot be reached only for a stated reason.
func (r *rollback) powerOnSource(ctx workflow.Context) error {
	if r.SourceOff {
		return nil
	}
	err := r.powerOn(ctx)
	switch {
	case err == nil || fault.Cancelled(err):
		return err
	case r.Reason == "":
		return fault.Wrap(fault.Code(err), err,
			"the source could not be powered on (%s); mend that, or give a reason to roll back without and power it on by hand", fault.Message(err))
	}
	r.warn("the source could not be powered on: %s; power it on by hand (reason given: %s)", fault.Message(err), r.Reason)
	return nil
}

func (r *rollback) powerOn(ctx workflow.Context) error { return call.PowerOnVM(ctx, r.source()) }

func (r *rollback) shutdown(ctx workflow.Context) error {
	if r.From == api.StateFailedOver && r.SourceOff {
		return nil
	}
	_, err := call.ShutdownVM(ctx, api.ShutdownInput{VMRef: r.source(), Limit: api.Duration(guestShutdown), Force: true}, shutdownLimit)
	return err
}

// clean does not put back a source that runs for the sake of a leftover, nor for a
// cancellation that comes late.
func (r *rollback) clean(ctx workflow.Context) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if err := call.DeleteMachine(ctx, r.target()); err != nil {
		r.warn("target machine %s could not be deleted, delete it by hand: %s", r.Target.Name, fault.Message(err))
	}
	if r.Point == 0 {
		return nil
	}
	err := call.ReleasePoint(ctx, api.ReleasePointInput{Machine: r.VM.Machine, Point: r.Point, Owner: r.TargetRun})
	if err != nil {
		r.warn("the hold on recovery point %d could not be released: %s; it ends by itself", r.Point, fault.Message(err))
	}
	return nil
}

func (r *rollback) unassign(ctx workflow.Context) error {
	return call.Unassign(ctx, api.UnassignInput{Machine: r.VM.Machine, Reason: "reprotect was rolled back"})
}

func (r *rollback) revoke(ctx workflow.Context) error {
	return call.Revoke(ctx, r.Owner.Server, api.FenceInput{Machine: r.VM.Machine, Epoch: r.Owner.Epoch}, revokeLimit)
}

func (r *rollback) attachment() api.AttachInput {
	return api.AttachInput{Original: r.source(), MasterTarget: r.Owner.Server, Disks: r.Disks}
}

func (r *rollback) detach(ctx workflow.Context) error { return call.DetachDisks(ctx, r.attachment()) }
func (r *rollback) attach(ctx workflow.Context) error { return call.AttachDisks(ctx, r.attachment()) }

func (r *rollback) source() api.VMRef {
	return api.VMRef{VCenter: r.VM.VCenter, InstanceUUID: r.VM.InstanceUUID}
}

func (r *rollback) target() api.TargetRef {
	return api.TargetRef{Name: r.Target.Name, Run: r.TargetRun}
}

func (r *rollback) warn(format string, args ...any) {
	r.out.Warnings = append(r.out.Warnings, fmt.Sprintf(format, args...))
}
