package plan

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

func script(name string) api.PlanAction {
	return api.PlanAction{Name: name, Script: &api.ScriptAction{File: name + ".sh"}}
}

func manual(name string) api.PlanAction {
	return api.PlanAction{Name: name, Manual: &api.ManualAction{Instructions: "check it"}}
}

func shop() api.Plan {
	return api.Plan{
		Name: "shop", Before: []api.PlanAction{script("announce")},
		Groups: []api.PlanGroup{
			{Name: "db", Machines: []api.PlanMachine{{Name: "db-1"}}, After: []api.PlanAction{manual("checked")}},
			{Name: "app", Machines: []api.PlanMachine{{Name: "app-1"}, {Name: "app-2"}}},
		},
		After: []api.PlanAction{{Name: "tell", Webhook: &api.WebhookAction{URL: "https://x/"}}},
	}
}

// world is a run with everything around it.
type world struct {
	*testsuite.TestWorkflowEnvironment
	plan    api.Plan
	mu      sync.Mutex // activities run side by side
	log     []string   // what happened, in order
	fails   map[string]int
	told    []string // people
	actions []api.MachineActionInput
	before  map[string]bool // machines that are failed over already
	refuses map[string]bool // machines that the target has no room for
}

func newWorld(plan api.Plan) *world {
	w := &world{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment(), plan: plan, fails: map[string]int{}}
	reg := func(name string, f any) { w.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	reg(api.ActLookupPlan, func(string) (api.Plan, error) { return w.plan, nil })
	reg(api.ActFindMachine, func(name string) (api.VaultMember, error) {
		if name == "absent" {
			return api.VaultMember{}, fault.New(api.CodeNotFound, "no machine absent")
		}
		return api.VaultMember{Machine: ident.NewMachineID("v", name), Name: name}, nil
	})
	reg(api.ActCheckActions, func(actions []api.LocatedAction) (wrong []api.FieldError, _ error) {
		for _, a := range actions {
			if a.Action.Script != nil && a.Action.Script.File == "absent.sh" {
				wrong = append(wrong, api.FieldError{Path: a.Path + ".script.file", Reason: "script absent.sh is not in the script directory"})
			}
		}
		return wrong, nil
	})
	reg(api.ActScript, func(in api.ScriptInput) (api.ActionOutput, error) {
		return api.ActionOutput{Output: "said"}, w.do("script " + in.Step)
	})
	reg(api.ActWebhook, func(in api.WebhookInput) (api.ActionOutput, error) {
		return api.ActionOutput{}, w.do("webhook " + in.Step)
	})
	reg(api.ActChooseCommon, func(in api.ChooseCommonInput) (out []api.CommonPoint, _ error) {
		for i, m := range in.Machines[:2] { // the last has none
			out = append(out, api.CommonPoint{Machine: m, Point: ident.Seq(i + 7), Round: 3})
		}
		return out, w.do(fmt.Sprintf("choose %s of %d machines", in.Choice, len(in.Machines)))
	})
	reg(api.ActReleasePoint, func(in api.ReleasePointInput) error { return w.do(fmt.Sprintf("release %d", in.Point)) })
	reg(api.ActNotify, func(n api.Notification) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.told = append(w.told, n.Subject)
		return nil
	})
	reg(api.ActDoneBefore, func(in api.MachineActionInput) (api.DoneBefore, error) {
		return api.MachineStatus{Machine: in.Machine, State: api.StateFailedOver}.DoneBefore(in.Action), nil
	})
	reg(api.ActTargetOf, func(in api.PrecheckInput) (api.CheckNetworkInput, error) {
		for name := range w.refuses {
			if in.Machine == ident.NewMachineID("v", name) {
				return api.CheckNetworkInput{Network: name}, nil
			}
		}
		return api.CheckNetworkInput{}, nil
	})
	reg(api.ActReturnOf, func(in api.PrecheckInput) (api.MakeVMInput, error) {
		return api.MakeVMInput{VM: api.VM{Machine: in.Machine, Name: "x"}, At: in.Location}, nil
	})
	reg(api.ActCheckLocation, func(in api.MakeVMInput) error {
		if in.At != nil {
			return fault.New(api.CodeInvalid, "datastore %s is full", in.At.Datastore)
		}
		return nil
	})
	reg(api.ActCheckNetwork, func(in api.CheckNetworkInput) error {
		if in.Network != "" {
			return fault.New(api.CodeQuota, "the quota has no room for %s", in.Network)
		}
		return nil
	})
	reg(api.ActRunbook, func(in api.RunbookInput) (api.ActionOutput, error) {
		names := in.Group
		for _, m := range in.Machines {
			names += " " + m.Name + "=" + m.TargetRun
		}
		return api.ActionOutput{Output: "ran"}, w.do("runbook " + in.Step + " " + in.Runbook.Name + ": " + names)
	})
	reg(api.ActMachineAction, func(in api.MachineActionInput) (api.ActionResult, error) {
		w.mu.Lock()
		w.actions = append(w.actions, in)
		w.mu.Unlock()
		parts := strings.Split(in.Request.RequestID, "/")
		name := parts[len(parts)-2]
		if w.before[name] {
			return api.ActionResult{}, fault.New(api.CodeNotInState, "it is FailedOver")
		}
		target := &api.TargetMachine{Name: name, Tags: map[string]string{"drover-run": "run-" + name}}
		return api.ActionResult{Name: name, Message: "fine", Target: target}, w.do(in.Action + " " + name)
	})
	return w
}

