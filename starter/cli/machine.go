package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

// progressPause is between two looks at what a machine is doing.
const progressPause = time.Second

// act asks a machine for an action and waits for its end, telling what it does
// meanwhile. Interrupted, it stops waiting; the action goes on.
func (a *app) act(ctx context.Context, name, action string, request api.ActionRequest) error {
	m, err := a.member(ctx, name)
	if err != nil {
		return err
	}
	request.RequestID, request.By = uuid.NewString(), by()
	id := api.MachineWorkflowID(m.Machine)
	if action == api.ActionFailover || action == api.ActionTestFailover {
		a.noteGuest(ctx, id, m.Name)
	}
	accepted, cancel := context.WithTimeout(ctx, updateTimeout)
	handle, err := a.client.UpdateWorkflow(accepted, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: action, UpdateID: request.RequestID, Args: []any{request},
		WaitForStage: client.WorkflowUpdateStageAccepted,
	})
	cancel()
	if err != nil {
		return err
	}
	watch, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); a.narrate(watch, id, m.Name) }()
	var result api.ActionResult
	err = handle.Get(ctx, &result)
	stop()
	<-done
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("no longer waiting; %s of %s goes on: see drover status %s", action, m.Name, m.Name)
		}
		return err
	}
	return a.print(result, func(w io.Writer) { printResult(w, result) })
}

// noteGuest tells what speaks against the guest's boot in the target, before it is brought
// up there. It keeps nothing from being done.
func (a *app) noteGuest(ctx context.Context, id, name string) {
	s, err := query[api.MachineStatus](ctx, a, id)
	if err != nil || s.Agent == nil {
		return // it is told when asked for; a failover does not wait for it
	}
	for _, line := range against(s.Agent.Preflight) {
		a.note("%s may not boot in the target: %s", name, line)
	}
}

// narrate tells every new step until the context ends.
func (a *app) narrate(ctx context.Context, id, name string) {
	last := ""
	for {
		if s, err := query[api.MachineStatus](ctx, a, id); err == nil && s.Doing != last && s.Doing != "" {
			last = s.Doing
			a.note("%s: %s", name, s.Doing)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(progressPause):
		}
	}
}

func printResult(w io.Writer, r api.ActionResult) {
	_, _ = fmt.Fprintf(w, "%s: %s, now %s\n", r.Name, r.Message, r.State)
	if r.Point != nil {
		_, _ = fmt.Fprintf(w, "  recovery point %d of %s (%s-consistent)\n", r.Point.ID, r.Point.Time.Format(time.RFC3339), r.Point.Consistency)
	}
	if r.Target != nil {
		_, _ = fmt.Fprintf(w, "  machine %s at %s in network %s\n", r.Target.Name, r.Target.Address, r.Target.Network)
	}
	if r.RTO != 0 {
		_, _ = fmt.Fprintf(w, "  RPO %s, RTO %s, lost %s\n", r.RPO, r.RTO, r.Loss)
	}
	if t := r.Transfer; t != nil {
		_, _ = fmt.Fprintf(w, "  moved %s of data for %s of disk in %s\n", size(t.DataBytes), size(t.DiskBytes), t.Took.D().Round(100*time.Millisecond))
	}
}

// verb makes the command of an action that needs nothing but the machine.
func (a *app) verb(use, short, long, action string) *cobra.Command {
	return &cobra.Command{
		Use: use + " VM", Short: short, Long: long,
		Example: "  drover " + use + " db-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), args[0], action, api.ActionRequest{})
		},
	}
}
