package failback

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
	"drover/workflows/runbook"
)

// StepPowerOn is the step after which the original machine may have written to
// its disks: if the failback failed later, the reverse replica needs a resync.
const StepPowerOn = "power on the original"

// Params of a failback. They stand in histories.
type Params struct {
	VM        api.VM            `json:"vm"` // the original
	Disks     []api.VMDisk      `json:"disks"`
	Target    api.TargetMachine `json:"target"`
	TargetRun string            `json:"targetRun"`
	Source    api.Assignment    `json:"source"` // the master target
	NewEpoch  ident.Epoch       `json:"newEpoch"`
	Asked     time.Time         `json:"asked"`
	// Verify compares the target machine with the original's disks first.
	Verify bool `json:"verify,omitempty"`
}

// Result of a failback.
type Result struct {
	Point replica.Point `json:"point"`
	VM    api.VM        `json:"vm"`
	RTO   api.Duration  `json:"rto"`
}

type failback struct {
	Params
	out Result
}

// Workflow brings the original machine up again with all that the target
// machine wrote. It is always planned: both sides are there. When a step fails
// the target machine goes on.
func Workflow(ctx workflow.Context, p Params) (Result, error) {
	if p.Source.Role != ident.RoleMasterTarget || p.NewEpoch <= p.Source.Epoch || len(p.Disks) == 0 {
		return Result{}, fault.New(api.CodeInvalid, "failback of %s: want its master target, disks and an epoch after %d", p.VM.Name, p.Source.Epoch)
	}
	f := &failback{Params: p}
	var steps []runbook.Step
	if p.Verify {
		steps = append(steps, runbook.Step{Name: "compare the target machine with the original's disks", Do: f.compare})
	}
	err := runbook.Run(ctx, "failback of "+p.VM.Name, append(steps, []runbook.Step{
		{Name: "make the final recovery point", Do: f.finalCut, Undo: f.release},
		{Name: "stop the target machine", Do: f.stop, Undo: f.start},
		{Name: "finish what was acknowledged and close the disks", Do: f.revoke},
		{Name: "tell the agents to stand by", Do: f.unassign},
		{Name: "fence the target", Do: f.fence},
		{Name: "detach the disks from the master target", Do: f.detach, Undo: f.attach},
		{Name: StepPowerOn, Do: f.powerOn, Undo: f.powerOff},
		{Name: "check the original", Do: f.verify},
	}...))
	f.out.RTO = api.Duration(workflow.Now(ctx).Sub(p.Asked))
	return f.out, err
}

func (f *failback) compare(ctx workflow.Context) error {
	return call.Compare(ctx, api.VerifyInput{Machine: f.VM.Machine, Name: f.VM.Name, Epoch: f.Source.Epoch, Server: f.Source.Server})
}

func (f *failback) finalCut(ctx workflow.Context) (err error) {
	f.out.Point, err = call.FinalCut(ctx, f.Source.Server, f.oldOwner())
	return err
}

// release thaws the target machine. A stream that was ended has nothing frozen.
func (f *failback) release(ctx workflow.Context) error {
	err := call.Release(ctx, f.Source.Server, f.oldOwner())
	if fault.Code(err) == api.CodeNotFound {
		return nil
	}
	return err
}

func (f *failback) stop(ctx workflow.Context) error { return call.StopMachine(ctx, f.target()) }

func (f *failback) start(ctx workflow.Context) error {
	_, err := call.StartMachine(ctx, f.target())
	return err
}

// revoke must succeed, unlike in a failover: the original starts from these very disks.
func (f *failback) revoke(ctx workflow.Context) error {
	return call.Revoke(ctx, f.Source.Server, f.oldOwner(), revokeLimit)
}

func (f *failback) unassign(ctx workflow.Context) error {
	return call.Unassign(ctx, api.UnassignInput{Machine: f.VM.Machine, Reason: "failed back"})
}

func (f *failback) fence(ctx workflow.Context) error {
	return call.Fence(ctx, api.FenceInput{Machine: f.VM.Machine, Epoch: f.NewEpoch})
}

func (f *failback) attachment() api.AttachInput {
	return api.AttachInput{Original: ref(f.VM), MasterTarget: f.Source.Server, Disks: f.Disks}
}

func (f *failback) detach(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.DetachDisks(ctx, f.attachment()) })
}

func (f *failback) attach(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.AttachDisks(ctx, f.attachment()) })
}

func (f *failback) powerOn(ctx workflow.Context) error {
	return patient(ctx, func(ctx workflow.Context) error { return call.PowerOnVM(ctx, ref(f.VM)) })
}

func (f *failback) powerOff(ctx workflow.Context) error {
	_, err := call.ShutdownVM(ctx, api.ShutdownInput{
		VMRef: ref(f.VM), Limit: api.Duration(guestShutdown), Force: true,
	}, shutdownLimit)
	return err
}

func (f *failback) verify(ctx workflow.Context) (err error) {
	return patient(ctx, func(ctx workflow.Context) error {
		f.out.VM, err = call.VerifyVMReady(ctx, ref(f.VM))
		return err
	})
}

func (f *failback) target() api.TargetRef {
	return api.TargetRef{Name: f.Target.Name, Run: f.TargetRun}
}

func (f *failback) oldOwner() api.FenceInput {
	return api.FenceInput{Machine: f.VM.Machine, Epoch: f.Source.Epoch}
}
