package machine

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/stream"
	"drover/workflows/api"
)

// bootPatience is how long the agent has, from when the VM is on again, to say that its
// guest booted. Then the machine is marked for resync.
const bootPatience = 15 * time.Minute

// happened takes what discovery saw happen to the VM.
func (e *entity) happened(ctx workflow.Context, ev api.VMEvent) {
	switch {
	case ev.Machine != e.s.Machine || ev.Instance != "" && ev.Instance != e.s.VM.InstanceUUID:
	case ev.Kind == api.VMGone:
		e.raise(ctx, api.Problem{
			Code: api.CodeVMGone, Component: "vCenter", Cause: ev.Text, Health: api.Critical,
			Action: "If that was meant, unprotect the machine. If not, register the VM again, or fail over: the recovery points are there.",
		})
	case e.reverse() || !e.streams():
		// Drover itself brings the VM down and up, or a resync compares all anyway.
	case e.s.Booted.After(ev.At):
		// The agent has told of a boot since: it compares the disks by itself.
	default:
		e.forced(ctx, ev)
	}
}

// streams reports whether the source is to replicate now.
func (e *entity) streams() bool {
	return e.s.State == api.StateProtected || e.s.State == api.StatePaused
}

// forced notes a stop that was not clean. What is right the agent knows: after a boot it
// compares its disks with the replica, and no recovery point is lost. Only if it does not
// tell of one, vCenter's word marks the machine for resync.
func (e *entity) forced(ctx workflow.Context, ev api.VMEvent) {
	f := api.ForcedStop{Kind: ev.Kind, Text: ev.Text, At: ev.At}
	if e.s.Agent != nil {
		f.Boot = e.s.Agent.BootID
	}
	waiting := e.s.Forced != nil
	if waiting {
		f.Boot = e.s.Forced.Boot
	}
	e.s.Forced = &f
	e.raise(ctx, api.Problem{
		Code: api.CodeForcedShutdown, Component: "vCenter", Cause: fmt.Sprintf("the VM was stopped without its guest's doing: %s at %s", f.Kind, f.At.UTC().Format(time.RFC3339)),
		Evidence: ev.Text, Health: api.Warning,
		Action: "Nothing: when the guest is up its agent compares the disks with the replica. If it does not, the machine is marked for resync.",
	})
	if !waiting {
		workflow.Go(ctx, e.awaitBoot)
	}
}

// booted notes that the agent runs in another boot of its guest than before.
func (e *entity) booted(ctx workflow.Context, before *api.AgentReport, r api.AgentReport) {
	if r.BootID == "" || before != nil && before.BootID == r.BootID {
		return
	}
	e.s.Booted = workflow.Now(ctx)
	if f := e.s.Forced; f != nil && f.Boot != r.BootID && e.sourceReports() {
		e.s.Forced = nil
		e.clear(ctx, api.CodeForcedShutdown)
	}
}

// awaitBoot marks the machine for resync when the VM is on and its agent says nothing of
// a boot.
func (e *entity) awaitBoot(ctx workflow.Context) {
	for e.s.Forced != nil {
		if err := workflow.Await(ctx, func() bool { return e.s.Forced == nil || e.s.VM.PoweredOn }); err != nil {
			return
		}
		over, err := workflow.AwaitWithTimeout(ctx, bootPatience, func() bool { return e.s.Forced == nil || !e.s.VM.PoweredOn })
		if err != nil {
			return
		}
		if over {
			continue
		}
		f := *e.s.Forced
		e.s.Forced = nil
		if e.s.State != api.StateProtected {
			return // whatever goes on ends it: a resume, a resync, a failover
		}
		e.broken(ctx, stream.Broken{
			Code: api.CodeForcedShutdown, Since: f.At,
			Cause: fmt.Sprintf("the VM was stopped without its guest's doing (%s at %s), and its agent does not say that the guest booted since",
				f.Kind, f.At.UTC().Format(time.RFC3339)),
		})
		if e.background != nil {
			e.background.stopped = true
			e.background.cancel()
		}
		return
	}
}
