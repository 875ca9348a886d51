package evidence

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enums "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	updatepb "go.temporal.io/api/update/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/timestamppb"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// recorded are the histories that the replay tests replay, of workflows of one type.
func recorded(t *testing.T, kind string) []*historypb.History {
	t.Helper()
	files, err := filepath.Glob("../../tests/replay/testdata/*/" + kind + "-*.json.gz")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all []*historypb.History
	for _, file := range files {
		f, err := os.Open(file)
		require.NoError(t, err)
		z, err := gzip.NewReader(f)
		require.NoError(t, err)
		h, err := client.HistoryFromJSON(z, client.HistoryJSONOptions{})
		require.NoError(t, err)
		require.NoError(t, f.Close())
		all = append(all, h)
	}
	return all
}

// TestRecordedRuns: every run that was recorded gives its pack, whatever it was.
func TestRecordedRuns(t *testing.T) {
	kinds, states := map[api.PlanKind]int{}, map[string]int{}
	for _, h := range recorded(t, api.WorkflowRecoveryPlan) {
		p, raw, err := Read("plan-shop-1", h)
		require.NoError(t, err)
		kinds[p.Input.Kind]++
		require.Contains(t, []string{api.RunDone, api.RunCancelled, api.RunUndone}, p.State)
		states[p.State]++
		for _, m := range p.Machines {
			if m.State == takenBack {
				require.Zero(t, m.RTO.Measured)
				states[string(takenBack)]++
			}
		}
		require.Contains(t, []string{"shop", "states"}, p.Input.Plan)
		require.NotEmpty(t, p.Machines)
		require.NotNil(t, p.Plan)
		again, err := client.HistoryFromJSON(bytes.NewReader(raw), client.HistoryJSONOptions{})
		require.NoError(t, err, "the history goes back into Temporal's tools")
		require.Len(t, again.Events, p.History.Events)
		same, _, err := Read("plan-shop-1", again)
		require.NoError(t, err)
		require.Equal(t, p.History.SHA256, same.History.SHA256, "anybody can make the pack again")
		for _, c := range p.Calls {
			switch c.Outcome {
			case "done":
				require.False(t, c.Ended.Before(c.Begun))
			case "failed":
				require.NotEmpty(t, c.Error, "%s of a run that is %s", c.Activity, p.State)
			default:
				require.Equal(t, api.ActNotify, c.Activity, "nobody waits for a notification: %s", c.Outcome)
			}
		}
	}
	for _, state := range []string{api.RunDone, api.RunCancelled, api.RunUndone, string(takenBack)} {
		require.Positive(t, states[state], state)
	}
	for _, kind := range []api.PlanKind{api.PlanTest, api.PlanPlanned, api.PlanCommit, api.PlanReprotect, api.PlanFailback, api.PlanReenable} {
		require.Positive(t, kinds[kind], kind)
	}
}

// planned is the recorded planned failover, whose plan got a goal, and policy a threshold.
func planned(t *testing.T, goal, threshold time.Duration) *historypb.History {
	t.Helper()
	for _, h := range recorded(t, api.WorkflowRecoveryPlan) {
		p, _, err := Read("r", h)
		require.NoError(t, err)
		if p.Input.Plan != "shop" || p.Input.Kind != api.PlanPlanned || len(p.Decisions) == 0 {
			continue
		}
		for _, e := range h.Events {
			a := e.GetActivityTaskCompletedEventAttributes()
			var plan api.Plan
			var m api.VaultMember
			switch {
			case a == nil:
			case decode(a.Result, &plan) == nil && plan.Name == "shop" && len(plan.Groups) > 0:
				plan.RTO = api.Duration(goal)
				a.Result = payloads(t, plan)
			case decode(a.Result, &m) == nil && m.Policy != "":
				m.RPOThreshold = api.Duration(threshold)
				a.Result = payloads(t, m)
			}
		}
		return h
	}
	require.FailNow(t, "no planned failover was recorded")
	return nil
}

func payloads(t *testing.T, v ...any) *commonpb.Payloads {
	t.Helper()
	p, err := converter.GetDefaultDataConverter().ToPayloads(v...)
	require.NoError(t, err)
	return p
}

