// Package plan has the workflow RecoveryPlan: one run of a plan. It is compiled
// into steps first, so that a machine that is not protected or a plan that is not
// there fails the run before anything is changed.
//
//	plan.go    the run, from its beginning to its end
//	compile.go what it will do, step by step
//	steps.go   the steps in their order, and what becomes of one that fails
//	try.go     one try of a step
//	back.go    taking machines back
//	decide.go  what people may decide meanwhile
package plan

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// Defaults and bounds of a run.
const (
	actionTimeout = 5 * time.Minute
	manualTimeout = 24 * time.Hour
	holdTimeout   = 24 * time.Hour // of a run that stopped at a failed step
	maxTries      = 100            // of one step, by hand
	maxNamed      = 20             // machines that a message names
)

// run is a run under way.
type run struct {
	in     api.PlanRunInput
	id     string // workflow id
	status api.PlanStatus
	steps  []step
	groups int
	// shutdown is how the plan brings sources down.
	shutdown api.SourceShutdown
	// decisions by step, not yet taken up
	decided   map[string]decision
	cancelled string // by whom; "" is not
	back      string // who wants it rolled back
	paused    string // by whom
	undoing   bool
	pinned    []api.CommonPoint
}

// Workflow runs a plan. Its result is the status; it fails when the run failed, so
// that it shows as failed in Temporal too.
func Workflow(ctx workflow.Context, in api.PlanRunInput) (api.PlanStatus, error) {
	r := &run{in: in, id: workflow.GetInfo(ctx).WorkflowExecution.ID, decided: map[string]decision{}}
	r.status = api.PlanStatus{Plan: in.Plan, Kind: in.Kind, State: api.RunRunning, Started: workflow.Now(ctx), Steps: []api.PlanStep{}}
	if err := r.handlers(ctx); err != nil {
		return r.status, err
	}
	if err := r.compile(ctx); err != nil {
		return r.end(ctx, err)
	}
	if in.DryRun {
		r.precheck(ctx)
		r.status.Message = "a dry run: nothing was done"
		return r.end(ctx, nil)
	}
	attribute := temporal.NewSearchAttributeKeyKeyword(api.SearchPlan).ValueSet(in.Plan)
	if err := workflow.UpsertTypedSearchAttributes(ctx, attribute); err != nil {
		return r.end(ctx, err)
	}
	r.show(ctx)
	if err := r.pin(ctx); err != nil {
		return r.end(ctx, err)
	}
	defer r.unpin(ctx)
	err := r.play(ctx)
	if r.back != "" && ctx.Err() == nil {
		err = r.undo(ctx)
	}
	return r.end(ctx, err)
}

// end closes the run: with an error when it failed, was cancelled or rolled back.
func (r *run) end(ctx workflow.Context, err error) (api.PlanStatus, error) {
	r.status.Finished = workflow.Now(ctx)
	r.status.RTO = api.Duration(r.status.Finished.Sub(r.status.Started))
	switch {
	case err != nil && !fault.Cancelled(err) && r.cancelled == "":
		r.status.State, r.status.Message = api.RunFailed, fault.Message(err)
	case r.cancelled != "" || fault.Cancelled(err):
		r.status.State, r.status.Message = api.RunCancelled, "cancelled by "+r.by(r.cancelled)
	case r.back != "":
		r.status.State, r.status.Message = api.RunUndone, "rolled back by "+r.back
	default:
		r.status.State = api.RunDone
	}
	if rest := r.rest(); rest != "" && !r.in.DryRun {
		r.status.Message = strings.TrimPrefix(r.status.Message+"; "+rest, "; ")
	}
	r.show(ctx)
	switch {
	case r.status.State == api.RunDone:
		return r.status, nil
	case fault.Cancelled(err):
		return r.status, err
	case err == nil:
		err = fault.New(api.CodeActionFailed, "%s", r.status.Message)
	}
	return r.status, fault.WithDetails(codeOf(err), err, r.status, "plan %s, %s: %s", r.in.Plan, r.in.Kind, r.status.Message)
}

// rest says which machines are done and which are not; "" when all are, or none was begun.
func (r *run) rest() string {
	done, all := 0, 0
	var not []string
	for i, line := range r.status.Steps {
		if r.steps[i].machine == nil {
			continue
		}
		all++
		if line.State == api.StepDone && line.Undo != api.StepDone {
			done++
			continue
		}
		what := string(line.State)
		if line.Undo == api.StepDone {
			what = "taken back"
		}
		if len(not) < maxNamed {
			not = append(not, line.ID+" "+what)
		}
	}
	if done == all || done == 0 {
		return ""
	}
	text := strings.Join(not, ", ")
	if more := all - done - len(not); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%d of %d machines are done; not: %s", done, all, text)
}

func codeOf(err error) string {
	if code := fault.Code(err); code != "" {
		return code
	}
	return api.CodeInternal
}

func (*run) by(who string) string {
	if who == "" {
		return "Temporal"
	}
	return who
}

// show puts the run into the UI: a table in Markdown.
func (r *run) show(ctx workflow.Context) {
	var text strings.Builder
	text.WriteString("### " + r.in.Plan + ", " + string(r.in.Kind) + ": " + r.status.State + " " + r.status.Message + "\n\n| step | state | |\n|---|---|---|\n")
	for _, s := range r.status.Steps {
		text.WriteString("| " + s.ID + " | " + string(s.State) + " | " + firstLine(s.Message) + " |\n")
	}
	workflow.SetCurrentDetails(ctx, text.String())
}

func firstLine(s string) string {
	const most = 120
	for i, c := range s {
		if c == '\n' || i >= most {
			return s[:i]
		}
	}
	return s
}
