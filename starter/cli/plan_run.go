package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// planPause is between two looks at a run that is waited for.
const planPause = time.Second

// maxRunNumber bounds the search for a run's free number.
const maxRunNumber = 100_000

// planRun is a run with its workflow id.
type planRun struct {
	Run string `json:"run"`
	api.PlanStatus
}

// planKinds are the flags that say what a run does.
var planKinds = []struct {
	kind api.PlanKind
	help string
}{
	{api.PlanTest, "test failover in isolated networks"},
	{api.PlanCleanup, "delete what a test made"},
	{api.PlanPlanned, "failover with both sides there; nothing is lost"},
	{api.PlanUnplanned, "failover from the points that exist"},
	{api.PlanCommit, "make the failovers final"},
	{api.PlanReprotect, "failback, phase 1: replicate back on to the original disks"},
	{api.PlanFailback, "failback, phase 2: bring the original machines up"},
	{api.PlanReenable, "failback, phase 3: replicate as before"},
	{api.PlanReturn, "all three phases of failback, one after the other"},
	{api.PlanRollBack, "take failovers that are not committed, a reprotect or a failback back"},
}

func (a *app) planRunCommand() *cobra.Command {
	in := api.PlanRunInput{}
	var wait, dry bool
	var point pointFlags
	var more runFlags
	chosen := make([]bool, len(planKinds))
	cmd := &cobra.Command{
		Use:   "run PLAN --test|--planned|--unplanned|...",
		Short: "Run a plan",
		Long: "Run a plan over all its machines: groups one after the other, the machines of a group at the same time.\n" +
			"Without --wait it is started and its name is printed; see drover plan status. With --wait the steps are shown until\n" +
			"the end, or until the run waits for a person (exit code 6) or has stopped at a step that failed (exit code 1): what it did stays,\n" +
			"and drover plan retry, skip, back or cancel say how it goes on. With --dry-run nothing is done: what would be is shown, with\n" +
			"the time it took in runs before, what has changed in the plan since it was tested, and why it would fail (exit code 1).",
		Example: "  drover plan run shop --planned --dry-run\n  drover plan run shop --test --wait\n  drover plan run shop --cleanup --wait\n  drover plan run shop --unplanned --reason \"site A burns\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Plan, in.By = args[0], by()
			var err error
			if in.Kind, err = kindOf(chosen); err != nil {
				return err
			}
			var r api.ActionRequest
			if err := point.into(&r); err != nil {
				return err
			}
			in.Point = r.Point
			if err := more.into(&in); err != nil {
				return err
			}
			if dry && wait {
				return &usageError{errors.New("--dry-run does nothing that could be waited for: leave out --wait")}
			}
			if dry {
				return a.dryPlan(cmd.Context(), in)
			}
			return a.runPlan(cmd.Context(), in, wait)
		},
	}
	f := cmd.Flags()
	for i, k := range planKinds {
		f.BoolVar(&chosen[i], string(k.kind), false, k.help)
	}
	f.BoolVar(&dry, "dry-run", false, "show what the run would do, how long that took before, and what would fail; do nothing")
	f.BoolVar(&wait, "wait", false, "wait for the end, showing the steps")
	f.StringVar(&in.Network, "network", "", "test: isolated network instead of the machines' own")
	f.StringVar(&in.Reason, "reason", "", "why; needed when a source cannot be shut down")
	f.StringVar(&point.choice, "point", string(api.PointLatest), pointHelp)
	more.add(cmd, &in)
	return cmd
}

// runFlags are those of what a run does besides.
type runFlags struct {
	timer     timerFlags
	ttl, hold time.Duration
	points    map[string]int64
}

func (r *runFlags) add(cmd *cobra.Command, in *api.PlanRunInput) {
	f := cmd.Flags()
	f.StringToInt64Var(&r.points, "point-id", nil, "machines' recovery points by number, as drover points lists them: db-1=214,app-1=97")
	f.BoolVar(&in.Verify, "verify", false, "planned, failback: compare every source with its replica first; it reads all disks")
	f.DurationVar(&r.ttl, "ttl", 0, "test: clean up by itself after so long")
	f.DurationVar(&r.hold, "hold", 0, "how long a run that stopped at a failed step can be gone on with (default: a day)")
	f.BoolVar(&in.PauseBetween, "pause-between", false, "return: pause before the second and the third phase")
	r.timer.add(cmd)
}

func (r *runFlags) into(in *api.PlanRunInput) (err error) {
	in.Points = map[string]ident.Seq{}
	for name, id := range r.points {
		if id <= 0 {
			return &usageError{fmt.Errorf("--point-id %s=%d: want a recovery point's number", name, id)}
		}
		in.Points[name] = ident.Seq(id)
	}
	in.CleanAfter, in.HoldFor = api.Duration(r.ttl), api.Duration(r.hold)
	in.CommitAfter, in.OnTimer, err = r.timer.into()
	return err
}

