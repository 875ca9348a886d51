// Package failback has the runbooks of the way back: Reprotect (replicate from
// the target side to the original disks), Failback (bring the original machine
// up again) and Reenable (replicate from it as before).
package failback

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// Bounds of the three runbooks.
const (
	guestShutdown = 2 * time.Minute // then the power goes off
	shutdownLimit = 10 * time.Minute
	serverLimit   = 5 * time.Minute  // to find a server to take the machine
	agentLimit    = 30 * time.Minute // for a started machine's agent to call home
	revokeLimit   = 5 * time.Minute  // to finish what was acknowledged and close the disks
)

// ReprotectParams stand in histories.
type ReprotectParams struct {
	VM       api.VM            `json:"vm"` // the original
	Disks    []api.VMDisk      `json:"disks"`
	Target   api.TargetMachine `json:"target"`   // runs now; its agent is the source
	NewEpoch ident.Epoch       `json:"newEpoch"` // of the master target's ownership
	Site     string            `json:"site,omitempty"`
	// Grant and Assign are complete but for the assignment, which this run makes.
	Grant  api.GrantInput  `json:"grant"`
	Assign api.AssignInput `json:"assign"`
}

type reprotect struct {
	ReprotectParams
	move
}

// Reprotect attaches the original machine's disks to a master target and moves
// the difference on to them. When a step fails the disks are detached again; the
// machine on the target side runs on, whatever happens here.
func Reprotect(ctx workflow.Context, p ReprotectParams) (Moved, error) {
	if p.Target.Instance == "" || len(p.Disks) == 0 {
		return Moved{}, fault.New(api.CodeInvalid, "reprotect of %s: the target machine's hardware uuid or the disks are missing", p.VM.Name)
	}
	p.Grant.Attached = true
	r := &reprotect{p, move{what: "reprotect", input: p.Grant, tell: p.Assign, rescan: true}}
	err := runbook.Run(ctx, "reprotect of "+p.VM.Name, []runbook.Step{
		{Name: "make sure that the original is off", Do: r.shutdown},
		{Name: "choose a master target", Do: r.choose},
		{Name: "attach the original's disks to the master target", Do: r.attach, Undo: r.detach},
		{Name: "wait for the agent on the target machine", Do: r.await},
		{Name: "let the machine stream to the master target", Do: r.grant, Undo: r.revoke},
		{Name: "tell the agent where to stream", Do: r.assign, Undo: r.unassign},
		{Name: "compare and copy the difference", Do: r.base},
	})
	return r.out, err
}

// shutdown must succeed: two running machines would both write to the disks.
func (r *reprotect) shutdown(ctx workflow.Context) error {
	_, err := call.ShutdownVM(ctx, api.ShutdownInput{
		VMRef: ref(r.VM), Limit: api.Duration(guestShutdown), Force: true,
	}, shutdownLimit)
	if err != nil && !fault.Cancelled(err) {
		return fault.Wrap(api.CodeSourceRunning, err,
			"the original must be off before its disks are attached, and could not be shut down: %s", fault.Message(err))
	}
	return err
}

func (r *reprotect) choose(ctx workflow.Context) error {
	return r.move.choose(ctx, ident.RoleMasterTarget, r.Site, r.Target.Instance, r.NewEpoch)
}

func (r *reprotect) attachment() api.AttachInput {
	return api.AttachInput{Original: ref(r.VM), MasterTarget: r.out.Assignment.Server, Disks: r.Disks}
}

func (r *reprotect) attach(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.AttachDisks(ctx, r.attachment()) })
}

func (r *reprotect) detach(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.DetachDisks(ctx, r.attachment()) })
}

func (r *reprotect) await(ctx workflow.Context) error {
	_, err := call.AwaitAgent(ctx, api.AwaitAgentInput{Machine: r.VM.Machine, Instance: r.Target.Instance}, agentLimit)
	return noAgent(err, "the target machine "+r.Target.Name)
}

func ref(vm api.VM) api.VMRef {
	return api.VMRef{VCenter: vm.VCenter, InstanceUUID: vm.InstanceUUID}
}

// noAgent says which agent did not come when waiting for it ran out of time.
func noAgent(err error, where string) error {
	if err == nil || fault.Cancelled(err) {
		return err
	}
	return fault.Wrap(api.CodeNoAgent, err,
		"no agent called from %s within %s (%s); check its service and that it reaches the configuration server", where, agentLimit, fault.Message(err))
}