func TestGoals(t *testing.T) {
	p, _, err := Read("plan-shop-3", planned(t, time.Hour, time.Minute))
	require.NoError(t, err)
	require.Empty(t, p.Missed())
	require.Equal(t, Met, p.RTO.Verdict)
	require.Len(t, p.Machines, 3)
	for _, m := range p.Machines {
		require.Equal(t, Met, m.RTO.Verdict, m.Name)
		require.Equal(t, Met, m.RPO.Verdict, m.Name)
		require.Zero(t, m.RPO.Measured, "the final point of a planned failover is cut after it began")
		require.Greater(t, p.RTO.Measured, m.RTO.Measured, "the machine is up before the run ends")
		require.NotNil(t, m.Point)
		require.NotEqual(t, ident.MachineID{}, m.Machine)
	}
	require.Len(t, p.Decisions, 1)
	d := p.Decisions[0]
	require.Equal(t, Decision{Time: d.Time, What: api.PlanApprove, StepDecision: api.StepDecision{By: "demo", Note: "checked"}, Event: d.Event, Signal: true}, d)
	require.True(t, d.Time.After(p.Started) && d.Time.Before(p.Finished))

	p, _, err = Read("plan-shop-3", planned(t, time.Second, 0))
	require.NoError(t, err)
	require.Equal(t, Missed, p.RTO.Verdict)
	require.Equal(t, NoGoal, p.Machines[0].RPO.Verdict)
	require.Len(t, p.Missed(), 4, "of the whole, and of each machine")
	require.Contains(t, p.Missed()[1], "RTO of db-1: ")
}

func TestRunUnderWay(t *testing.T) {
	h := planned(t, time.Hour, 0)
	h.Events = h.Events[:len(h.Events)*2/3]
	p, _, err := Read("plan-shop-3", h)
	require.NoError(t, err)
	require.Equal(t, "running", p.State)
	require.Equal(t, Goal{Goal: api.Duration(time.Hour), Verdict: Unknown}, p.RTO)
	require.True(t, p.Finished.IsZero())
	require.NotEmpty(t, p.Calls)
}

// events makes a history by hand.
func events(t *testing.T, kind string, more ...*historypb.HistoryEvent) *historypb.History {
	t.Helper()
	begin := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	first := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionStartedEventAttributes{WorkflowExecutionStartedEventAttributes: &historypb.WorkflowExecutionStartedEventAttributes{
			WorkflowType: &commonpb.WorkflowType{Name: kind}, OriginalExecutionRunId: "run-1",
			Input: payloads(t, api.PlanRunInput{Plan: "shop", Kind: api.PlanUnplanned, By: "anna", Reason: "site A | burns"})}}}
	h := &historypb.History{Events: append([]*historypb.HistoryEvent{first}, more...)}
	for i, e := range h.Events {
		e.EventId, e.EventTime = int64(i+1), timestamppb.New(begin.Add(time.Duration(i)*time.Minute))
	}
	return h
}

// TestRunThatFailed: what was reached until then is told, with who decided what, and what
// people wrote does not break the page.
func TestRunThatFailed(t *testing.T) {
	begin := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	id := ident.NewMachineID("vc", "db")
	status := api.PlanStatus{State: "failed", Message: "step 2/app: no room", Steps: []api.PlanStep{
		{ID: "1/db", Kind: "machine", Name: "db", State: api.StepDone, Started: begin.Add(time.Minute), Finished: begin.Add(3 * time.Minute),
			Result: &api.ActionResult{Machine: id, Loss: api.Duration(2 * time.Second), Point: &replica.Point{ID: 7, Time: begin.Add(50 * time.Second)}}},
		{ID: "2/app", Kind: "machine", Name: "app", State: api.StepFailed, Message: "no <b>room</b>"},
	}}
	update := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionUpdateAcceptedEventAttributes{WorkflowExecutionUpdateAcceptedEventAttributes: &historypb.WorkflowExecutionUpdateAcceptedEventAttributes{
			AcceptedRequest: &updatepb.Request{Input: &updatepb.Input{Name: api.PlanRetry, Args: payloads(t, api.StepDecision{Step: "2/app", By: "ben", Note: "made room\n| so I thought"})}}}}}
	failed := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionFailedEventAttributes{WorkflowExecutionFailedEventAttributes: &historypb.WorkflowExecutionFailedEventAttributes{
			Failure: &failurepb.Failure{Message: "plan shop, unplanned: step 2/app: no room", FailureInfo: &failurepb.Failure_ApplicationFailureInfo{
				ApplicationFailureInfo: &failurepb.ApplicationFailureInfo{Type: api.CodeTarget, Details: payloads(t, status)}}}}}}
	p, _, err := Read("plan-shop-9", events(t, api.WorkflowRecoveryPlan, update, failed))
	require.NoError(t, err)
	require.Equal(t, "failed", p.State)
	require.Equal(t, "step 2/app: no room", p.Message)
	require.Equal(t, Unknown, p.RTO.Verdict, "a run that failed has not reached its goal")
	require.Equal(t, "ben", p.Decisions[0].By)
	require.False(t, p.Decisions[0].Signal)
	require.Len(t, p.Machines, 2)
	db, app := p.Machines[0], p.Machines[1]
	require.Equal(t, api.Duration(10*time.Second), db.RPO.Measured, "the point was so old when the step began")
	require.Equal(t, api.Duration(3*time.Minute), db.RTO.Measured)
	require.Equal(t, ident.Seq(7), *db.Point)
	require.Equal(t, Unknown, app.RTO.Verdict)

	var page strings.Builder
	require.NoError(t, p.Markdown(&page))
	for _, want := range []string{"| why | site A \\| burns |", "made room<br>\\| so I thought", "no &lt;b>room", "| db " + id.String() + " | done | 7 |", p.History.SHA256, "3m0s (no goal)"} {
		require.Contains(t, page.String(), want)
	}
}

