package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// quiet is the plan without its manual step.
func quiet() api.Plan {
	p := shop()
	p.Groups[0].After = nil
	return p
}

// at looks at the run after a while.
func (w *world) at(t *testing.T, after time.Duration, f func(s api.PlanStatus)) {
	w.RegisterDelayedCallback(func() { f(w.status(t)) }, after)
}

func TestStoppedRunGoesOn(t *testing.T) {
	w := newWorld(quiet())
	w.fails["failover app-1"] = 2
	w.at(t, time.Minute, func(s api.PlanStatus) {
		require.Equal(t, api.RunStopped, s.State)
		require.Equal(t, "before/announce=done 1/db-1=done 2/app-1=failed 2/app-2=done after/tell=pending", states(s), "the others of its group went on")
	})
	w.signal(2*time.Minute, api.PlanRetry, api.StepDecision{By: "bert"})
	w.signal(3*time.Minute, api.PlanSkip, api.StepDecision{By: "carla"})
	require.NoError(t, w.run(api.PlanPlanned))
	s := w.status(t)
	require.Equal(t, "before/announce=done 1/db-1=done 2/app-1=skipped 2/app-2=done after/tell=done", states(s))
	require.Equal(t, "carla", s.Steps[2].By)
	require.Equal(t, "2 of 3 machines are done; not: 2/app-1 skipped", s.Message)
	require.Equal(t, 2, strings.Count(strings.Join(w.log, "\n"), "failover app-1"))
	require.Contains(t, w.told, "plan run default-test-workflow-id waits at step 2/app-1")
}

func TestStoppedRunEndsWhenNobodyComes(t *testing.T) {
	w := newWorld(quiet())
	w.fails["failover db-1"] = 1
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned, HoldFor: api.Duration(time.Hour)})
	require.Equal(t, api.CodeActionFailed, fault.Code(w.GetWorkflowError()))
	s := w.status(t)
	require.Equal(t, api.RunFailed, s.State)
	require.Contains(t, s.Message, "failover db-1 failed", "what stopped it, not that nobody came")
	require.Equal(t, time.Hour, s.Finished.Sub(s.Started).Round(time.Minute))
}

func TestRunIsRolledBack(t *testing.T) {
	for kind, undo := range map[api.PlanKind]string{api.PlanPlanned: api.ActionRollBack, api.PlanTest: api.ActionCleanup} {
		w := newWorld(quiet())
		action := api.ActionOf(kind)
		w.fails[action+" app-1"] = 1
		w.fails[undo+" db-1"] = 1
		w.signal(time.Minute, api.PlanBack, api.StepDecision{By: "bert"})
		w.at(t, 2*time.Minute, func(s api.PlanStatus) {
			require.Equal(t, api.RunStopped, s.State)
			require.Equal(t, api.StepFailed, s.Steps[1].Undo)
		})
		again := &answer{}
		w.RegisterDelayedCallback(func() { w.UpdateWorkflow(api.PlanBack, "", again, api.StepDecision{}) }, 2*time.Minute)
		w.signal(3*time.Minute, api.PlanRetry, api.StepDecision{By: "bert"})
		require.Error(t, w.run(kind))
		s := w.status(t)
		require.Equal(t, api.RunUndone, s.State)
		require.Equal(t, "rolled back by bert", s.Message)
		require.Equal(t, []string{undo + " app-2", undo + " db-1", undo + " db-1"}, w.only(undo), "the last group first; what failed is back already")
		require.Equal(t, api.CodeBusy, fault.Code(again.err))
	}
}

