package evidence

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	commonpb "go.temporal.io/api/common/v1"
	enums "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/converter"

	"drover/workflows/api"
)

// ErrNotARun: the history is of something else than a plan's run.
var ErrNotARun = errors.New("not the history of a plan's run")

// reader makes a pack of a history, event by event.
type reader struct {
	pack    Pack
	calls   map[int64]int // by the event that scheduled it
	members map[string]api.VaultMember
	inputs  map[int64]string // of FindMachine, by event
	status  *api.PlanStatus
}

// Read makes the pack of the run with this workflow id, and gives the history as
// Temporal's JSON. A run that is under way gives what is known so far.
func Read(run string, h *historypb.History) (*Pack, []byte, error) {
	raw, err := temporalproto.CustomJSONMarshalOptions{Indent: " "}.Marshal(h)
	if err != nil {
		return nil, nil, fmt.Errorf("write the history of %s: %w", run, err)
	}
	sum := sha256.Sum256(raw)
	r := &reader{calls: map[int64]int{}, members: map[string]api.VaultMember{}, inputs: map[int64]string{}}
	r.pack = Pack{Format: Format, Run: run, State: "running", Decisions: []Decision{}, Machines: []Machine{}, Steps: []api.PlanStep{}, Calls: []Call{},
		History: History{Events: len(h.GetEvents()), SHA256: hex.EncodeToString(sum[:])}}
	for i, e := range h.GetEvents() {
		if (i == 0) != (e.GetEventType() == enums.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED) {
			return nil, nil, fmt.Errorf("%s: %w: event %d is %s", run, ErrNotARun, i+1, e.GetEventType())
		}
		if err := r.event(e); err != nil {
			return nil, nil, fmt.Errorf("%s: event %d: %w", run, e.GetEventId(), err)
		}
	}
	if len(h.GetEvents()) == 0 {
		return nil, nil, fmt.Errorf("%s: %w: it is empty", run, ErrNotARun)
	}
	r.conclude()
	return &r.pack, raw, nil
}

func decode(p *commonpb.Payloads, into ...any) error {
	if len(p.GetPayloads()) == 0 {
		return nil
	}
	return converter.GetDefaultDataConverter().FromPayloads(p, into...)
}

func (r *reader) event(e *historypb.HistoryEvent) error {
	at := e.GetEventTime().AsTime()
	switch e.GetEventType() {
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
		a := e.GetWorkflowExecutionStartedEventAttributes()
		if a.GetWorkflowType().GetName() != api.WorkflowRecoveryPlan {
			return fmt.Errorf("%w but of a %s", ErrNotARun, a.GetWorkflowType().GetName())
		}
		r.pack.Started, r.pack.RunID, r.pack.Authenticated = at, a.GetOriginalExecutionRunId(), authenticated(e)
		return decode(a.GetInput(), &r.pack.Input)
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
		in := e.GetWorkflowExecutionUpdateAcceptedEventAttributes().GetAcceptedRequest().GetInput()
		return r.decision(e, in.GetName(), in.GetArgs(), false)
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
		a := e.GetWorkflowExecutionSignaledEventAttributes()
		return r.decision(e, a.GetSignalName(), a.GetInput(), true)
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
		r.pack.Finished, r.status = at, &api.PlanStatus{}
		return decode(e.GetWorkflowExecutionCompletedEventAttributes().GetResult(), r.status)
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
		r.pack.Finished, r.pack.State = at, "failed"
		return r.failed(e.GetWorkflowExecutionFailedEventAttributes().GetFailure())
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
		r.pack.Finished, r.pack.State = at, "cancelled"
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
		r.pack.Finished, r.pack.State = at, "terminated"
		r.pack.Message = e.GetWorkflowExecutionTerminatedEventAttributes().GetReason()
	case enums.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
		r.pack.Finished, r.pack.State = at, "timed out"
	}
	return r.activity(e)
}

// decision notes what a person decided; other updates and signals are none.
func (r *reader) decision(e *historypb.HistoryEvent, what string, args *commonpb.Payloads, signal bool) error {
	if !slices.Contains(api.PlanDecisions, what) {
		return nil
	}
	d := Decision{Time: e.GetEventTime().AsTime(), What: what, Event: e.GetEventId(), Signal: signal}
	if signal {
		d.Authenticated = authenticated(e)
	}
	if err := decode(args, &d.StepDecision); err != nil {
		return err
	}
	r.pack.Decisions = append(r.pack.Decisions, d)
	return nil
}

// authenticated is whose call made the event, as Temporal's own authorizer has found out.
func authenticated(e *historypb.HistoryEvent) string {
	return strings.TrimSpace(e.GetPrincipal().GetType() + " " + e.GetPrincipal().GetName())
}

// failed takes what a run that failed says of itself: its status is the failure's detail.
func (r *reader) failed(f *failurepb.Failure) error {
	r.pack.Message = f.GetMessage()
	if details := f.GetApplicationFailureInfo().GetDetails(); len(details.GetPayloads()) > 0 {
		r.status = &api.PlanStatus{}
		return decode(details, r.status)
	}
	return nil
}

