package failback

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// ReenableParams stand in histories.
type ReenableParams struct {
	VM        api.VM             `json:"vm"`
	Target    *api.TargetMachine `json:"target,omitempty"` // what is left of the failover, to be deleted
	TargetRun string             `json:"targetRun,omitempty"`
	NewEpoch  ident.Epoch        `json:"newEpoch"`
	Site      string             `json:"site,omitempty"`
	// Grant and Assign are complete but for the assignment, which this run makes.
	Grant  api.GrantInput  `json:"grant"`
	Assign api.AssignInput `json:"assign"`
}

type reenable struct {
	ReenableParams
	move
}

// Reenable lets the original machine replicate again as before the failover. The
// seed disks are still there, so only the difference moves.
func Reenable(ctx workflow.Context, p ReenableParams) (Moved, error) {
	if p.VM.BIOSUUID == "" || len(p.Grant.Disks) == 0 {
		return Moved{}, fault.New(api.CodeInvalid, "re-enable of %s: its hardware uuid or disks are missing", p.VM.Name)
	}
	p.Grant.Attached = false
	r := &reenable{p, move{what: "re-enable", input: p.Grant, tell: p.Assign}}
	err := runbook.Run(ctx, "re-enable replication of "+p.VM.Name, []runbook.Step{
		{Name: "wait for the agent on the original", Do: r.await},
		{Name: "choose a process server", Do: r.choose},
		{Name: "let the machine stream to the process server", Do: r.grant, Undo: r.revoke},
		{Name: "tell the agent where to stream", Do: r.assign, Undo: r.unassign},
		{Name: "compare and copy the difference", Do: r.base},
		{Name: "delete the target machine", Do: r.clean},
	})
	return r.out, err
}

func (r *reenable) await(ctx workflow.Context) error {
	_, err := call.AwaitAgent(ctx, api.AwaitAgentInput{Machine: r.VM.Machine, Instance: r.VM.BIOSUUID}, agentLimit)
	return noAgent(err, "the original machine "+r.VM.Name)
}

func (r *reenable) choose(ctx workflow.Context) error {
	return r.move.choose(ctx, ident.RoleProcessServer, r.Site, r.VM.BIOSUUID, r.NewEpoch)
}

// clean does not undo a replication that works for the sake of a leftover: the
// machine says what to delete by hand.
func (r *reenable) clean(ctx workflow.Context) error {
	if r.Target == nil {
		return nil
	}
	// A cancellation that comes late leaves nothing behind.
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	err := call.DeleteMachine(ctx, api.TargetRef{Name: r.Target.Name, Run: r.TargetRun})
	if err != nil {
		r.out.Warnings = append(r.out.Warnings, "target machine "+r.Target.Name+" could not be deleted, delete it by hand: "+fault.Message(err))
	}
	return nil
}
