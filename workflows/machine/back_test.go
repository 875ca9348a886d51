package machine

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// since gives the activities called after the last call of the named one, without replication's.
func (w *world) since(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, c := range w.called[len(w.called)-1-slices.Index(reversed(w.called), name):] {
		if c != api.ActReplicate {
			out = append(out, c)
		}
	}
	return out
}

func reversed(in []string) []string {
	out := slices.Clone(in)
	slices.Reverse(out)
	return out
}

func TestFailoverIsRolledBack(t *testing.T) {
	w := newWorld(t)
	early := w.ask(api.ActionRollBack, api.ActionRequest{})
	over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.expect(api.StateFailedOver)
	back := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateProtected)
	w.then(func() {
		s := w.status()
		require.Nil(t, s.Target)
		require.Nil(t, s.FailoverTo)
		require.Equal(t, []string{
			api.ActStopMachine, api.ActFence, api.ActPowerOnVM, api.ActDeleteMachine, api.ActReleasePoint, api.ActGrant, api.ActAssign,
		}, w.since(api.ActStopMachine), "the target is down before the source is up")
	})
	again := w.ask(api.ActionFailover, api.ActionRequest{})
	w.play()
	require.Equal(t, api.CodeNotInState, fault.Code(early.err))
	for _, r := range []*reply{over, back, again} {
		require.NoError(t, r.err)
	}
	require.IsIncreasing(t, w.granted)
}

func TestRollBackThatFailsLeavesTheTargetRunning(t *testing.T) {
	w := newWorld(t)
	w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.then(func() { w.fails[api.ActPowerOnVM] = fault.New(api.CodeNotFound, "no such VM") })
	failed := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateFailedOver)
	w.then(func() {
		require.Equal(t, []string{api.ActShutdownVM, api.ActStartMachine}, w.since(api.ActShutdownVM), "the source stays down, the target is up")
		w.fails[api.ActPowerOnVM] = fault.New(api.CodeNotFound, "no such VM")
	})
	reason := w.ask(api.ActionRollBack, api.ActionRequest{Reason: "it was put up by hand"})
	w.expect(api.StateProtected)
	w.play()
	require.Equal(t, api.CodeNotFound, fault.Code(failed.err))
	require.ErrorContains(t, failed.err, "give a reason")
	require.NoError(t, reason.err)
	require.Contains(t, reason.result.Message, "power it on by hand")
}

func TestReprotectAndFailbackAreRolledBack(t *testing.T) {
	w := newWorld(t)
	w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.ask(api.ActionCommit, api.ActionRequest{})
	late := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.ask(api.ActionReprotect, api.ActionRequest{})
	w.expect(api.StateProtectedReverse)
	one := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateCommitted)
	w.then(func() {
		require.Equal(t, []string{api.ActUnassign, api.ActRevoke, api.ActFence, api.ActDetachDisks}, w.since(api.ActUnassign))
	})
	w.ask(api.ActionReprotect, api.ActionRequest{})
	w.ask(api.ActionFailback, api.ActionRequest{})
	w.expect(api.StateFailedBack)
	two := w.ask(api.ActionRollBack, api.ActionRequest{})
	w.expect(api.StateCommitted)
	w.then(func() {
		require.Equal(t, []string{api.ActShutdownVM, api.ActFence, api.ActStartMachine, api.ActCheckMachine}, w.since(api.ActShutdownVM))
	})
	w.ask(api.ActionReprotect, api.ActionRequest{})
	w.ask(api.ActionFailback, api.ActionRequest{})
	re := w.ask(api.ActionReenable, api.ActionRequest{})
	w.expect(api.StateProtected)
	w.play()
	require.Equal(t, api.CodeNotInState, fault.Code(late.err), "a commit is final")
	for _, r := range []*reply{one, two, re} {
		require.NoError(t, r.err)
	}
	require.IsIncreasing(t, w.granted)
}