// only gives the lines of the log that begin so.
func (w *world) only(prefix string) (out []string) {
	for _, l := range w.log {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

func TestWhatCannotBeRolledBackIsRefused(t *testing.T) {
	w := newWorld(quiet())
	w.fails[api.ActionCommit+" app-1"] = 1
	no, late := &answer{}, &answer{}
	w.RegisterDelayedCallback(func() { w.UpdateWorkflow(api.PlanBack, "", no, api.StepDecision{}) }, time.Minute)
	w.signal(2*time.Minute, api.PlanCancel, api.StepDecision{By: "bert"})
	w.RegisterDelayedCallback(func() { w.UpdateWorkflow(api.PlanRetry, "", late, api.StepDecision{}) }, 3*time.Minute)
	require.Error(t, w.run(api.PlanCommit))
	require.Equal(t, api.CodeNotInState, fault.Code(no.err))
	require.ErrorContains(t, no.err, "nothing undoes commit of db-1")
	s := w.status(t)
	require.Equal(t, api.RunCancelled, s.State)
	require.Equal(t, "cancelled by bert; 2 of 3 machines are done; not: 2/app-1 failed", s.Message)
}

func TestRollBackOfAPlan(t *testing.T) {
	w := newWorld(quiet())
	require.NoError(t, w.run(api.PlanRollBack))
	require.Len(t, w.log, 3)
	require.Equal(t, "roll-back db-1", w.log[2], "the first group comes last")
}

func TestPauseAndResume(t *testing.T) {
	w := newWorld(shop())
	w.signal(time.Minute, api.PlanPause, api.StepDecision{By: "bert"})
	w.signal(2*time.Minute, api.PlanApprove, api.StepDecision{})
	w.at(t, time.Hour, func(s api.PlanStatus) {
		require.Equal(t, api.RunPaused, s.State)
		require.Contains(t, states(s), "1/after/checked=done 2/app-1=pending")
	})
	w.signal(2*time.Hour, api.PlanResume, api.StepDecision{})
	require.NoError(t, w.run(api.PlanPlanned))
}

func TestReturnInThreePhases(t *testing.T) {
	p := quiet()
	p.After[0].On = []api.PlanKind{api.PlanReenable}
	w := newWorld(p)
	w.at(t, time.Minute, func(s api.PlanStatus) {
		require.Equal(t, api.RunPaused, s.State)
		require.Len(t, w.only("reprotect"), 3)
		require.Empty(t, w.only("failback"))
	})
	w.signal(2*time.Minute, api.PlanResume, api.StepDecision{})
	w.signal(3*time.Minute, api.PlanResume, api.StepDecision{})
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanReturn, PauseBetween: true})
	require.NoError(t, w.GetWorkflowError())
	require.Equal(t, "reprotect/1/db-1=done reprotect/2/app-1=done reprotect/2/app-2=done "+
		"failback/before/announce=done failback/1/db-1=done failback/2/app-1=done failback/2/app-2=done "+
		"reenable/1/db-1=done reenable/2/app-1=done reenable/2/app-2=done reenable/after/tell=done", states(w.status(t)))
	require.Equal(t, "script failback/before/announce", w.log[3], "a plan's actions take part on the way back")
}

func TestReturnIsRolledBackFromItsSecondPhase(t *testing.T) {
	w := newWorld(quiet())
	w.fails["failback app-1"] = 1
	w.signal(time.Minute, api.PlanBack, api.StepDecision{By: "bert"})
	require.Error(t, w.run(api.PlanReturn))
	require.Equal(t, api.RunUndone, w.status(t).State)
	require.ElementsMatch(t, []string{"roll-back app-2", "roll-back db-1", "roll-back app-1"}, w.only("roll-back"),
		"once each: from the failback, and where that failed from the reprotect")
}

func TestApprovers(t *testing.T) {
	p := shop()
	p.Groups[0].After[0].Manual.Approvers = []string{"bert", "carla"}
	w := newWorld(p)
	no := &answer{}
	w.RegisterDelayedCallback(func() { w.UpdateWorkflow(api.PlanApprove, "", no, api.StepDecision{By: "anna"}) }, time.Minute)
	w.signal(2*time.Minute, api.PlanReject, api.StepDecision{By: "mallory"})
	w.signal(3*time.Minute, api.PlanApprove, api.StepDecision{By: "carla"})
	require.NoError(t, w.run(api.PlanPlanned))
	require.ErrorContains(t, no.err, "decided by bert, carla, not by \"anna\"")
	require.Equal(t, "carla", w.status(t).Steps[2].By)
}