func TestRunThatWasTerminated(t *testing.T) {
	e := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
		Attributes: &historypb.HistoryEvent_WorkflowExecutionTerminatedEventAttributes{WorkflowExecutionTerminatedEventAttributes: &historypb.WorkflowExecutionTerminatedEventAttributes{Reason: "by hand"}}}
	p, _, err := Read("plan-shop-9", events(t, api.WorkflowRecoveryPlan, e))
	require.NoError(t, err)
	require.Equal(t, "terminated", p.State)
	require.Equal(t, "by hand", p.Message)
	require.Equal(t, Unknown, p.RTO.Verdict)
}

// TestAuthenticated: whom Temporal has authenticated stands beside the name that was
// given, where the event is theirs; that of an update is the worker's.
func TestAuthenticated(t *testing.T) {
	by := payloads(t, api.StepDecision{By: "anna"})
	signal := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED, Principal: &commonpb.Principal{Type: "jwt", Name: "mallory"},
		Attributes: &historypb.HistoryEvent_WorkflowExecutionSignaledEventAttributes{WorkflowExecutionSignaledEventAttributes: &historypb.WorkflowExecutionSignaledEventAttributes{
			SignalName: api.PlanApprove, Input: by}}}
	update := &historypb.HistoryEvent{EventType: enums.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED, Principal: &commonpb.Principal{Type: "jwt", Name: "worker"},
		Attributes: &historypb.HistoryEvent_WorkflowExecutionUpdateAcceptedEventAttributes{WorkflowExecutionUpdateAcceptedEventAttributes: &historypb.WorkflowExecutionUpdateAcceptedEventAttributes{
			AcceptedRequest: &updatepb.Request{Input: &updatepb.Input{Name: api.PlanApprove, Args: by}}}}}
	h := events(t, api.WorkflowRecoveryPlan, signal, update)
	h.Events[0].Principal = &commonpb.Principal{Type: "jwt", Name: "ben"}
	p, _, err := Read("plan-shop-9", h)
	require.NoError(t, err)
	require.Equal(t, "jwt ben", p.Authenticated)
	require.Equal(t, "jwt mallory", p.Decisions[0].Authenticated)
	require.Empty(t, p.Decisions[1].Authenticated)
	var page strings.Builder
	require.NoError(t, p.Markdown(&page))
	require.Contains(t, page.String(), "| asked for by | anna, authenticated as jwt ben |")
	require.Contains(t, page.String(), "| anna, authenticated as jwt mallory | approve (signal) |")
}

func TestWhatIsNoRun(t *testing.T) {
	_, _, err := Read("x", events(t, api.WorkflowVault))
	require.ErrorIs(t, err, ErrNotARun)
	_, _, err = Read("x", &historypb.History{})
	require.ErrorIs(t, err, ErrNotARun)
	h := events(t, api.WorkflowRecoveryPlan)
	h.Events = append(h.Events, h.Events[0])
	_, _, err = Read("x", h)
	require.ErrorIs(t, err, ErrNotARun)
}