// do notes what happened; it fails as often as told.
func (w *world) do(what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, what)
	if w.fails[what] > 0 {
		w.fails[what]--
		return temporal.NewNonRetryableApplicationError(what+" failed", api.CodeActionFailed, nil)
	}
	return nil
}

func (w *world) status(t *testing.T) api.PlanStatus {
	t.Helper()
	v, err := w.QueryWorkflow(api.QueryStatus)
	require.NoError(t, err)
	var s api.PlanStatus
	require.NoError(t, v.Get(&s))
	return s
}

func (w *world) run(kind api.PlanKind) error {
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: kind, By: "anna"})
	return w.GetWorkflowError()
}

// signal sends a decision later.
func (w *world) signal(after time.Duration, what string, d api.StepDecision) {
	w.RegisterDelayedCallback(func() { w.SignalWorkflow(what, d) }, after)
}

func states(s api.PlanStatus) string {
	var out []string
	for _, step := range s.Steps {
		out = append(out, fmt.Sprintf("%s=%s", step.ID, step.State))
	}
	return strings.Join(out, " ")
}

// TestPointsInCommon: they are chosen once, before anything is touched, and held as long
// as the run lasts; a machine without one gets its latest.
func TestPointsInCommon(t *testing.T) {
	for _, fails := range []bool{false, true} {
		plan := shop()
		plan.Groups[0].After = nil
		w := newWorld(plan)
		if fails {
			w.fails["script before/announce"] = 100
			w.signal(time.Minute, api.PlanCancel, api.StepDecision{By: "anna"})
		}
		w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanTest, Point: api.PointLatestMulti, By: "anna"})
		require.Equal(t, "choose latest-multi-machine of 3 machines", w.log[0])
		require.Equal(t, []string{"release 7", "release 8"}, w.log[len(w.log)-2:])
		if fails {
			require.Error(t, w.GetWorkflowError())
			continue
		}
		require.NoError(t, w.GetWorkflowError())
		points := map[string]string{}
		for _, a := range w.actions {
			name := strings.Split(a.Request.RequestID, "/")[3]
			points[name] = fmt.Sprintf("%s %d", a.Request.Point, a.Request.PointID)
		}
		require.Equal(t, map[string]string{"db-1": "custom 7", "app-1": "custom 8", "app-2": "latest 0"}, points)
	}
	w := newWorld(shop())
	w.signal(time.Minute, api.PlanApprove, api.StepDecision{By: "bert"})
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned, Point: api.PointLatestMulti})
	require.NotContains(t, strings.Join(w.log, " "), "choose", "a planned one makes last points of its own")
}

func TestDryRun(t *testing.T) {
	w := newWorld(shop())
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned, By: "anna", DryRun: true})
	require.NoError(t, w.GetWorkflowError())
	s := w.status(t)
	require.Equal(t, api.RunDone, s.State)
	require.Equal(t, "before/announce=pending 1/db-1=pending 1/after/checked=pending 2/app-1=pending 2/app-2=pending after/tell=pending", states(s))
	require.Empty(t, w.log, "nothing was done")

	wrong := shop()
	wrong.Before = []api.PlanAction{script("absent")}
	w = newWorld(wrong)
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned, DryRun: true})
	require.ErrorContains(t, w.GetWorkflowError(), "absent.sh is not in the script directory")
}

