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

// changePath is since when the private connection is tried before disks are attached.
const changePath = "check-path"

// ReprotectParams stand in histories.
type ReprotectParams struct {
	VM       api.VM            `json:"vm"` // the original
	Disks    []api.VMDisk      `json:"disks"`
	Target   api.TargetMachine `json:"target"`   // runs now; its agent is the source
	NewEpoch ident.Epoch       `json:"newEpoch"` // of the master target's ownership
	Site     string            `json:"site,omitempty"`
	// Location is where the VM is made anew; nil: the original is taken.
	Location *api.Location `json:"location,omitempty"`
	// Reason lets it go on when nobody can tell that the original is off.
	Reason string `json:"reason,omitempty"`
	// Grant and Assign are complete but for the assignment, which this run makes.
	Grant  api.GrantInput  `json:"grant"`
	Assign api.AssignInput `json:"assign"`
}

type reprotect struct {
	ReprotectParams
	move
	anew bool // the VM is made anew
}

// Reprotect attaches the original machine's disks, or those of a VM that is made in its
// place, to a master target and moves the difference on to them. When a step fails the
// disks are detached again, and a VM that was made is deleted; the machine on the target
// side runs on, whatever happens here.
func Reprotect(ctx workflow.Context, p ReprotectParams) (Moved, error) {
	if p.Target.Instance == "" || len(p.Disks) == 0 {
		return Moved{}, fault.New(api.CodeInvalid, "reprotect of %s: the target machine's hardware uuid or the disks are missing", p.VM.Name)
	}
	p.Grant.Attached = true
	r := &reprotect{ReprotectParams: p, move: move{what: "reprotect", input: p.Grant, tell: p.Assign, rescan: true}}
	steps := r.place()
	if p.Grant.Target.Relay {
		steps = append(steps, runbook.Step{Name: "have a temporary process server in the target", Do: r.relay, Undo: r.noRelay})
	}
	if workflow.GetVersion(ctx, changePath, workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		steps = append(steps, runbook.Step{Name: "see that the target machine reaches the master target", Do: r.reach, Undo: r.unassign})
	}
	err := runbook.Run(ctx, "reprotect of "+p.VM.Name, append(steps, []runbook.Step{
		{Name: "attach the original's disks to the master target", Do: r.attach, Undo: r.detach},
		{Name: "wait for the agent on the target machine", Do: r.await},
		{Name: "let the machine stream to the master target", Do: r.grant, Undo: r.revoke},
		{Name: "tell the agent where to stream", Do: r.assign, Undo: r.unassign},
		{Name: "compare and copy the difference", Do: r.base},
	}...))
	return r.out, err
}

// place: where the disks are that are written to.
func (r *reprotect) place() []runbook.Step {
	off := runbook.Step{Name: "make sure that the original is off", Do: r.shutdown}
	choose := runbook.Step{Name: "choose a master target", Do: r.choose}
	if r.Location == nil {
		return []runbook.Step{off, choose}
	}
	name := "make the VM anew"
	if r.Location.OnlyIfGone {
		name += ", if the original is gone"
	}
	return []runbook.Step{
		{Name: "check the location", Do: r.checkLocation}, off, choose,
		{Name: name, Do: r.makeVM, Undo: r.unmake},
	}
}

// shutdown must succeed: two running machines would both write to the disks.
func (r *reprotect) shutdown(ctx workflow.Context) error {
	_, err := call.ShutdownVM(ctx, api.ShutdownInput{
		VMRef: ref(r.VM), Limit: api.Duration(guestShutdown), Force: true,
	}, shutdownLimit)
	gone := fault.Code(err) == api.CodeNotFound
	r.anew = r.Location != nil && (gone || !r.Location.OnlyIfGone)
	switch {
	case err == nil || fault.Cancelled(err):
		return err
	case gone && r.anew:
		return nil
	case gone:
		return fault.Wrap(api.CodeVMGone, err, "%s", r.VM.Gone())
	case r.anew && r.Reason != "":
		r.out.Warnings = append(r.out.Warnings, "nobody could tell that the original is off: "+fault.Message(err)+"; make sure that it stays off (reason given: "+r.Reason+")")
		return nil
	case r.anew:
		return fault.Wrap(api.CodeSourceRunning, err,
			"the original could not be shut down (%s) and may be running; shut it down by hand, or give a reason to go on without", fault.Message(err))
	}
	return fault.Wrap(api.CodeSourceRunning, err,
		"the original must be off before its disks are attached, and could not be shut down: %s", fault.Message(err))
}