// activity follows what the run had done.
func (r *reader) activity(e *historypb.HistoryEvent) error {
	switch e.GetEventType() {
	case enums.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
		a := e.GetActivityTaskScheduledEventAttributes()
		r.calls[e.GetEventId()] = len(r.pack.Calls)
		r.pack.Calls = append(r.pack.Calls, Call{Activity: a.GetActivityType().GetName(), Event: e.GetEventId(), Begun: e.GetEventTime().AsTime(), Outcome: "under way"})
		if a.GetActivityType().GetName() == api.ActFindMachine {
			var name string
			if err := decode(a.GetInput(), &name); err != nil {
				return err
			}
			r.inputs[e.GetEventId()] = name
		}
	case enums.EVENT_TYPE_ACTIVITY_TASK_STARTED:
		a := e.GetActivityTaskStartedEventAttributes()
		if c := r.call(a.GetScheduledEventId()); c != nil {
			c.Worker, c.Attempt = a.GetIdentity(), a.GetAttempt()
		}
	case enums.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
		a := e.GetActivityTaskCompletedEventAttributes()
		r.ended(e, a.GetScheduledEventId(), "done", nil)
		return r.result(a.GetScheduledEventId(), a.GetResult())
	case enums.EVENT_TYPE_ACTIVITY_TASK_FAILED:
		a := e.GetActivityTaskFailedEventAttributes()
		r.ended(e, a.GetScheduledEventId(), "failed", a.GetFailure())
	case enums.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
		a := e.GetActivityTaskTimedOutEventAttributes()
		r.ended(e, a.GetScheduledEventId(), "timed out", a.GetFailure())
	case enums.EVENT_TYPE_ACTIVITY_TASK_CANCELED:
		r.ended(e, e.GetActivityTaskCanceledEventAttributes().GetScheduledEventId(), "cancelled", nil)
	}
	return nil
}

func (r *reader) call(scheduled int64) *Call {
	if i, ok := r.calls[scheduled]; ok {
		return &r.pack.Calls[i]
	}
	return nil
}

func (r *reader) ended(e *historypb.HistoryEvent, scheduled int64, outcome string, f *failurepb.Failure) {
	if c := r.call(scheduled); c != nil {
		c.Ended, c.Outcome, c.Error = e.GetEventTime().AsTime(), outcome, f.GetMessage()
	}
}

// result takes the plan and the machines as the run found them.
func (r *reader) result(scheduled int64, p *commonpb.Payloads) error {
	c := r.call(scheduled)
	switch {
	case c == nil:
	case c.Activity == api.ActLookupPlan:
		r.pack.Plan = new(api.Plan)
		return decode(p, r.pack.Plan)
	case c.Activity == api.ActFindMachine:
		var m api.VaultMember
		if err := decode(p, &m); err != nil {
			return err
		}
		r.members[r.inputs[scheduled]] = m
	}
	return nil
}

// conclude judges what was measured against the goals.
func (r *reader) conclude() {
	p := &r.pack
	var goal api.Duration
	if p.Plan != nil {
		goal = p.Plan.RTO
	}
	up := p.Input.Kind.BringsUp()
	if !up {
		goal = 0
	}
	if s := r.status; s != nil {
		p.State, p.Steps = s.State, s.Steps
		if s.Message != "" {
			p.Message = s.Message
		}
	}
	done := p.State == "done" && up
	p.RTO = judge(api.Duration(p.Finished.Sub(p.Started)), goal, done)
	if !done {
		p.RTO.Measured = 0
	}
	for _, s := range p.Steps {
		if s.Kind == "machine" && (s.Phase == "" || s.Phase == api.PlanFailback) { // of a return, what brought it up
			p.Machines = append(p.Machines, r.machine(s, goal, up))
		}
	}
}

// takenBack is the state of a machine whose step the run itself has taken back.
const takenBack api.StepState = "taken back"

// machine judges one machine's step.
func (r *reader) machine(s api.PlanStep, goal api.Duration, up bool) Machine {
	found := r.members[s.Name]
	m := Machine{Name: s.Name, Machine: found.Machine, Policy: found.Policy, State: s.State, Message: s.Message,
		RPO: judge(0, found.RPOThreshold, false), RTO: judge(0, goal, false)} // until it is measured
	res := s.Result
	if s.Undo == api.StepDone {
		m.State = takenBack
	}
	if res == nil || s.State != api.StepDone || s.Undo == api.StepDone {
		return m
	}
	m.Machine, m.Loss = res.Machine, res.Loss
	if res.Point != nil {
		seq := res.Point.ID
		m.Point, m.PointTime, m.Consistency = &seq, res.Point.Time, res.Point.Consistency.String()
	}
	if !up {
		return m
	}
	m.RTO = judge(api.Duration(s.Finished.Sub(r.pack.Started)), goal, true)
	if res.Point != nil {
		m.RPO = judge(api.Duration(max(s.Started.Sub(res.Point.Time), 0)), found.RPOThreshold, true)
	}
	return m
}