func TestOrderAndManualStep(t *testing.T) {
	w := newWorld(shop())
	w.RegisterDelayedCallback(func() {
		s := w.status(t)
		require.Equal(t, api.RunWaiting, s.State)
		require.Equal(t, "before/announce=done 1/db-1=done 1/after/checked=waiting 2/app-1=pending 2/app-2=pending after/tell=pending", states(s))
		require.Equal(t, []string{"script before/announce", "failover db-1"}, w.log, "nothing goes on before the approval")
	}, time.Minute)
	w.signal(2*time.Minute, api.PlanApprove, api.StepDecision{By: "bert", Note: "it answers"})
	require.NoError(t, w.run(api.PlanPlanned))
	s := w.status(t)
	require.Equal(t, api.RunDone, s.State)
	require.Equal(t, "before/announce=done 1/db-1=done 1/after/checked=done 2/app-1=done 2/app-2=done after/tell=done", states(s))
	require.Equal(t, "bert", s.Steps[2].By)
	require.ElementsMatch(t, []string{"failover app-1", "failover app-2"}, w.log[2:4])
	require.Equal(t, "webhook after/tell", w.log[4])
	require.GreaterOrEqual(t, s.RTO.D(), 2*time.Minute)
	for _, a := range w.actions {
		require.True(t, a.Request.Planned)
		require.Equal(t, "anna", a.Request.By)
	}
	require.NotEqual(t, w.actions[0].Request.RequestID, w.actions[1].Request.RequestID)
}

func TestKinds(t *testing.T) {
	for kind, action := range map[api.PlanKind]string{
		api.PlanCleanup: api.ActionCleanup, api.PlanCommit: api.ActionCommit, api.PlanReprotect: api.ActionReprotect, api.PlanReenable: api.ActionReenable,
	} {
		w := newWorld(shop())
		require.NoError(t, w.run(kind))
		require.Len(t, w.log, 3, "machines only, no scripts or pauses: %v", w.log)
		require.Equal(t, action+" db-1", w.log[0])
	}
	plan := shop()
	plan.Groups[0].After[0].On = []api.PlanKind{api.PlanPlanned}
	w := newWorld(plan)
	require.NoError(t, w.run(api.PlanTest))
	require.Contains(t, w.log, api.ActionTestFailover+" app-2")
	require.NotContains(t, states(w.status(t)), "checked")
	require.Error(t, newWorld(shop()).run("sideways"))
}

func TestNothingStartsWhenAMachineIsMissing(t *testing.T) {
	plan := shop()
	plan.Groups[1].Machines[1].Name = "absent"
	w := newWorld(plan)
	err := w.run(api.PlanPlanned)
	require.Equal(t, api.CodeNotFound, fault.Code(err))
	require.Empty(t, w.log)
	require.Equal(t, api.RunFailed, w.status(t).State)
}

func TestFailedMachineStopsThePlan(t *testing.T) {
	w := newWorld(shop())
	w.fails["failover db-1"] = 1
	err := w.run(api.PlanUnplanned)
	require.Equal(t, api.CodeActionFailed, fault.Code(err))
	require.Equal(t, []string{"script before/announce", "failover db-1"}, w.log)
	require.Equal(t, "before/announce=done 1/db-1=failed 1/after/checked=pending 2/app-1=pending 2/app-2=pending after/tell=pending", states(w.status(t)))
}

func TestOptionalMachineDoesNot(t *testing.T) {
	plan := shop()
	plan.Groups[1].Machines[0].Optional = true
	plan.Groups[0].After = nil
	w := newWorld(plan)
	w.fails["failover app-1"] = 1
	require.NoError(t, w.run(api.PlanPlanned))
	require.Contains(t, states(w.status(t)), "2/app-1=failed 2/app-2=done after/tell=done")
}

func TestOnError(t *testing.T) {
	plan := shop()
	plan.Groups[0].After = nil
	plan.Before[0].OnError = "continue"
	w := newWorld(plan)
	w.fails["script before/announce"] = 1
	require.NoError(t, w.run(api.PlanTest))
	require.Contains(t, states(w.status(t)), "before/announce=failed 1/db-1=done")

	plan.Before[0].OnError = "ask"
	w = newWorld(plan)
	w.fails["script before/announce"] = 2
	w.signal(time.Minute, api.PlanApprove, api.StepDecision{}) // does not fit, is passed over
	w.signal(2*time.Minute, api.PlanRetry, api.StepDecision{})
	w.signal(3*time.Minute, api.PlanSkip, api.StepDecision{By: "bert"})
	require.NoError(t, w.run(api.PlanTest))
	require.Contains(t, states(w.status(t)), "before/announce=skipped 1/db-1=done")
	require.Equal(t, []string{"script before/announce", "script before/announce", "test-failover db-1"}, w.log[:3])
}