func TestOtherPoint(t *testing.T) {
	w := newWorld(t)
	w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	none := w.ask(api.ActionChangePoint, api.ActionRequest{})
	same := w.ask(api.ActionChangePoint, api.ActionRequest{Point: api.PointCustom, PointID: 9})
	w.then(func() {
		require.NotContains(t, w.since(api.ActChoosePoint), api.ActDeleteMachine, "nothing was deleted for the same point")
		w.points = []ident.Seq{5}
		w.fails[api.ActCreateMachine] = fault.New(api.CodeQuota, "no room")
	})
	failed := w.ask(api.ActionChangePoint, api.ActionRequest{Point: api.PointCustom, PointID: 5})
	w.then(func() {
		s := w.status()
		require.Equal(t, ident.Seq(9), s.FailoverTo.ID)
		require.Equal(t, []string{api.ActStartMachine, api.ActReleasePoint}, w.since(api.ActStartMachine), "the old one is there again")
		w.points = []ident.Seq{5}
	})
	good := w.ask(api.ActionChangePoint, api.ActionRequest{Point: api.PointCustom, PointID: 5})
	w.then(func() {
		s := w.status()
		require.Equal(t, ident.Seq(5), s.FailoverTo.ID)
		require.Contains(t, s.TargetRun, "-point-")
		require.Equal(t, api.StateFailedOver, s.State)
	})
	commit := w.ask(api.ActionCommit, api.ActionRequest{})
	w.play()
	require.Equal(t, api.CodeInvalid, fault.Code(none.err))
	require.Equal(t, api.CodeNoPoint, fault.Code(same.err))
	require.Equal(t, api.CodeQuota, fault.Code(failed.err))
	require.NoError(t, good.err)
	require.NoError(t, commit.err)
}

func TestTimers(t *testing.T) {
	w := newWorld(t)
	w.ask(api.ActionTestFailover, api.ActionRequest{CleanAfter: api.Duration(90 * time.Second)})
	w.then(func() { require.Len(t, w.status().Timers, 1) })
	w.then(func() {
		require.True(t, w.status().Test.Cleaned, "nobody cleaned up in time")
		require.False(t, w.status().TestDue().IsZero())
		w.fails[api.ActStartMachine] = fault.New(api.CodeQuota, "no room")
	})
	w.ask(api.ActionTestFailover, api.ActionRequest{})
	w.then(func() {
		require.Contains(t, w.status().Test.Verdict, "no room")
		require.False(t, w.status().TestDue().IsZero(), "it has passed once")
	})
	w.ask(api.ActionFailover, api.ActionRequest{CommitAfter: api.Duration(90 * time.Second), OnTimer: api.ActionRollBack})
	w.expect(api.StateFailedOver)
	w.expect(api.StateProtected)
	w.ask(api.ActionFailover, api.ActionRequest{CommitAfter: api.Duration(5 * time.Minute), OnTimer: api.ActionRollBack})
	w.ask(api.ActionCommit, api.ActionRequest{})
	w.at += time.Hour
	w.expect(api.StateCommitted) // somebody was faster
	w.then(func() { require.Empty(t, w.status().Timers) })
	w.play()
}

func TestTimerThatFailsIsTold(t *testing.T) {
	w := newWorld(t)
	w.ask(api.ActionFailover, api.ActionRequest{CommitAfter: api.Duration(90 * time.Second)})
	w.then(func() { w.fails[api.ActReleasePoint] = fault.New(api.CodeFenced, "not ours") })
	w.at += time.Hour
	w.expect(api.StateFailedOver)
	w.then(func() {
		require.Equal(t, api.CodeActionFailed, w.status().Problems[0].Code)
		require.Contains(t, w.status().Problems[0].Cause, "commit by the timer failed: not ours")
	})
	w.ask(api.ActionCommit, api.ActionRequest{})
	w.then(func() { require.Empty(t, w.status().Problems) })
	w.play()
	wrong := newWorld(t)
	bad := wrong.ask(api.ActionFailover, api.ActionRequest{OnTimer: "sideways"})
	wrong.play()
	require.Equal(t, api.CodeInvalid, fault.Code(bad.err))
}

// TestWhatIsLostIsTold: an unplanned failover says what it gave up, a planned one loses nothing.
func TestWhatIsLostIsTold(t *testing.T) {
	w := newWorld(t)
	w.point = func() replica.Point { return replica.Point{ID: 9, Time: w.Now().Add(-time.Minute)} }
	w.expect(api.StateProtected)
	w.then(func() { w.fails[api.ActShutdownVM] = fault.New(api.CodeNotFound, "no such VM") })
	none := w.ask(api.ActionFailover, api.ActionRequest{})
	w.then(func() { w.fails[api.ActShutdownVM] = fault.New(api.CodeNotFound, "no such VM") })
	over := w.ask(api.ActionFailover, api.ActionRequest{Reason: "the site burns"})
	w.expect(api.StateFailedOver)
	w.ask(api.ActionRollBack, api.ActionRequest{})
	planned := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.play()
	require.Equal(t, api.CodeSourceRunning, fault.Code(none.err), "not without a reason")
	require.NoError(t, over.err)
	require.Equal(t, time.Minute, over.result.Loss.D().Round(time.Second))
	require.Contains(t, over.result.Message, "what was written in the 1m0s after it, until the source was last heard of, is lost")
	require.NoError(t, planned.err)
	require.Zero(t, planned.result.Loss)
	require.NotContains(t, planned.result.Message, "lost")
}

