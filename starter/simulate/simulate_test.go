package simulate

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/workflows/api"
)

func shop() api.Plan {
	return api.Plan{
		Name: "shop", Before: []api.PlanAction{{Name: "announce", Script: &api.ScriptAction{File: "announce.sh"}}},
		Groups: []api.PlanGroup{
			{Name: "db", Machines: []api.PlanMachine{{Name: "db-1"}}, After: []api.PlanAction{{Name: "checked", Manual: &api.ManualAction{Instructions: "look"}}}},
			{Name: "app", Machines: []api.PlanMachine{{Name: "app-1"}, {Name: "app-2"}}},
		},
		After: []api.PlanAction{{Name: "tell", Webhook: &api.WebhookAction{URL: "https://x/"}}},
	}
}

func TestEveryKindOfRun(t *testing.T) {
	for _, kind := range api.PlanKinds {
		r, err := Run(Options{Plan: shop(), Kind: kind})
		require.NoError(t, err, kind)
		require.Equal(t, api.RunDone, r.State, "%s: %s %+v", kind, r.Message, r.Machines)
		require.Empty(t, r.Broken, kind)
		require.Len(t, r.Machines, 3)
	}
}

func TestFaultsAndDecisions(t *testing.T) {
	fault := func(text string) Fault {
		f, err := ParseFault(text)
		require.NoError(t, err)
		return f
	}
	o := Options{Plan: shop(), Kind: api.PlanPlanned, Faults: []Fault{fault("app-1=target.StartMachine")}, Then: api.PlanSkip}
	r, err := Run(o)
	require.NoError(t, err)
	require.Empty(t, r.Broken)
	require.Equal(t, api.RunDone, r.State)
	require.Equal(t, "2 of 3 machines are done; not: 2/app-1 skipped", r.Message)
	require.Equal(t, []string{"approve 1/after/checked", "skip 2/app-1"}, r.Decided)
	require.Equal(t, Machine{Name: "app-1", State: api.StateProtected, Runs: "source",
		Error: "planned failover of app-1: start the machine: simulated fault: app-1=target.StartMachine"}, r.Machines[1])

	o.Faults, o.Then = []Fault{fault("after/tell")}, api.PlanBack
	r, err = Run(o)
	require.NoError(t, err)
	require.Empty(t, r.Broken)
	require.Equal(t, api.RunUndone, r.State)
	for _, m := range r.Machines {
		require.Equal(t, "source", m.Runs)
	}

	o.Faults = []Fault{fault("db-1=target.StopMachine#3")}
	r, err = Run(o)
	require.NoError(t, err)
	require.Contains(t, r.Message, "never came to the fault db-1=target.StopMachine#3")
	for _, text := range []string{"", "=x", "db-1=", "db-1=x#0", "db-1=x#y"} {
		_, err := ParseFault(text)
		require.Error(t, err, text)
	}
	_, err = Run(Options{Plan: shop(), Kind: "sideways"})
	require.Error(t, err)
	_, err = Run(Options{Plan: shop(), Kind: api.PlanTest, Then: "pray"})
	require.Error(t, err)
}

// TestUnreachableSource: an unplanned failover goes on without its source for a reason only.
func TestUnreachableSource(t *testing.T) {
	o := Options{Plan: shop(), Kind: api.PlanUnplanned, Faults: []Fault{{Call: Call{"db-1", api.ActShutdownVM, 1}}}}
	r, err := Run(o)
	require.NoError(t, err)
	require.Equal(t, api.RunCancelled, r.State)
	require.Equal(t, "source", r.Machines[0].Runs)
	require.Contains(t, r.Machines[0].Error, "give a reason")
	o.Reason = "the site burns"
	r, err = Run(o)
	require.NoError(t, err)
	require.Equal(t, api.RunDone, r.State)
	require.Equal(t, "both", r.Machines[0].Runs, "nobody could switch it off")
	require.Contains(t, r.Steps[1].Message, "make sure that it stays off (reason given: the site burns)")
	require.Empty(t, r.Broken)
}

// TestTheModelNotices: what must hold would be seen if it did not.
func TestTheModelNotices(t *testing.T) {
	for want, f := range map[string]func(*world, *machine){
		"source and target run at the same time": func(w *world, m *machine) {
			m.targets["r"] = &target{TargetMachine: api.TargetMachine{Running: true}}
			w.changed(m)
		},
		"before the epoch was raised": func(w *world, m *machine) {
			m.targets["r"] = &target{}
			_, _ = w.start(m, api.TargetRef{Run: "r"})
		},
		"its disks are attached":        func(w *world, m *machine) { m.attached = true; w.changed(m) },
		"machines in the target: 1":     func(w *world, m *machine) { m.targets["r"] = &target{}; w.settled(m) },
		"1 machines of a test are left": func(w *world, m *machine) { m.targets["r"] = &target{test: true}; w.settled(m) },
		"1 recovery points are held":    func(w *world, m *machine) { m.holds["r"] = []ident.Seq{1}; w.settled(m) },
		"source runs: false":            func(w *world, m *machine) { m.sourceOn = false; w.settled(m) },
		"frozen: true":                  func(w *world, m *machine) { m.frozen = true; w.settled(m) },
		"left in state FailingOver":     func(w *world, m *machine) { m.status.State = api.StateFailingOver; w.settled(m) },
	} {
		w, err := newWorld(Options{Plan: shop(), Kind: api.PlanPlanned})
		require.NoError(t, err)
		w.settled(w.machines[0])
		require.Empty(t, w.broken)
		f(w, w.machines[0])
		require.Len(t, w.broken, 1, want)
		require.Contains(t, w.broken[0], want)
	}
}