func TestRejectTimeoutAndCancel(t *testing.T) {
	w := newWorld(shop())
	w.signal(time.Minute, api.PlanReject, api.StepDecision{By: "bert", Note: "no data"})
	err := w.run(api.PlanPlanned)
	require.Equal(t, api.CodeActionFailed, fault.Code(err))
	require.ErrorContains(t, err, "rejected by bert: no data")

	w = newWorld(shop())
	require.Equal(t, api.CodeApprovalTimedOut, fault.Code(w.run(api.PlanPlanned)), "nobody comes for a day")

	w = newWorld(shop())
	w.signal(time.Minute, api.PlanCancel, api.StepDecision{By: "bert"})
	require.Error(t, w.run(api.PlanPlanned))
	s := w.status(t)
	require.Equal(t, api.RunCancelled, s.State)
	require.Contains(t, s.Message, "bert")
	require.NotContains(t, w.log, "failover app-1")
}

// answer is what became of an update.
type answer struct{ err error }

func (a *answer) Accept()                 {}
func (a *answer) Reject(err error)        { a.err = err }
func (a *answer) Complete(_ any, e error) { a.err = errors.Join(a.err, e) }

func TestUpdatesAreRefusedWhenTheyDoNotFit(t *testing.T) {
	w := newWorld(shop())
	early, wrong, right := &answer{}, &answer{}, &answer{}
	w.RegisterDelayedCallback(func() {
		w.UpdateWorkflow(api.PlanRetry, "", wrong, api.StepDecision{})
		w.UpdateWorkflow(api.PlanApprove, "", early, api.StepDecision{Step: "2/app-1"})
		w.UpdateWorkflow(api.PlanApprove, "", right, api.StepDecision{Step: "1/after/checked"})
	}, time.Minute)
	require.NoError(t, w.run(api.PlanPlanned))
	require.Equal(t, api.CodeInvalid, fault.Code(wrong.err))
	require.Equal(t, api.CodeNotInState, fault.Code(early.err))
	require.NoError(t, right.err)
}

func TestNothingStartsWhenAScriptIsMissing(t *testing.T) {
	plan := shop()
	plan.Groups[0].After = nil // nobody is there to approve
	plan.After = append(plan.After, api.PlanAction{Name: "late", Script: &api.ScriptAction{File: "absent.sh"}, On: []api.PlanKind{api.PlanPlanned}})
	w := newWorld(plan)
	w.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanPlanned})
	require.Equal(t, api.CodeInvalid, fault.Code(w.GetWorkflowError()))
	require.ErrorContains(t, w.GetWorkflowError(), "after[1].script.file: script absent.sh is not in the script directory; nothing was started")
	require.Empty(t, w.log)

	other := newWorld(plan)
	other.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "shop", Kind: api.PlanTest})
	require.NoError(t, other.GetWorkflowError(), "a drill does not need the script of the failover")

	check := newWorld(plan)
	check.RegisterWorkflow(Check)
	check.ExecuteWorkflow(Check, plan)
	require.NoError(t, check.GetWorkflowError())
	var wrong []api.FieldError
	require.NoError(t, check.GetWorkflowResult(&wrong))
	require.Equal(t, "after[1].script.file", wrong[0].Path)
}

func TestRunbooksGetTheirMachines(t *testing.T) {
	book := func(name string) []api.PlanAction {
		return []api.PlanAction{{Name: name, Runbook: &api.RunbookAction{Name: "Tell"}}}
	}
	p := shop()
	p.Before, p.After = book("first"), book("last")
	p.Groups[0].After, p.Groups[1].Before = nil, book("between")
	w := newWorld(p)
	require.NoError(t, w.run(api.PlanPlanned))
	var got []string
	for _, l := range w.log {
		if strings.HasPrefix(l, "runbook") {
			got = append(got, l)
		}
	}
	require.Equal(t, []string{
		"runbook before/first Tell:  db-1= app-1= app-2=",
		"runbook 2/before/between Tell: app app-1= app-2=",
		"runbook after/last Tell:  db-1=run-db-1 app-1=run-app-1 app-2=run-app-2",
	}, got)
	require.Contains(t, states(w.status(t)), "after/last=done")
}

func TestRunbookFields(t *testing.T) {
	p := shop()
	for name, ok := range map[string]bool{"Open-Port": true, "": false, "1st": false, "a/b": false, strings.Repeat("a", 64): false} {
		p.Before = []api.PlanAction{{Name: "x", Runbook: &api.RunbookAction{Name: name}}}
		require.Equal(t, ok, len(api.ValidatePlan(p)) == 0, name)
	}
	p.Before[0].Runbook = &api.RunbookAction{Name: "a", Parameters: map[string]string{"RecoveryPlanContext": "mine"}}
	require.Len(t, api.ValidatePlan(p), 1)
}
