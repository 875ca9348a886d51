package plan

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// try does step i once.
func (r *run) try(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	if s.machine != nil {
		return r.tryMachine(ctx, i)
	}
	timeout := s.action.Timeout.D()
	var out api.ActionOutput
	var err error
	switch line.Kind {
	case kindManual:
		return r.tryManual(ctx, i)
	case kindScript:
		out, err = call.Script(ctx, api.ScriptInput{
			Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: s.kind, Script: *s.action.Script,
		}, limit(timeout), s.action.Retries)
	case kindRunbook:
		out, err = call.Runbook(ctx, r.runbook(i), limit(timeout), s.action.Retries)
	default:
		out, err = call.Webhook(ctx, api.WebhookInput{
			Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: s.kind, Webhook: *s.action.Webhook,
		}, limit(timeout), s.action.Retries)
	}
	line.Message = ending(out.Output)
	return err
}

// tryManual waits for a person's word.
func (r *run) tryManual(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	timeout := s.action.Timeout.D()
	if timeout == 0 {
		timeout = manualTimeout
	}
	line.State, line.Message = api.StepWaiting, s.action.Manual.Instructions
	d, err := r.ask(ctx, i, askManual, timeout)
	if err != nil {
		return err
	}
	line.By, line.Message = d.By, d.Note
	if d.what == api.PlanReject {
		return fault.New(api.CodeActionFailed, "rejected by %s: %s", r.by(d.By), d.Note)
	}
	return nil
}

// runbook is the input of a runbook: it gets the machines of its group, or all, as far
// as they are up.
func (r *run) runbook(i int) api.RunbookInput {
	s, line := r.steps[i], r.status.Steps[i]
	in := api.RunbookInput{Plan: r.in.Plan, Run: r.id, Step: line.ID, Kind: s.kind, Runbook: *s.action.Runbook}
	for j, other := range r.steps {
		if other.machine == nil || other.kind != s.kind || s.group >= 0 && s.group < r.groups && other.group != s.group {
			continue
		}
		l := r.status.Steps[j]
		m := api.RunbookMachine{Machine: other.machine.Machine, Name: l.Name}
		if s.group == other.group {
			in.Group = l.Group
		}
		if l.Result != nil && l.Result.Target != nil {
			m.TargetName, m.TargetRun = l.Result.Target.Name, l.Result.Target.Tags[api.TagRun]
		}
		if l.Result != nil && l.Result.Point != nil {
			m.Point = l.Result.Point.ID
		}
		in.Machines = append(in.Machines, m)
	}
	return in
}

func limit(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return actionTimeout
	}
	return timeout
}

// tryMachine runs the machine's action. Every try of it is a request of its own,
// and the same try taken up again is the same request.
func (r *run) tryMachine(ctx workflow.Context, i int) error {
	s, line := &r.steps[i], &r.status.Steps[i]
	choice, id := r.point(s.machine.Machine, line.Name)
	request := api.ActionRequest{
		RequestID: fmt.Sprintf("%s/%s/%s/%d", r.id, workflow.GetInfo(ctx).OriginalRunID, line.ID, s.tries),
		By:        r.in.By, Reason: r.in.Reason, PlanRun: r.id,
		Planned: s.kind == api.PlanPlanned, Point: choice, PointID: id, Network: r.in.Network,
		Verify: r.in.Verify, CommitAfter: r.in.CommitAfter, OnTimer: r.in.OnTimer, CleanAfter: r.in.CleanAfter,
	}
	switch s.kind {
	case api.PlanUnplanned:
		request.Shutdown = r.shutdown
	case api.PlanReprotect:
		request.Location = s.location
	}
	out, err := r.act(ctx, api.MachineActionInput{Machine: s.machine.Machine, Action: api.ActionOf(s.kind), Request: request})
	if err != nil {
		return err
	}
	if out = out.Brief(); r.in.Kind == api.PlanReturn && s.kind != api.PlanFailback {
		out.Point, out.Target = nil, nil // three results of a machine would be too much
	}
	line.Result, line.Message = &out, out.Message
	return nil
}

// act runs the machine's action. A machine that refuses it because it is already what the
// action would make of it is as good as done: a run before went so far.
func (r *run) act(ctx workflow.Context, in api.MachineActionInput) (api.ActionResult, error) {
	out, err := call.MachineAction(ctx, in)
	if fault.Code(err) != api.CodeNotInState || workflow.GetVersion(ctx, "done-before", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return out, err
	}
	before, asked := call.DoneBefore(ctx, in)
	if asked == nil && (before.Done || r.in.Kind == api.PlanReturn && further(in.Action, before.Result.State)) {
		return before.Result, nil
	}
	return out, err
}

// further reports whether a machine is past an action of a return already.
func further(action string, now api.State) bool {
	switch now {
	case api.StateProtected:
		return true // it runs at the source: it has returned, or was never away
	case api.StateFailedBack:
		return action == api.ActionReprotect
	}
	return false
}

// maxMessage is how much of an action's output the status has, its end: with 256 actions
// and 512 machines it must fit into one payload. The history has all that was kept.
const maxMessage = 512

func ending(output string) string {
	if len(output) <= maxMessage {
		return output
	}
	return "..." + strings.ToValidUTF8(output[len(output)-maxMessage:], "")
}
