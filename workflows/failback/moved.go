package failback

import (
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
)

// Moved is what a run that ends with a base pass came to.
type Moved struct {
	Assignment api.Assignment `json:"assignment"`
	Transfer   api.Transfer   `json:"transfer"`
	Warnings   []string       `json:"warnings,omitempty"`
	// Made is the VM that a reprotect made; nil: it took the original.
	Made *MadeVM `json:"made,omitempty"`
}

// MadeVM is a VM with the run that made it.
type MadeVM struct {
	api.MadeVM
	Run string `json:"run"`
}

// move gives a machine to a server and has it brought up to date there: what
// reprotect and re-enable have in common, in opposite directions.
type move struct {
	what   string // for people: "reprotect" or "re-enable"
	input  api.GrantInput
	tell   api.AssignInput
	rescan bool // the replica's disks have content that nobody vouches for
	out    Moved
}

// choose picks a server of the role, for the machine's copy with the hardware uuid.
func (m *move) choose(ctx workflow.Context, role ident.Role, site, instance string, epoch ident.Epoch) error {
	a, err := call.ChooseServer(ctx, api.ChooseServerInput{Machine: m.input.Machine, Role: role, Site: site, Group: m.tell.Group}, serverLimit)
	if err != nil {
		return err
	}
	a.Role, a.Epoch, a.Instance = role, epoch, instance
	m.out.Assignment, m.input.Assignment, m.tell.Assignment = a, a, a
	return nil
}

func (m *move) grant(ctx workflow.Context) error { return call.Grant(ctx, m.input) }

func (m *move) revoke(ctx workflow.Context) error {
	owner := api.FenceInput{Machine: m.input.Machine, Epoch: m.out.Assignment.Epoch}
	return call.Revoke(ctx, m.out.Assignment.Server, owner, revokeLimit)
}

func (m *move) assign(ctx workflow.Context) error { return call.Assign(ctx, m.tell) }

func (m *move) unassign(ctx workflow.Context) error {
	return call.Unassign(ctx, api.UnassignInput{Machine: m.input.Machine, Reason: m.what + " failed"})
}

// base takes only the blocks that differ.
func (m *move) base(ctx workflow.Context) (err error) {
	m.out.Transfer, err = call.Base(ctx, api.BaseInput{GrantInput: m.input, Cause: m.what, NewGeneration: true, Rescan: m.rescan})
	m.out.Transfer.Cause = m.what
	return err
}
