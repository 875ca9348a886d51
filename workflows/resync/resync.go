// Package resync has the runbooks of base passes over a machine's disks, the
// initial replication and the resync, and the window that starts resyncs.
package resync

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// Params of a base pass. They stand in histories.
type Params struct {
	Grant  api.GrantInput  `json:"grant"`  // with its assignment
	Assign api.AssignInput `json:"assign"` // with the same assignment
	Cause  string          `json:"cause"`
	// Rescan reads the stored bytes instead of trusting the checksum map.
	Rescan bool `json:"rescan,omitempty"`
}

// InitialReplication copies a machine's disks for the first time. Nothing is put
// back when it fails: what was copied already is used by the resync that follows.
func InitialReplication(ctx workflow.Context, p Params) (api.Transfer, error) {
	return base(ctx, "initial replication of ", p, false)
}

// Resync compares the machine's disks with the replica by their checksums and
// moves the difference, in a new generation: until it is complete the old
// recovery points stay what they are.
func Resync(ctx workflow.Context, p Params) (api.Transfer, error) {
	return base(ctx, "resync of ", p, true)
}

// base lets the machine in before its agent is told to come, so that it never
// finds a closed door.
func base(ctx workflow.Context, title string, p Params, newGeneration bool) (api.Transfer, error) {
	var moved api.Transfer
	if p.Grant.Machine.IsZero() || p.Grant.Assignment.Server == "" || p.Grant.Assignment != p.Assign.Assignment {
		return moved, fault.New(api.CodeInvalid, "%s%s: grant and assignment must name the same server", title, p.Grant.Name)
	}
	err := runbook.Run(ctx, title+p.Grant.Name, []runbook.Step{
		{Name: "let the machine stream to " + p.Grant.Assignment.Server, Do: func(ctx workflow.Context) error {
			return call.Grant(ctx, p.Grant)
		}},
		{Name: "tell the agent where to stream", Do: func(ctx workflow.Context) error {
			return call.Assign(ctx, p.Assign)
		}},
		{Name: "compare and copy the disks", Do: func(ctx workflow.Context) (err error) {
			moved, err = call.Base(ctx, api.BaseInput{
				GrantInput: p.Grant, Cause: p.Cause, NewGeneration: newGeneration, Rescan: p.Rescan,
			})
			return err
		}},
	})
	moved.Cause = p.Cause
	return moved, err
}
