package machine

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

var years = flag.Int("years", 1, "years of a machine's life to play")

// suggestedAt is the history at which the server suggests to continue as new.
const suggestedAt = 4096

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// life is a machine's: what is to happen, and what it has come to, over all runs of its
// entity.
type life struct {
	t       *testing.T
	began   time.Time
	steps   []step
	next    int // step
	points  int // that the process server has made
	bases   int
	runs    int
	longest int // history, in events
	events  int
	ofRun   int // events of the run under way
	input   api.MachineInput
	status  api.MachineStatus
}

// step is something that happens at a time of the life.
type step struct {
	at time.Duration
	do func(w *world)
}

func (l *life) then(at time.Duration, do func(w *world)) { l.steps = append(l.steps, step{at, do}) }

// ask sends an update, and a minute later looks what became of it and of the machine.
func (l *life) ask(at time.Duration, action string, r api.ActionRequest, want api.State) *reply {
	out := &reply{}
	r.RequestID = fmt.Sprintf("%s-%s", action, at)
	l.then(at, func(w *world) { w.UpdateWorkflow(action, r.RequestID, out, r) })
	l.then(at+time.Minute, func(w *world) {
		require.True(l.t, out.done, "%s at %s", action, at)
		require.NoError(l.t, out.err, "%s at %s", action, at)
		require.Equal(l.t, want, w.status().State)
	})
	return out
}

// day is an ordinary one: points are made, the RPO is over its threshold for a while,
// agent and vCenter say something new.
func (l *life) day(n int) {
	at := time.Duration(n) * 24 * time.Hour
	l.then(at, func(w *world) {
		l.points += 10_000 / 365
		w.SignalWorkflow(api.SignalReplicationEvent, api.ReplicationEvent{Problem: api.Problem{Code: api.CodeRPO, Cause: "too old"}})
	})
	l.then(at+time.Hour, func(w *world) {
		l.points++
		w.SignalWorkflow(api.SignalReplicationEvent, api.ReplicationEvent{Problem: api.Problem{Code: api.CodeRPO}, Cleared: true})
		w.SignalWorkflow(api.SignalAgent, api.AgentReport{Machine: testVM().Machine, Version: fmt.Sprint(n)})
		w.SignalWorkflow(api.SignalInventory, testVM())
	})
	// The server suggests it with every event; here a suggestion must not come together
	// with a request, which the environment would lose. See also
	// TestSignalsOfTheLastMomentAreNotLost.
	l.then(at+12*time.Hour+30*time.Minute, func(w *world) {
		if l.ofRun >= suggestedAt {
			w.SetContinueAsNewSuggested(true)
		}
	})
}

// broken: a session is lost, and resynchronised by hand.
func (l *life) broken(n int) {
	at := time.Duration(n)*24*time.Hour + 3*time.Hour
	l.then(at, func(w *world) {
		b := stream.Broken{Code: api.CodeSessionLost, Cause: "no session"}
		require.NoError(l.t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
	})
	first := l.ask(at+time.Hour, api.ActionResync, api.ActionRequest{By: "anna"}, api.StateProtected)
	l.then(at+2*time.Hour, func(w *world) { // the answer was lost: it is asked for again
		bases, again := l.bases, &reply{}
		w.UpdateWorkflow(api.ActionResync, "again-"+at.String(), again, api.ActionRequest{RequestID: fmt.Sprintf("%s-%s", api.ActionResync, at+time.Hour)})
		w.RegisterDelayedCallback(func() {
			require.NoError(l.t, again.err)
			require.Equal(l.t, first.result, again.result)
			require.Equal(l.t, bases, l.bases, "it is not done twice")
		}, time.Minute)
	})
}

// cycle is a planned failover and the way back.
func (l *life) cycle(n int) {
	at := time.Duration(n)*24*time.Hour + 8*time.Hour
	l.ask(at, api.ActionTestFailover, api.ActionRequest{}, api.StateProtected)
	l.ask(at+time.Hour, api.ActionCleanup, api.ActionRequest{}, api.StateProtected)
	over := l.ask(at+2*time.Hour, api.ActionFailover, api.ActionRequest{Planned: true}, api.StateFailedOver)
	l.then(at+2*time.Hour+2*time.Minute, func(*world) { require.Equal(l.t, ident.Seq(l.points), over.result.Point.ID, "the newest point") })
	l.ask(at+3*time.Hour, api.ActionCommit, api.ActionRequest{}, api.StateCommitted)
	l.ask(at+4*time.Hour, api.ActionReprotect, api.ActionRequest{}, api.StateProtectedReverse)
	l.ask(at+5*time.Hour, api.ActionFailback, api.ActionRequest{}, api.StateFailedBack)
	l.ask(at+6*time.Hour, api.ActionReenable, api.ActionRequest{}, api.StateProtected)
}

// run plays one run of the entity, from where the last one ended; true when it was the
// last.
func (l *life) run() bool {
	w := newWorld(l.t)
	w.SetTestTimeout(time.Minute)
	w.SetStartTime(l.began)
	counted := l.count(w)
	w.point = func() replica.Point { return replica.Point{ID: ident.Seq(l.points), Time: w.Now(), Final: true} }
	w.based = func() { l.bases++ }
	l.schedule(w, counted)
	w.ExecuteWorkflow(api.WorkflowMachine, l.input)
	require.True(l.t, w.IsWorkflowCompleted())
	l.runs++
	l.began = w.Now()
	var again *workflow.ContinueAsNewError
	if err := w.GetWorkflowError(); err == nil {
		return true
	}
	require.ErrorAs(l.t, w.GetWorkflowError(), &again)
	l.input = api.MachineInput{}
	require.NoError(l.t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &l.input))
	return false
}

