package machine

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// marked brings the machine to ResyncRequired.
func (w *world) marked() {
	w.expect(api.StateProtected)
	w.then(func() {
		b := stream.Broken{Code: api.CodeSessionLost, Cause: "no session for 5s"}
		require.NoError(w.t, w.CompleteActivity(w.watching, api.ReplicateResult{Broken: &b}, nil))
		w.slow = true
	})
	if !w.input.Policy.Resync.Automatic {
		w.expect(api.StateResyncRequired)
	}
}

func (w *world) has(code string) *api.Problem {
	for _, p := range w.status().Problems {
		if p.Code == code {
			return &p
		}
	}
	return nil
}

// TestResyncIsStoppedAndGoesOn: at the end of a window, the stream is ended, an error
// says what goes on when, and the next resync is the ordinary one.
func TestResyncIsStoppedAndGoesOn(t *testing.T) {
	w := newWorld(t)
	early := w.ask(api.ActionStopResync, api.ActionRequest{})
	w.marked()
	first := w.ask(api.ActionResync, api.ActionRequest{OnlyIfRequired: true})
	w.then(func() { require.Contains(t, w.status().Possible, api.ActionStopResync) })
	stop := w.ask(api.ActionStopResync, api.ActionRequest{Window: true})
	w.then(func() {
		require.Contains(t, w.has(api.CodeResyncPaused).Cause, "it goes on in the next")
		require.Contains(t, w.has(api.CodeResyncPaused).Action, "drover resync db-1")
		require.NotNil(t, w.has(api.CodeSessionLost))
		require.Equal(t, api.StateResyncRequired, w.status().State)
		require.Contains(t, w.called, api.ActRevoke)
		w.slow = false
	})
	next := w.ask(api.ActionResync, api.ActionRequest{OnlyIfRequired: true})
	w.expect(api.StateProtected)
	w.then(func() { require.Empty(t, w.status().Problems) })
	w.play()
	require.Equal(t, api.CodeNotInState, fault.Code(early.err))
	require.Equal(t, api.CodeResyncPaused, fault.Code(first.err))
	require.NoError(t, stop.err)
	require.Equal(t, api.StateResyncRequired, stop.result.State)
	require.NoError(t, next.err)
}

// TestStoppedByAPersonStaysStopped: nothing but a person starts it again, not even a
// policy that resynchronises at any time.
func TestStoppedByAPersonStaysStopped(t *testing.T) {
	w := newWorld(t)
	w.input.Policy.Resync.Automatic = true
	w.marked()
	w.then(func() {
		require.Equal(t, api.StateResyncing, w.status().State)
		w.SignalWorkflow(api.ActionStopResync, api.ActionRequest{By: "anna"})
	})
	w.then(func() {
		require.Contains(t, w.has(api.CodeResyncPaused).Cause, "stopped by anna")
		w.slow = false
	})
	window := w.ask(api.ActionResync, api.ActionRequest{OnlyIfRequired: true})
	w.expect(api.StateResyncRequired)
	w.ask(api.ActionResync, api.ActionRequest{})
	w.expect(api.StateProtected)
	w.play()
	require.Contains(t, window.result.Message, "drover resync db-1")
}

// TestFailoverGoesBeforeAResync: with the points from before; nobody waits for hours.
func TestFailoverGoesBeforeAResync(t *testing.T) {
	w := newWorld(t)
	w.marked()
	resync := w.ask(api.ActionResync, api.ActionRequest{})
	planned := w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	test := w.ask(api.ActionTestFailover, api.ActionRequest{})
	over := w.ask(api.ActionFailover, api.ActionRequest{Reason: "the site burns"})
	w.expect(api.StateFailedOver)
	w.play()
	require.Equal(t, api.CodeResyncPaused, fault.Code(resync.err))
	require.Equal(t, api.CodeNotInState, fault.Code(planned.err))
	require.Equal(t, api.CodeBusy, fault.Code(test.err))
	require.ErrorContains(t, test.err, "possible now: failover, stop-resync")
	require.NoError(t, over.err)
}

// TestSecondRequestGetsTheRunningOne: one resync, two answers; one for something else is
// refused with what is possible.
func TestSecondRequestGetsTheRunningOne(t *testing.T) {
	w := newWorld(t)
	w.marked()
	one := w.ask(api.ActionResync, api.ActionRequest{By: "anna"})
	two := w.ask(api.ActionResync, api.ActionRequest{By: "bert", Reason: "me too"})
	other := w.ask(api.ActionPause, api.ActionRequest{})
	w.then(w.finish)
	w.expect(api.StateProtected)
	w.play()
	require.NoError(t, one.err)
	require.NoError(t, two.err)
	require.Equal(t, one.result, two.result)
	require.Equal(t, int64(5), two.result.Transfer.DataBytes)
	require.Len(t, w.bases, 2, "the initial copy and one resync")
	require.Equal(t, api.CodeBusy, fault.Code(other.err))
}

