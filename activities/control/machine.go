package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// reattach is the type of an error after which only the waiting is repeated. It
// is none of the codes on purpose: those are answers of the machine.
const reattach = "Reattach"

// lostUpdate is Temporal's type for an update that was accepted by a run of the
// entity that has ended since (it goes on in a new run).
const lostUpdate = "AcceptedUpdateCompletedWorkflow"

// MachineAction runs an action of a machine's entity and waits for its end. The
// update carries the request's id, so a second try waits for the same action.
// An answer of the machine, good or bad, is given on as it is, with its code.
func (c *Control) MachineAction(ctx context.Context, in api.MachineActionInput) (api.ActionResult, error) {
	var out api.ActionResult
	if in.Request.RequestID == "" || in.Machine.IsZero() || !slices.Contains(api.MachineActions, in.Action) {
		return out, activityerr.New(api.CodeInvalid, "action %q of machine %s: machine, request id and a known action are needed", in.Action, in.Machine)
	}
	ctx, stop := c.waiting(ctx, in.Action)
	defer stop()
	handle, err := c.Client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		UpdateID:     in.Request.RequestID,
		WorkflowID:   api.MachineWorkflowID(in.Machine),
		UpdateName:   in.Action,
		Args:         []any{in.Request},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = handle.Get(ctx, &out)
	}
	return out.Brief(), answer(ctx, in, err)
}

// answer sorts the error of an update into answers, which are final, and waits
// that were cut short.
func answer(ctx context.Context, in api.MachineActionInput, err error) error {
	var app *temporal.ApplicationError
	var missing *serviceerror.NotFound
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errStopping):
		return again(errStopping, in)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &app) && isCode(app.Type()):
		return app
	case errors.As(err, &app) && app.Type() != lostUpdate:
		return activityerr.Wrap(api.CodeInternal, err, "%s of machine %s: %s", in.Action, in.Machine, app.Message())
	case errors.As(err, &missing):
		return activityerr.Wrap(api.CodeNotFound, err, "%s of machine %s: it is not under protection", in.Action, in.Machine)
	}
	return again(err, in)
}

func again(err error, in api.MachineActionInput) error {
	return temporal.NewApplicationErrorWithCause(
		fmt.Sprintf("wait for %s of machine %s (request %s): %v", in.Action, in.Machine, in.Request.RequestID, err), reattach, err)
}

var errStopping = errors.New("the configuration server is stopping; the waiting is taken up again when it is back")

// waiting gives a context that also ends when the worker stops, and heartbeats
// until stop is called.
func (c *Control) waiting(ctx context.Context, detail string) (waiting context.Context, stop func()) {
	waiting, cancel := context.WithCancelCause(ctx)
	var beats sync.WaitGroup
	beats.Go(func() {
		ticker := time.NewTicker(c.heartbeatEvery)
		defer ticker.Stop()
		for {
			activity.RecordHeartbeat(ctx, detail)
			select {
			case <-waiting.Done():
				return
			case <-activity.GetWorkerStopChannel(ctx):
				cancel(errStopping)
				return
			case <-ticker.C:
			}
		}
	})
	return waiting, func() { cancel(nil); beats.Wait() }
}