// schedule has the next step happen when it is due, and the one after it.
func (l *life) schedule(w *world, counted func()) {
	if l.next == len(l.steps) {
		return
	}
	s := l.steps[l.next]
	w.RegisterDelayedCallback(func() {
		l.next++
		counted()
		s.do(w)
		l.schedule(w, counted)
	}, max(start.Add(s.at).Sub(w.Now()), time.Second))
}

// count estimates the history of the run. It gives what counts a step of the life.
func (l *life) count(w *world) func() {
	events := 0
	add := func(n int) {
		events += n + 3 // with the three of a workflow task
		l.ofRun = events
		l.longest, l.events = max(l.longest, events), l.events+n+3
	}
	w.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
		if info.WorkflowExecution.ID == "default-test-workflow-id" { // the others are of children
			add(3)
		}
	})
	w.SetOnTimerScheduledListener(func(string, time.Duration) { add(2) })
	w.SetOnChildWorkflowStartedListener(func(*workflow.Info, workflow.Context, converter.EncodedValues) { add(3 + 8*4) }) // with the signals of its steps
	w.OnUpsertTypedSearchAttributes(mock.Anything).Run(func(mock.Arguments) { add(1) }).Return(nil)
	w.OnUpsertMemo(mock.Anything).Run(func(mock.Arguments) { add(1) }).Return(nil)
	return func() { add(9) } // three signals or an update
}

// TestYearsOfALife: in each 10,000 points, 50 resyncs and 4 failovers with their
// failbacks, over as many runs of the entity as its history needs; nothing is forgotten
// in between, and a year more makes no run longer.
func TestYearsOfALife(t *testing.T) {
	l := &life{t: t, began: start, input: testInput()}
	for day := 1; day <= 365**years; day++ {
		l.day(day)
		switch of := day % 365; {
		case of%90 == 80:
			l.cycle(day)
		case of%7 == 5:
			l.broken(day)
		}
	}
	slices.SortStableFunc(l.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	last := time.Duration(365**years+1) * 24 * time.Hour
	l.then(last, func(w *world) { l.status = w.status() })
	end := &reply{}
	l.then(last+time.Hour, func(w *world) { w.UpdateWorkflow(api.ActionUnprotect, "end", end, api.ActionRequest{}) })
	for !l.run() {
	}
	require.NoError(t, end.err)
	require.Equal(t, len(l.steps), l.next, "all of it has happened")
	require.Equal(t, api.Healthy, l.status.Health, "%v", l.status.Problems)
	require.Equal(t, 4**years, l.status.Failovers)
	require.GreaterOrEqual(t, l.status.Resyncs, 49**years)
	require.GreaterOrEqual(t, l.points, 10_000**years)
	require.Greater(t, l.runs, *years, "its history was too long for one run")
	require.Less(t, l.longest, suggestedAt+200, "a run ends soon after the server suggests it")
	t.Logf("%d years: %d points, %d resyncs, %d failovers; about %d events in %d runs, at most %d in one",
		*years, l.points, l.status.Resyncs, l.status.Failovers, l.events, l.runs, l.longest)
}

// TestAMonthOfAnAction: while an action runs the entity does not continue as new. What it
// is told meanwhile, as often as it can be, stays far below what Temporal bears: a report of
// its agent every two hours and twelve more, the same of the vault every six hours, a change
// in vCenter every day (worker/configserver, reportSlow and vaultSeldom).
func TestAMonthOfAnAction(t *testing.T) {
	const day, mostEvents, share = 24 * time.Hour, 51_200, 20 // of the most a twentieth
	w := newWorld(t)
	w.slow = true
	l := &life{t: t}
	l.count(w)
	signals := 0
	every := func(d time.Duration, signal string, arg func(n int) any) {
		for n := range int(30 * day / d) {
			w.RegisterDelayedCallback(func() { signals++; w.SignalWorkflow(signal, arg(n)) }, 2*time.Hour+time.Duration(n)*d)
		}
	}
	ask := func(at time.Duration, action string) *reply {
		out := &reply{}
		w.RegisterDelayedCallback(func() { w.UpdateWorkflow(action, action, out, api.ActionRequest{RequestID: action}) }, at)
		return out
	}
	resync := ask(time.Hour, api.ActionResync)
	report := func(n int) any { return api.AgentReport{Machine: testVM().Machine, Hostname: fmt.Sprint(n)} }
	every(2*time.Hour, api.SignalAgent, report)
	every(30*day/12, api.SignalAgent, report)
	every(6*time.Hour, api.SignalVault, func(int) any {
		p := testInput().Policy
		p.RPOThreshold++
		return api.VaultNews{Policy: p, PolicyHash: "new"}
	})
	every(day, api.SignalInventory, func(n int) any { vm := testVM(); vm.Host = fmt.Sprint(n); return vm })
	w.RegisterDelayedCallback(func() {
		require.Equal(t, api.StateResyncing, w.status().State)
		events := l.events + 4*signals // each with the three of a workflow task
		t.Log(events, "events")
		require.Less(t, events, mostEvents/share)
		w.finish()
	}, 33*day)
	end := ask(34*day, api.ActionUnprotect)
	w.ExecuteWorkflow(api.WorkflowMachine, testInput())
	require.NoError(t, w.GetWorkflowError())
	require.NoError(t, resync.err)
	require.NoError(t, end.err)
}