func (a *app) runPlan(ctx context.Context, in api.PlanRunInput, wait bool) error {
	v, err := a.vault(ctx)
	if err != nil {
		return err
	}
	known := false
	for _, p := range v.Plans {
		known = known || p.Plan.Name == in.Plan
	}
	if !known {
		return unknownPlan(in.Plan)
	}
	id, err := a.startPlan(ctx, in)
	if err != nil {
		return err
	}
	if wait {
		return a.followPlan(ctx, id)
	}
	return a.print(planRun{id, api.PlanStatus{Plan: in.Plan, Kind: in.Kind, State: api.RunRunning, Started: time.Now()}}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s is running; follow it with drover plan status %s\n", id, id)
	})
}

// startPlan starts a run under the next free number.
func (a *app) startPlan(ctx context.Context, in api.PlanRunInput) (string, error) {
	count, err := a.client.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{
		Namespace: a.namespace, Query: planQuery(in.Plan),
	})
	if err != nil {
		return "", err
	}
	for n := count.GetCount() + 1; n < maxRunNumber; n++ {
		id := fmt.Sprintf("plan-%s-%d", in.Plan, n)
		_, err := a.client.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
			ID: id, TaskQueue: api.ControlQueue,
			WorkflowIDReusePolicy:                    enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
			WorkflowIDConflictPolicy:                 enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
			WorkflowExecutionErrorWhenAlreadyStarted: true,
			StaticSummary:                            fmt.Sprintf("plan %s, %s", in.Plan, in.Kind),
		}, api.WorkflowRecoveryPlan, in)
		var taken *serviceerror.WorkflowExecutionAlreadyStarted
		if errors.As(err, &taken) {
			continue
		}
		return id, err
	}
	return "", fmt.Errorf("plan %s has %d runs: no number is left", in.Plan, maxRunNumber)
}

// planQuery finds the runs of a plan by their ids.
func planQuery(plan string) string {
	return fmt.Sprintf("WorkflowType='%s' AND WorkflowId STARTS_WITH 'plan-%s-'", api.WorkflowRecoveryPlan, plan)
}

// followPlan shows the steps of a run until its end, or until it waits.
func (a *app) followPlan(ctx context.Context, id string) error {
	seen := map[string]api.StepState{}
	for {
		s, err := query[api.PlanStatus](ctx, a, id)
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, step := range s.Steps {
			if step.State != seen[step.ID] && step.State != api.StepPending {
				seen[step.ID] = step.State
				a.note("%-8s %s %s", step.State, step.ID, firstLine(step.Message))
			}
		}
		switch s.State {
		case "", api.RunRunning, api.RunBack:
		case api.RunStopped:
			if err := a.print(planRun{id, s}, func(w io.Writer) { printPlan(w, id, s) }); err != nil {
				return err
			}
			return fmt.Errorf("plan run %s stopped: %s; go on with drover plan retry, skip, back or cancel %s", id, stoppedAt(s), id)
		case api.RunWaiting, api.RunPaused:
			if err := a.print(planRun{id, s}, func(io.Writer) {}); err != nil {
				return err
			}
			return &waitsError{id, waiting(s)}
		default:
			if err := a.print(planRun{id, s}, func(w io.Writer) { printPlan(w, id, s) }); err != nil {
				return err
			}
			if s.State != api.RunDone {
				return fmt.Errorf("plan run %s: %s: %s", id, s.State, s.Message)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no longer waiting; the run goes on: see drover plan status %s", id)
		case <-time.After(planPause):
		}
	}
}

func waiting(s api.PlanStatus) string {
	for _, step := range s.Steps {
		if step.State == api.StepWaiting {
			return step.ID
		}
	}
	return ""
}

// stoppedAt says at which steps the run stopped, and why.
func stoppedAt(s api.PlanStatus) string {
	var at []string
	for _, step := range s.Steps {
		if step.State == api.StepFailed {
			at = append(at, step.ID+": "+firstLine(step.Message))
		}
	}
	return strings.Join(at, "; ")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func printPlan(w io.Writer, id string, s api.PlanStatus) {
	_, _ = fmt.Fprintf(w, "%s: %s, %s, %s\n", id, s.Plan, s.Kind, s.State)
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"step", "kind", "state", "took", "by", "message"})
	for _, step := range s.Steps {
		took := "-"
		if !step.Finished.IsZero() {
			took = step.Finished.Sub(step.Started).Round(100 * time.Millisecond).String()
		}
		state := string(step.State)
		if step.Undo != "" {
			state += ", undo " + string(step.Undo)
		}
		t.AppendRow(table.Row{step.ID, step.Kind, state, took, step.By, firstLine(step.Message)})
	}
	t.Render()
	if s.RTO != 0 && s.Kind.BringsUp() {
		_, _ = fmt.Fprintf(w, "RTO of the whole: %s\n", seconds(s.RTO))
	}
	if s.Message != "" {
		_, _ = fmt.Fprintln(w, s.Message)
	}
}