func (r *reprotect) choose(ctx workflow.Context) error {
	site := r.Site
	if r.anew && r.Location.Site != "" {
		site = r.Location.Site
	}
	return r.move.choose(ctx, ident.RoleMasterTarget, site, r.Target.Instance, r.NewEpoch)
}

// wanted is the VM to make. The run's name stays the same when a worker is lost, and is
// never another's, even when a machine is protected a second time.
func (r *reprotect) wanted(ctx workflow.Context) api.MakeVMInput {
	info := workflow.GetInfo(ctx)
	return api.MakeVMInput{
		VM: r.VM, Disks: r.Disks, At: r.Location, Run: info.WorkflowExecution.ID + "/" + info.OriginalRunID, MasterTarget: r.out.Assignment.Server,
	}
}

// checkLocation comes first: a location that would not do then costs nothing.
func (r *reprotect) checkLocation(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.CheckLocation(ctx, r.wanted(ctx)) })
}

func (r *reprotect) makeVM(ctx workflow.Context) error {
	if !r.anew {
		return nil
	}
	return patient(ctx, func(ctx workflow.Context) error {
		made, err := call.MakeVM(ctx, r.wanted(ctx))
		if err == nil {
			r.out.Made = &MadeVM{MadeVM: made, Run: r.wanted(ctx).Run}
			r.input.Disks = made.Disks
		}
		return err
	})
}

func (r *reprotect) unmake(ctx workflow.Context) error {
	if !r.anew {
		return nil
	}
	w := r.wanted(ctx)
	return patient(ctx, func(ctx workflow.Context) error {
		return call.UnmakeVM(ctx, api.UnmakeVMInput{VCenter: w.VCenter(), Machine: r.VM.Machine, Run: w.Run})
	})
}

// relay has the machine stream by way of a temporary process server, which it shares with
// others on their way back.
func (r *reprotect) relay(ctx workflow.Context) error {
	relay, err := call.AcquireRelay(ctx, api.RelayInput{Machine: r.VM.Machine})
	if err != nil {
		return err
	}
	r.out.Assignment.Via = relay.Address
	r.input.Assignment, r.tell.Assignment = r.out.Assignment, r.out.Assignment
	return nil
}

func (r *reprotect) noRelay(ctx workflow.Context) error {
	return call.ReleaseRelay(ctx, api.RelayInput{Machine: r.VM.Machine})
}

// reach has the agent try the private connection by which it will stream.
func (r *reprotect) reach(ctx workflow.Context) error {
	a, since := r.out.Assignment, workflow.Now(ctx)
	reason := "the way to " + a.Server + " is tried"
	if err := call.Unassign(ctx, api.UnassignInput{Machine: r.VM.Machine, Reason: reason, Reach: &a}); err != nil {
		return err
	}
	got, err := call.AwaitAgent(ctx, api.AwaitAgentInput{Machine: r.VM.Machine, Instance: r.Target.Instance, Since: since, Reach: &a}, agentLimit)
	if err == nil && (got.Report == nil || got.Report.Reached == nil) {
		r.out.Warnings = append(r.out.Warnings, "the agent is too old to try the way to "+a.Server+" beforehand")
	}
	if fault.Code(err) == api.CodeNoPath {
		return err
	}
	return noAgent(err, "the target machine "+r.Target.Name)
}

func (r *reprotect) attachment() api.AttachInput {
	in := api.AttachInput{Original: ref(r.VM), MasterTarget: r.out.Assignment.Server, Disks: r.Disks}
	if r.out.Made != nil {
		in.Original, in.Disks = ref(r.out.Made.VM), r.out.Made.Disks
	}
	return in
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