func TestNextRunGoesOnWhereOneWasCancelled(t *testing.T) {
	w := newWorld(quiet())
	w.before = map[string]bool{"db-1": true}
	require.NoError(t, w.run(api.PlanPlanned))
	s := w.status(t)
	require.Equal(t, "it was so already", s.Steps[1].Message)
	require.Equal(t, "fine", s.Steps[2].Message)
}

// TestLocations go from the plan to its machines, in a reprotect; a dry run asks vCenter.
func TestLocations(t *testing.T) {
	at := &api.Location{Datastore: "ssd"}
	for kind, want := range map[api.PlanKind]*api.Location{api.PlanReprotect: at, api.PlanFailback: nil, api.PlanReturn: at} {
		p := quiet()
		p.Groups[0].Machines[0].Location = at
		w := newWorld(p)
		require.NoError(t, w.run(kind))
		for _, a := range w.actions {
			if a.Action == api.ActionReprotect && a.Machine == ident.NewMachineID("v", "db-1") {
				require.Equal(t, want, a.Request.Location, kind)
				continue
			}
			require.Nil(t, a.Request.Location, kind)
		}
		w = newWorld(p)
		w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: kind, DryRun: true})
		require.NoError(t, w.GetWorkflowError())
		for _, s := range w.status(t).Steps {
			if want != nil && s.Name == "db-1" && (s.Phase == "" || s.Phase == api.PlanReprotect) {
				require.Equal(t, "datastore ssd is full", s.Problem, s.ID)
				continue
			}
			require.Empty(t, s.Problem, s.ID)
		}
	}
}

// TestHowSourcesAreBroughtDown goes from the plan to its machines, in an unplanned failover.
func TestHowSourcesAreBroughtDown(t *testing.T) {
	how := api.SourceShutdown{Limit: api.Duration(time.Minute), ThenPowerOff: true}
	for kind, want := range map[api.PlanKind]api.SourceShutdown{api.PlanUnplanned: how, api.PlanPlanned: {}, api.PlanFailback: {}} {
		p := quiet()
		p.Shutdown = how
		w := newWorld(p)
		require.NoError(t, w.run(kind))
		for _, a := range w.actions {
			require.Equal(t, want, a.Request.Shutdown, kind)
		}
	}
}

func TestPointsByName(t *testing.T) {
	w := newWorld(quiet())
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanUnplanned, Points: map[string]ident.Seq{"db-1": 7},
		Verify: true, CommitAfter: api.Duration(time.Hour)})
	require.NoError(t, w.GetWorkflowError())
	require.Equal(t, api.PointCustom, w.actions[0].Request.Point)
	require.Equal(t, ident.Seq(7), w.actions[0].Request.PointID)
	require.Zero(t, w.actions[1].Request.PointID)
	require.True(t, w.actions[1].Request.Verify)
	require.Equal(t, api.Duration(time.Hour), w.actions[1].Request.CommitAfter)
	for _, in := range []api.PlanRunInput{{Points: map[string]ident.Seq{"other": 7}}, {Point: api.PointCustom, Points: map[string]ident.Seq{"db-1": 7}}} {
		w = newWorld(quiet())
		in.Plan, in.Kind = "shop", api.PlanUnplanned
		w.ExecuteWorkflow(Workflow, in)
		require.Equal(t, api.CodeInvalid, fault.Code(w.GetWorkflowError()))
		require.Empty(t, w.log)
	}
}

func TestDryRunAsksTheTarget(t *testing.T) {
	w := newWorld(quiet())
	w.refuses = map[string]bool{"app-2": true}
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned, DryRun: true})
	require.NoError(t, w.GetWorkflowError())
	s := w.status(t)
	require.Empty(t, s.Steps[1].Problem)
	require.Equal(t, "the quota has no room for app-2", s.Steps[3].Problem)
}
