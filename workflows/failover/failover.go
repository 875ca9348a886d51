// Package failover has the runbooks that bring a machine up on the target side:
// Failover, planned or not, and TestFailover in an isolated network.
package failover

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// Bounds of a failover.
const (
	shutdownLimit = 5 * time.Minute // of a planned failover, whose source is switched off
	powerOffLimit = time.Minute     // of an unplanned one, beside what the guest has
	revokeLimit   = 2 * time.Minute // to finish what was acknowledged
)

// Params of a failover. They stand in histories.
type Params struct {
	VM       api.VM            `json:"vm"`
	Disks    []api.VMDisk      `json:"disks"`
	Source   api.Assignment    `json:"source"`   // who replicates the machine now
	NewEpoch ident.Epoch       `json:"newEpoch"` // of the target's ownership
	Target   api.Target        `json:"target"`
	Request  api.ActionRequest `json:"request"`
	Asked    time.Time         `json:"asked"`    // when the request was accepted
	LastSeen time.Time         `json:"lastSeen"` // when the source was last known to stream
}

// Result of a failover.
type Result struct {
	Point    replica.Point     `json:"point"`
	Machine  api.TargetMachine `json:"machine"`
	RPO      api.Duration      `json:"rpo"`
	RTO      api.Duration      `json:"rto"`
	Loss     api.Duration      `json:"loss"`
	Warnings []string          `json:"warnings,omitempty"`
	// SourceOff: the source was found switched off; a roll-back leaves it so.
	SourceOff bool `json:"sourceOff,omitempty"`
}

// failover is one run of the runbook.
type failover struct {
	Params
	id       string // of the workflow: it is in the target's tags and owns the hold
	final    *replica.Point
	held     *replica.Point
	shutdown *api.ShutdownResult
	heard    time.Time
	out      Result
}

// Workflow fails a machine over. When a step fails or the run is cancelled, what
// was done is put back; the caller then lets the source replicate again under a
// newer epoch than Params.NewEpoch.
func Workflow(ctx workflow.Context, p Params) (Result, error) {
	if err := p.validate(); err != nil {
		return Result{}, err
	}
	f := &failover{Params: p, id: workflow.GetInfo(ctx).WorkflowExecution.ID, heard: p.LastSeen}
	title, steps := "unplanned failover of "+p.VM.Name, f.unplanned()
	if p.Request.Planned {
		title, steps = "planned failover of "+p.VM.Name, f.planned()
	}
	if err := runbook.Run(ctx, title, append(steps, f.common()...)); err != nil {
		return Result{}, err
	}
	f.measure(ctx)
	return f.out, nil
}

func (p Params) validate() error {
	switch {
	case p.VM.Machine.IsZero():
		return fault.New(api.CodeInvalid, "failover: no machine given")
	case len(p.Disks) == 0:
		return fault.New(api.CodeInvalid, "failover of %s: no disks given", p.VM.Name)
	case p.NewEpoch <= p.Source.Epoch:
		return fault.New(api.CodeInvalid, "failover of %s: epoch %d does not follow %d", p.VM.Name, p.NewEpoch, p.Source.Epoch)
	}
	return nil
}

// planned: the source makes a last recovery point and must go down cleanly.
func (f *failover) planned() []runbook.Step {
	steps := []runbook.Step{{Name: "check the target network", Do: f.checkNetwork}}
	if f.Request.Verify {
		steps = append(steps, runbook.Step{Name: "compare the source with its replica", Do: f.compare})
	}
	return append(steps, []runbook.Step{
		{Name: "make the final recovery point", Do: f.finalCut, Undo: f.release},
		{Name: "power off the frozen source", Do: f.powerOff, Undo: f.powerOn},
	}...)
}

// unplanned: the source goes down if it can be reached.
func (f *failover) unplanned() []runbook.Step {
	return []runbook.Step{
		{Name: "check the target network", Do: f.checkNetwork},
		{Name: "check that there is a recovery point", Do: f.holdAny, Undo: f.releaseHeld},
		{Name: "shut down the source if it can be reached", Do: f.tryShutdown, Undo: f.powerOn},
	}
}

// common: from here on both kinds are the same. The epoch is raised before
// anything runs on the target.
func (f *failover) common() []runbook.Step {
	return []runbook.Step{
		{Name: "finish what was acknowledged", Do: f.revoke},
		{Name: "tell the agents to stand by", Do: f.unassign},
		{Name: "fence the source", Do: f.fence},
		{Name: "choose the recovery point", Do: f.choosePoint, Undo: f.releasePoint},
		{Name: "create the machine", Do: f.create, Undo: f.remove},
		{Name: "start the machine", Do: f.start},
		{Name: "check the machine", Do: f.check},
	}
}

// checkNetwork comes first: a wrong network, or a machine that the target would
// refuse, then costs nothing.
func (f *failover) checkNetwork(ctx workflow.Context) error {
	machine := f.machine()
	return call.CheckNetwork(ctx, api.CheckNetworkInput{Network: f.Target.Network, For: &machine})
}

// compare reads every block of the source while it runs on; what differed is sent again
// before the final cut.
func (f *failover) compare(ctx workflow.Context) error {
	return call.Compare(ctx, api.VerifyInput{
		Machine: f.VM.Machine, Name: f.VM.Name, Epoch: f.Source.Epoch, Server: f.Source.Server, By: f.Request.By,
	})
}

