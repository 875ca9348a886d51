package resync

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// lookAgain is between two looks at what there is to do; the end of a resync makes
// another.
const lookAgain = 5 * time.Minute

// window is one opening of a policy's resync window.
type window struct {
	in      api.ResyncWindowInput
	status  api.ResyncWindowStatus
	servers []string // of those that run, in the order of status.Running
	tried   map[ident.MachineID]bool
	work    api.ResyncWork
	changed bool // a resync has ended since the last look
	closing bool
}

// Window is what a Temporal Schedule starts when a policy's resync window opens, and
// every hour while it is open: it resynchronises the policy's machines that are marked
// for it, so many at once per process server as the policy says. What has not ended
// with the window is stopped, and the next window goes on with it. A machine whose
// resync fails shows the cause, and the next opening tries it again.
func Window(ctx workflow.Context, in api.ResyncWindowInput) (api.ResyncWindowResult, error) {
	w := &window{in: in, tried: map[ident.MachineID]bool{}}
	if in.Policy == "" {
		return w.status.ResyncWindowResult, fault.New(api.CodeInvalid, "resync window: no policy named")
	}
	query := func() (api.ResyncWindowStatus, error) { return w.status, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return w.status.ResyncWindowResult, err
	}
	err := w.run(ctx)
	w.close(ctx)
	w.status.Message = w.summary()
	return w.status.ResyncWindowResult, err
}

// run looks and starts until there is nothing to do, or the window ends.
func (w *window) run(ctx workflow.Context) error {
	for {
		if err := w.look(ctx); err != nil {
			return err
		}
		if !w.work.Open {
			return nil
		}
		w.start(ctx)
		if len(w.status.Running) == 0 {
			return nil
		}
		pause := lookAgain
		if !w.work.Ends.IsZero() {
			pause = min(pause, w.work.Ends.Sub(workflow.Now(ctx)))
		}
		w.changed = false
		if _, err := workflow.AwaitWithTimeout(ctx, max(pause, time.Second), func() bool { return w.changed }); err != nil {
			return err
		}
	}
}

func (w *window) look(ctx workflow.Context) (err error) {
	in := api.ResyncWorkInput{Policy: w.in.Policy, Now: w.in.Now}
	for _, m := range w.status.Running {
		in.Mine = append(in.Mine, m.Machine)
	}
	if w.work, err = call.ResyncWork(ctx, in); err != nil {
		return err
	}
	w.status.Ends = w.work.Ends
	return nil
}

// start begins as many resyncs as there is room for on each server.
func (w *window) start(ctx workflow.Context) {
	busy := slices.Concat(w.servers, w.work.Others)
	for _, c := range w.work.Marked {
		if w.tried[c.Member.Machine] || count(busy, c.Server) >= w.work.AtOnce {
			continue
		}
		busy = append(busy, c.Server)
		w.tried[c.Member.Machine] = true
		w.status.Running, w.servers = append(w.status.Running, c.Member), append(w.servers, c.Server)
		workflow.Go(ctx, func(ctx workflow.Context) { w.resync(ctx, c) })
	}
	workflow.SetCurrentDetails(ctx, w.summary())
}

// resync has one machine resynchronised, and notes what became of it.
func (w *window) resync(ctx workflow.Context, c api.ResyncCandidate) {
	ctx, done := workflow.NewDisconnectedContext(ctx) // a cancelled window stops its resyncs itself
	defer done()
	result, err := call.MachineAction(ctx, api.MachineActionInput{Machine: c.Member.Machine, Action: api.ActionResync, Request: api.ActionRequest{
		RequestID: w.request(ctx, "resync", c.Member), By: "resync window", Reason: "resync window of policy " + w.in.Policy, OnlyIfRequired: true,
	}})
	i := slices.IndexFunc(w.status.Running, func(m api.VaultMember) bool { return m.Machine == c.Member.Machine })
	w.status.Running, w.servers = slices.Delete(w.status.Running, i, i+1), slices.Delete(w.servers, i, i+1)
	switch {
	case err == nil && result.State != api.StateResyncRequired:
		w.status.Resynced = append(w.status.Resynced, c.Member)
	case err == nil || fault.Code(err) == api.CodeResyncPaused:
		w.status.Paused = append(w.status.Paused, c.Member)
	default:
		w.status.Failed = append(w.status.Failed, c.Member)
		workflow.GetLogger(ctx).Warn("resync failed", "machine", c.Member.Name, "error", err)
	}
	w.changed = true
	if !w.closing {
		workflow.SetCurrentDetails(ctx, w.summary())
	}
}

// close stops what runs still, and waits for its end.
func (w *window) close(ctx workflow.Context) {
	ctx, done := workflow.NewDisconnectedContext(ctx)
	defer done()
	w.closing = true
	for _, m := range slices.Clone(w.status.Running) {
		workflow.Go(ctx, func(ctx workflow.Context) {
			_, err := call.MachineAction(ctx, api.MachineActionInput{Machine: m.Machine, Action: api.ActionStopResync, Request: api.ActionRequest{
				RequestID: w.request(ctx, "stop", m), By: "resync window", Window: true,
			}})
			if err != nil && fault.Code(err) != api.CodeNotInState { // it has just ended
				workflow.GetLogger(ctx).Warn("resync could not be stopped", "machine", m.Name, "error", err)
			}
		})
	}
	if err := workflow.Await(ctx, func() bool { return len(w.status.Running) == 0 }); err != nil {
		workflow.GetLogger(ctx).Warn("the window's resyncs did not end", "error", err)
	}
}

// request names a request of this run for a machine: asked again, it is the same.
func (w *window) request(ctx workflow.Context, what string, m api.VaultMember) string {
	return workflow.GetInfo(ctx).WorkflowExecution.RunID + "-" + what + "-" + m.Machine.String()
}

func (w *window) summary() string {
	text := fmt.Sprintf("policy %s: %d resynchronised, %d failed, %d paused", w.in.Policy, len(w.status.Resynced), len(w.status.Failed), len(w.status.Paused))
	if len(w.status.Running) > 0 {
		text += fmt.Sprintf(", %d running", len(w.status.Running))
	}
	if w.work.Reason != "" {
		text += "; " + w.work.Reason
	}
	return text
}

func count(list []string, s string) int {
	n := 0
	for _, x := range list {
		if x == s {
			n++
		}
	}
	return n
}
