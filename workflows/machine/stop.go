package machine

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// resyncing reports whether a resync of the source's disks runs.
func (e *entity) resyncing() bool {
	return e.running != nil && e.running.Action == api.ActionResync && e.s.State == api.StateResyncing && !e.reverse()
}

// cancelResync ends the resync that runs; whoever waits for it gets the reason. The next
// one goes on where it was, because what is equal is not sent again.
func (e *entity) cancelResync(why string, held bool) {
	if e.stopping == "" {
		e.stopping, e.s.ResyncHeld = why, held
		e.cancelAction()
	}
}

func stopReason(r api.ActionRequest) string {
	switch {
	case r.Window:
		return "its window closed; it goes on in the next"
	case r.By != "":
		return "stopped by " + r.By
	}
	return "stopped"
}

// stopResync stops the resync and waits until it has ended.
func (e *entity) stopResync(ctx workflow.Context, r api.ActionRequest) (api.ActionResult, error) {
	q := e.running
	e.cancelResync(stopReason(r), !r.Window)
	if err := workflow.Await(ctx, func() bool { return e.running != q }); err != nil {
		return api.ActionResult{}, err
	}
	message := "the resync is stopped; drover resync " + e.s.Name + " goes on"
	if e.s.State != api.StateResyncRequired {
		message = "the resync had ended already"
	}
	return api.ActionResult{Machine: e.s.Machine, Name: e.s.Name, Action: api.ActionStopResync, State: e.s.State, Message: message}, nil
}

// stopped is the end of a resync that was stopped. Its stream is ended too, unless a
// failover is about to do that: the agent would go on copying.
func (e *entity) stopped(ctx workflow.Context) error {
	why := e.stopping
	ctx, done := workflow.NewDisconnectedContext(ctx)
	defer done()
	if len(e.queue) == 0 {
		if err := call.Unassign(ctx, api.UnassignInput{Machine: e.s.Machine, Reason: "the resync is stopped"}); err != nil {
			e.failed(ctx, "configuration server", "Look at its log.", err)
		}
		owner := api.FenceInput{Machine: e.s.Machine, Epoch: e.s.Assignment.Epoch}
		if err := call.Revoke(ctx, e.s.Assignment.Server, owner, serverLimit); err != nil {
			e.failed(ctx, "process server "+e.s.Assignment.Server, "Look whether it still streams: drover servers.", err)
		}
	}
	e.assigned = 0
	e.raise(ctx, api.Problem{Code: api.CodeResyncPaused, Component: "resync", Cause: "the resync was stopped before its end: " + why, Health: api.Warning})
	e.setState(ctx, api.StateResyncRequired)
	return fault.New(api.CodeResyncPaused, "resync of %s: %s", e.s.Name, why)
}
