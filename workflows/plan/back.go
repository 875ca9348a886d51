package plan

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// undo takes back what the run did to its machines, the last group first and the
// machines of a group together. A machine whose action failed has put it back itself.
// Scripts and other actions of the plan are not undone.
func (r *run) undo(ctx workflow.Context) error {
	r.undoing = true
	defer func() { r.undoing = false }()
	r.mood(ctx)
	for end := len(r.steps); end > 0; {
		if r.cancelled != "" {
			return nil
		}
		from := end - 1
		for from > 0 && r.steps[from].machine != nil && r.steps[from-1].group == r.steps[from].group && r.steps[from-1].kind == r.steps[from].kind {
			from--
		}
		if err := r.undoTogether(ctx, from, end); err != nil {
			return err
		}
		end = from
	}
	return nil
}

func (r *run) undoTogether(ctx workflow.Context, from, to int) error {
	var steps []int
	for i := from; i < to; i++ {
		if r.undoable(i) {
			steps = append(steps, i)
		}
	}
	return firstOf(atOnce(ctx, len(steps), func(ctx workflow.Context, i int) error { return r.undoStep(ctx, steps[i]) }))
}

// undoable reports whether step i did something to its machine that can be taken back. A
// roll-back of a failback takes the reprotect before it along.
func (r *run) undoable(i int) bool {
	s, line := r.steps[i], r.status.Steps[i]
	if s.machine == nil || line.State != api.StepDone || api.UndoOf(s.kind) == "" {
		return false
	}
	return !slices.ContainsFunc(r.status.Steps[i+1:], func(later api.PlanStep) bool {
		return later.Kind == kindMachine && later.Name == line.Name && later.Undo == api.StepDone
	})
}

// undoStep takes one machine back; when that fails, people say how it goes on.
func (r *run) undoStep(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	for {
		s.undos++
		line.Undo = api.StepRunning
		r.show(ctx)
		out, err := r.act(ctx, api.MachineActionInput{Machine: s.machine.Machine, Action: api.UndoOf(s.kind), Request: api.ActionRequest{
			RequestID: fmt.Sprintf("%s/%s/%s/undo-%d", r.id, workflow.GetInfo(ctx).OriginalRunID, line.ID, s.undos),
			By:        r.back, Reason: "roll-back of plan run " + r.id, PlanRun: r.id,
		}})
		if err == nil {
			line.Undo, line.Message = api.StepDone, out.Message
			r.show(ctx)
			return nil
		}
		line.Undo, line.Message = api.StepFailed, fault.Message(err)
		if fault.Cancelled(err) || s.undos >= maxTries {
			return err
		}
		failure := fault.Wrap(codeOf(err), err, "step %s could not be taken back: %s", line.ID, fault.Message(err))
		d, err := r.ask(ctx, i, askFailed, r.holdFor())
		switch {
		case fault.Cancelled(err):
			return err
		case err != nil:
			return failure
		case d.what == api.PlanSkip:
			line.Undo, line.By = api.StepSkipped, d.By
			return nil
		}
	}
}