func (f *failover) finalCut(ctx workflow.Context) error {
	point, err := call.FinalCut(ctx, f.Source.Server, f.oldOwner())
	if err == nil {
		f.final = &point
	}
	return err
}

// release thaws the source. A stream that was ended meanwhile has nothing frozen.
func (f *failover) release(ctx workflow.Context) error {
	err := call.Release(ctx, f.Source.Server, f.oldOwner())
	if fault.Code(err) == api.CodeNotFound {
		return nil
	}
	return err
}

func (f *failover) powerOff(ctx workflow.Context) error {
	r, err := call.ShutdownVM(ctx, api.ShutdownInput{
		VMRef: f.source(), Limit: api.Duration(shutdownLimit), Force: true, Freeze: true,
	}, shutdownLimit)
	if err != nil {
		return fault.Wrap(api.CodeSourceRunning, err, "the source could not be powered off: %s", fault.Message(err))
	}
	f.wentDown(ctx, r)
	return nil
}

// tryShutdown gives the guest its time, and switches the source off if that was asked for.
// It goes on with a source that may run only for a stated reason.
func (f *failover) tryShutdown(ctx workflow.Context) error {
	how := f.Request.Shutdown
	r, err := call.ShutdownVM(ctx, api.ShutdownInput{
		VMRef: f.source(), Limit: api.Duration(how.Within()), Force: how.ThenPowerOff,
	}, how.Within()+powerOffLimit)
	switch {
	case err == nil:
		f.wentDown(ctx, r)
	case fault.Cancelled(err):
		return err
	case f.Request.Reason == "":
		return fault.Wrap(api.CodeSourceRunning, err,
			"the source could not be shut down (%s) and may still be running; shut it down by hand, have it switched off then (--then-power-off; "+
				"a plan's shutdown.thenPowerOff), or give a reason to fail over without", fault.Message(err))
	default:
		f.warn("the source could not be shut down: %s; make sure that it stays off (reason given: %s)", fault.Message(err), f.Request.Reason)
	}
	return nil
}

func (f *failover) wentDown(ctx workflow.Context, r api.ShutdownResult) {
	f.shutdown, f.out.SourceOff = &r, !r.WasOn
	if r.WasOn {
		f.heard = workflow.Now(ctx)
	}
}

// powerOn starts the source again unless it is known to have been off.
func (f *failover) powerOn(ctx workflow.Context) error {
	if f.shutdown != nil && !f.shutdown.WasOn {
		return nil
	}
	return call.PowerOnVM(ctx, f.source())
}

// revoke is a courtesy of the old server: the fence does not need it.
func (f *failover) revoke(ctx workflow.Context) error {
	err := call.Revoke(ctx, f.Source.Server, f.oldOwner(), revokeLimit)
	if err != nil && !fault.Cancelled(err) {
		f.warn("%s could not finish what it had acknowledged: %s", f.Source.Server, fault.Message(err))
		return nil
	}
	return err
}

func (f *failover) unassign(ctx workflow.Context) error {
	return call.Unassign(ctx, api.UnassignInput{Machine: f.VM.Machine, Reason: "failed over"})
}

func (f *failover) fence(ctx workflow.Context) error {
	return call.Fence(ctx, api.FenceInput{Machine: f.VM.Machine, Epoch: f.NewEpoch})
}

func (f *failover) create(ctx workflow.Context) error {
	m, err := call.CreateMachine(ctx, f.machine())
	f.out.Machine = m
	return err
}

// machine is the one to make.
func (f *failover) machine() api.CreateMachineInput {
	in := api.MachineOf(f.VM, f.Disks, f.Target, f.id, f.out.Point)
	in.PlanRun = f.Request.PlanRun
	return in
}

func (f *failover) remove(ctx workflow.Context) error { return call.DeleteMachine(ctx, f.target()) }

func (f *failover) start(ctx workflow.Context) error {
	m, err := call.StartMachine(ctx, f.target())
	if err == nil {
		f.out.Machine = m
	}
	return err
}

func (f *failover) check(ctx workflow.Context) error { return call.CheckMachine(ctx, f.target()) }

// measure fills in what the failover cost.
func (f *failover) measure(ctx workflow.Context) {
	f.out.RTO = api.Duration(workflow.Now(ctx).Sub(f.Asked))
	f.out.RPO = api.Duration(max(f.Asked.Sub(f.out.Point.Time), 0))
	if f.Request.Planned {
		return // nothing is lost: the source was frozen at the point
	}
	heard := f.heard
	if heard.IsZero() {
		heard = f.Asked // nothing is known: the most it can be
	}
	f.out.Loss = api.Duration(max(heard.Sub(f.out.Point.Time), 0))
}

func (f *failover) warn(format string, args ...any) {
	f.out.Warnings = append(f.out.Warnings, fmt.Sprintf(format, args...))
}

func (f *failover) source() api.VMRef {
	return api.VMRef{VCenter: f.VM.VCenter, InstanceUUID: f.VM.InstanceUUID}
}

func (f *failover) target() api.TargetRef { return api.TargetRef{Name: f.VM.Name, Run: f.id} }

func (f *failover) oldOwner() api.FenceInput {
	return api.FenceInput{Machine: f.VM.Machine, Epoch: f.Source.Epoch}
}