// TestRefusalsSayWhatIsPossible, in every state a machine can be asked in.
func TestRefusalsSayWhatIsPossible(t *testing.T) {
	w := newWorld(t)
	w.expect(api.StateProtected)
	commit := w.ask(api.ActionCommit, api.ActionRequest{})
	w.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	pause := w.ask(api.ActionPause, api.ActionRequest{})
	w.play()
	require.ErrorContains(t, commit.err, "commit of db-1 is not possible in state Protected; possible now: resync, pause, test-failover, failover, unprotect, set-policy")
	require.ErrorContains(t, pause.err, "possible now: change-point, commit, roll-back, unprotect, set-policy")
}

// news is what the vault has for the machine, after a change of its policy.
func news(change func(*api.VaultNews)) api.VaultNews {
	n := api.VaultNews{Policy: testInput().Policy, PolicyHash: "h-1", Plans: []string{"shop"}}
	change(&n)
	return n
}

// TestPolicyIsFollowed: a changed policy reaches the machine, without a restart and
// without a resync, and the vault is told.
func TestPolicyIsFollowed(t *testing.T) {
	w := newWorld(t)
	w.input.PolicyHash = "h-1"
	w.expect(api.StateProtected)
	w.then(func() { w.SignalWorkflow(api.SignalVault, news(func(*api.VaultNews) {})) })
	w.then(func() {
		require.Equal(t, []string{"shop"}, w.status().Plans)
		require.Equal(t, "gold h-1 shop", w.joined[len(w.joined)-1].Follows)
		require.Len(t, w.grants, 1, "the policy is the same: nothing is touched")
		w.SignalWorkflow(api.SignalVault, news(func(n *api.VaultNews) { n.PolicyHash, n.Policy.RPOThreshold, n.Policy.CutInterval = "h-2", 60e9, 10e9 }))
	})
	w.then(func() {
		require.Equal(t, "gold h-2 shop", w.joined[len(w.joined)-1].Follows)
		require.Equal(t, api.Duration(10e9), w.grants[len(w.grants)-1].Policy.CutInterval)
		require.Equal(t, w.grants[0].Assignment, w.grants[len(w.grants)-1].Assignment, "the same session goes on")
		w.SignalWorkflow(api.SignalVault, news(func(n *api.VaultNews) { n.PolicyHash, n.Policy.CutInterval = "h-3", 0 })) // nonsense
		w.SignalWorkflow(api.SignalVault, news(func(n *api.VaultNews) { n.PolicyHash, n.Policy.Name = "h-4", "silver" })) // not its own
	})
	w.then(func() { require.Equal(t, "h-2", w.status().PolicyHash) })
	w.play()
	require.Zero(t, w.status().Resyncs)
}

// TestPolicyIsFollowedAfterAnAction: what comes in the middle of an action is taken at
// its end, also across a continue-as-new.
func TestPolicyIsFollowedAfterAnAction(t *testing.T) {
	w := newWorld(t)
	w.input.PolicyHash = "h-1"
	w.marked()
	w.ask(api.ActionResync, api.ActionRequest{})
	w.then(func() {
		w.SignalWorkflow(api.SignalVault, news(func(n *api.VaultNews) { n.PolicyHash, n.Policy.CutInterval = "h-2", 10e9 }))
	})
	w.then(func() {
		require.Equal(t, "h-1", w.status().PolicyHash)
		w.finish()
	})
	w.then(func() { require.Equal(t, "h-2", w.status().PolicyHash) })
	w.play()
}

// TestSignalsOfTheLastMomentAreNotLost: what arrives together with the suggestion to
// continue as new is taken first.
func TestSignalsOfTheLastMomentAreNotLost(t *testing.T) {
	w := newWorld(t)
	w.input.PolicyHash = "h-1"
	w.expect(api.StateProtected)
	w.then(func() {
		w.SetContinueAsNewSuggested(true)
		w.SignalWorkflow(api.SignalVault, news(func(*api.VaultNews) {}))
		w.SignalWorkflow(api.SignalReplicationEvent, api.ReplicationEvent{Problem: api.Problem{Code: api.CodeRPO, Cause: "too old"}})
		w.SignalWorkflow(api.ActionPause, api.ActionRequest{})
	})
	w.ExecuteWorkflow(api.WorkflowMachine, w.input)
	var again *workflow.ContinueAsNewError
	require.ErrorAs(t, w.GetWorkflowError(), &again)
	var in api.MachineInput
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(again.Input, &in))
	require.Equal(t, []string{"shop"}, in.Carry.Status.Plans)
	require.Equal(t, api.CodeRPO, in.Carry.Status.Problems[0].Code)
	require.True(t, in.Carry.Status.State == api.StatePaused || len(in.Carry.Queue) == 1, "done, or carried on")
	require.Contains(t, w.called, api.ActNotify)
}
