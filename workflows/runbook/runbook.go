// Package runbook runs numbered steps one after the other and, when one fails or
// the run is cancelled, puts back what the steps before it did, last first.
//
// The undo of a step is registered before the step is begun, because a step that
// failed or ran out of time may still have taken effect; so an undo must be
// harmless when there is nothing to put back. Undo runs on a disconnected
// context: a cancelled run still cleans up after itself.
package runbook

import (
	"fmt"
	"strings"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// Step is one line of a runbook.
type Step struct {
	Name string
	Do   func(workflow.Context) error
	Undo func(workflow.Context) error // nil: nothing to put back
}

// Report says how a run that failed or was cancelled ended. It is the detail of
// the run's error; see [ReportOf].
type Report struct {
	Step   string     `json:"step"`   // that failed, or was not begun any more
	Begun  []string   `json:"begun"`  // in order, the failed one included
	Undone []string   `json:"undone"` // in the order they were put back
	Left   []Leftover `json:"left,omitempty"`
}

// Leftover is a step that could not be put back.
type Leftover struct {
	Step   string `json:"step"`
	Reason string `json:"reason"`
}

// ReportOf reads the report from the error of a run, or of the workflow that
// returned it.
func ReportOf(err error) (Report, bool) {
	var r Report
	ok := err != nil && fault.Details(err, &r)
	return r, ok && r.Step != ""
}

// HasBegun reports whether the step was begun, and so may have taken effect.
func (r Report) HasBegun(step string) bool {
	for _, s := range r.Begun {
		if s == step {
			return true
		}
	}
	return false
}

// run is a runbook under way.
type run struct {
	steps  []Step
	status api.RunbookStatus
	report Report
}

// Run does the steps. While it runs, the workflow answers the status query with
// an api.RunbookStatus and tells its parent where it is. The error carries the
// code of the step that failed and a Report; a cancelled run ends as cancelled.
func Run(ctx workflow.Context, title string, steps []Step) error {
	r := &run{steps: steps, status: api.RunbookStatus{Title: title}}
	for _, s := range steps {
		r.status.Steps = append(r.status.Steps, api.RunbookStep{Name: s.Name, State: api.StepPending})
	}
	query := func() (api.RunbookStatus, error) { return r.status, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return fmt.Errorf("runbook %s: query handler: %w", title, err)
	}
	for i := range steps {
		if err := r.do(ctx, i); err != nil {
			r.back(ctx, i)
			return r.failure(err)
		}
	}
	workflow.SetCurrentDetails(ctx, title+": done")
	return nil
}

// do begins step i, unless the run was cancelled.
func (r *run) do(ctx workflow.Context, i int) error {
	r.report.Step = r.steps[i].Name
	if err := ctx.Err(); err != nil {
		return err
	}
	r.report.Begun = append(r.report.Begun, r.steps[i].Name)
	r.status.Steps[i].State = api.StepRunning
	r.status.Steps[i].Started = workflow.Now(ctx)
	r.tell(ctx, fmt.Sprintf("%d/%d %s", i+1, len(r.steps), r.steps[i].Name))
	err := r.steps[i].Do(ctx)
	r.status.Steps[i].Finished = workflow.Now(ctx)
	r.status.Steps[i].State = api.StepDone
	if err != nil {
		r.status.Steps[i].State = api.StepFailed
		r.status.Steps[i].Message = fault.Message(err)
	}
	return err
}

// back undoes the steps begun, from step i down. Every undo is tried, whatever
// became of the others.
func (r *run) back(ctx workflow.Context, i int) {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	for ; i >= 0; i-- {
		step, line := r.steps[i], &r.status.Steps[i]
		if step.Undo == nil || line.State == api.StepPending {
			continue
		}
		line.Undo = api.StepRunning
		r.tell(ctx, "putting back: "+step.Name)
		if err := step.Undo(ctx); err != nil {
			line.Undo = api.StepFailed
			r.report.Left = append(r.report.Left, Leftover{Step: step.Name, Reason: fault.Message(err)})
			workflow.GetLogger(ctx).Error("step could not be put back", "step", step.Name, "error", err)
			continue
		}
		line.Undo = api.StepDone
		r.report.Undone = append(r.report.Undone, step.Name)
	}
}

// failure makes the run's error.
func (r *run) failure(err error) error {
	if fault.Cancelled(err) {
		return fault.CancelledWithDetails(r.report)
	}
	text := fmt.Sprintf("%s: %s: %s", r.status.Title, r.report.Step, fault.Message(err))
	if len(r.report.Left) > 0 {
		text += "; could not put back: " + describe(r.report.Left)
	}
	return fault.WithDetails(fault.Code(err), err, r.report, "%s", text)
}

func describe(left []Leftover) string {
	lines := make([]string, len(left))
	for i, l := range left {
		lines[i] = l.Step + " (" + l.Reason + ")"
	}
	return strings.Join(lines, ", ")
}

// Describe gives what was left as text for people, "" for nothing.
func (r Report) Describe() string { return describe(r.Left) }

// tell shows the step in the UI and tells the parent.
func (r *run) tell(ctx workflow.Context, step string) { show(ctx, r.status.Title+": "+step, step) }

// Note shows what a step waits for, as a step is shown.
func Note(ctx workflow.Context, text string) { show(ctx, text, text) }

// show tells the UI and the parent. Nobody waits for the signal: a parent that is gone
// needs no news.
func show(ctx workflow.Context, details, step string) {
	workflow.SetCurrentDetails(ctx, details)
	info := workflow.GetInfo(ctx)
	if info.ParentWorkflowExecution == nil {
		return
	}
	progress := api.StepProgress{Run: info.WorkflowExecution.ID, Step: step}
	workflow.SignalExternalWorkflow(ctx, info.ParentWorkflowExecution.ID, "", api.SignalStep, progress)
}