// TestHowTheSourceIsBroughtDown: the guest has its whole time, and the power goes off only
// if that was asked for; a planned failover switches a frozen source off.
func TestHowTheSourceIsBroughtDown(t *testing.T) {
	within := func(d time.Duration, off bool) api.ActionRequest {
		return api.ActionRequest{Shutdown: api.SourceShutdown{Limit: api.Duration(d), ThenPowerOff: off}}
	}
	for name, c := range map[string]struct {
		request api.ActionRequest
		limit   time.Duration
		want    api.ShutdownInput
	}{
		"as it is":     {api.ActionRequest{}, api.DefaultShutdown, api.ShutdownInput{}},
		"with a limit": {within(20*time.Minute, false), 20 * time.Minute, api.ShutdownInput{}},
		"then off":     {within(0, true), api.DefaultShutdown, api.ShutdownInput{Force: true}},
		"planned":      {api.ActionRequest{Planned: true}, shutdownOfPlanned, api.ShutdownInput{Force: true, Freeze: true}},
	} {
		w := newWorld(t)
		var got []api.ShutdownInput
		reg(w, api.ActShutdownVM, func(in api.ShutdownInput) api.ShutdownResult {
			got = append(got, in)
			return api.ShutdownResult{WasOn: true}
		})
		w.expect(api.StateProtected)
		over := w.ask(api.ActionFailover, c.request)
		w.expect(api.StateFailedOver)
		w.play()
		require.NoError(t, over.err, name)
		c.want.VMRef, c.want.Limit = api.VMRef{VCenter: "vc-1", InstanceUUID: "i-1"}, api.Duration(c.limit)
		require.Equal(t, []api.ShutdownInput{c.want}, got, name)
	}
	w := newWorld(t)
	w.expect(api.StateProtected)
	short := w.ask(api.ActionFailover, within(time.Second, true))
	w.play()
	require.Equal(t, api.CodeInvalid, fault.Code(short.err))
	require.ErrorContains(t, short.err, "shutdown.limit")
}

// shutdownOfPlanned is what a planned failover gives vCenter to switch the source off.
const shutdownOfPlanned = 5 * time.Minute

// TestPlannedFailoverNeedsItsSourceDown: it goes no further, and puts all back.
func TestPlannedFailoverNeedsItsSourceDown(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	w.then(func() { w.fails[api.ActShutdownVM] = fault.New(api.CodeVCenterDenied, "the user lacks a privilege") })
	over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true, Reason: "no reason is enough"})
	w.expect(api.StateProtected)
	w.then(func() {
		after := w.since(api.ActShutdownVM)
		require.Subset(t, after, []string{api.ActPowerOnVM, api.ActRelease})
		require.NotContains(t, after, api.ActFence)
		require.NotContains(t, after, api.ActCreateMachine)
	})
	w.play()
	require.Equal(t, api.CodeSourceRunning, fault.Code(over.err))
}

// TestFinalPointMustBeTheFinalCut: a planned failover starts nothing from a point that is not
// what the source was when it was frozen for good.
func TestFinalPointMustBeTheFinalCut(t *testing.T) {
	w := newWorld(t)
	cuts := ident.Seq(0)
	w.point = func() replica.Point {
		cuts++
		return replica.Point{ID: 9, Final: true, Position: ident.Position{Seq: cuts}}
	}
	over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	w.expect(api.StateProtected)
	w.then(func() { require.NotContains(t, w.called, api.ActCreateMachine) })
	w.play()
	require.Equal(t, api.CodeDiffers, fault.Code(over.err))
}

// TestSourceIsComparedFirst, if asked for, while it runs on; what differs keeps it there.
func TestSourceIsComparedFirst(t *testing.T) {
	for verdict, state := range map[stream.Verdict]api.State{stream.VerdictEqual: api.StateFailedOver, stream.VerdictMended: api.StateFailedOver, stream.VerdictDifferent: api.StateProtected} {
		w := newWorld(t)
		reg(w, api.ActVerify, func(in api.VerifyInput) stream.SignedRecord {
			record, err := json.Marshal(stream.Record{Machine: in.Machine, Verdict: verdict})
			require.NoError(t, err)
			return stream.SignedRecord{Record: record}
		})
		over := w.ask(api.ActionFailover, api.ActionRequest{Planned: true, Verify: true})
		w.expect(state)
		w.then(func() {
			after := w.since(api.ActVerify)
			require.Equal(t, state == api.StateFailedOver, slices.Contains(after, api.ActFinalCut), after)
			require.Equal(t, state == api.StateFailedOver, slices.Contains(after, api.ActShutdownVM), after)
		})
		w.play()
		if state == api.StateProtected {
			require.Equal(t, api.CodeDiffers, fault.Code(over.err))
		} else {
			require.NoError(t, over.err)
		}
	}
}
