package forecast

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/starter/evidence"
	"drover/workflows/api"
)

func step(id, group string, took time.Duration) api.PlanStep {
	s := api.PlanStep{ID: id, Group: group, State: api.StepDone, Started: time.Unix(1000, 0)}
	s.Finished = s.Started.Add(took)
	return s
}

func TestForecast(t *testing.T) {
	var before []*evidence.Pack
	for n := range 20 {
		took := time.Duration(n+1) * time.Second
		failed := step("1/db", "db", time.Hour)
		failed.State = api.StepFailed
		before = append(before, &evidence.Pack{Steps: []api.PlanStep{
			step("before/a", "", time.Second), step("1/db", "db", took), step("2/x", "app", took), step("2/y", "app", 5*time.Second), failed}})
	}
	f := Of([]api.PlanStep{{ID: "before/a"}, {ID: "1/db", Group: "db"}, {ID: "2/x", Group: "app"}, {ID: "2/y", Group: "app"}, {ID: "after/new"}}, before)
	require.Equal(t, Time{P50: api.Duration(10 * time.Second), P95: api.Duration(19 * time.Second), Runs: 20}, f.Steps["1/db"], "what failed does not count")
	require.Equal(t, Time{P50: api.Duration(5 * time.Second), P95: api.Duration(5 * time.Second), Runs: 20}, f.Steps["2/y"])
	require.Equal(t, []string{"after/new"}, f.Unknown)
	require.Equal(t, api.Duration((1+10+10)*time.Second), f.Whole.P50, "the machines of a group at the same time")
	require.Equal(t, api.Duration((1+19+19)*time.Second), f.Whole.P95)
	require.Zero(t, f.Whole.Runs, "a step is not known")
	one := Of([]api.PlanStep{{ID: "1/db", Group: "db"}}, before[:1])
	require.Equal(t, Time{P50: api.Duration(time.Second), P95: api.Duration(time.Second), Runs: 1}, one.Whole)
}

func TestChanges(t *testing.T) {
	was := api.Plan{Name: "shop", Groups: []api.PlanGroup{
		{Name: "db", Machines: []api.PlanMachine{{Name: "db-1"}}},
		{Name: "app", Machines: []api.PlanMachine{{Name: "app-1"}, {Name: "app-2", Optional: true}}, After: []api.PlanAction{
			{Name: "check", Script: &api.ScriptAction{File: "a.sh", Args: []string{"x"}}, Timeout: api.Duration(time.Minute)}}}}}
	same, err := Changes(was, was)
	require.NoError(t, err)
	require.Empty(t, same)
	is := api.Plan{Name: "shop", RTO: api.Duration(time.Hour), Before: []api.PlanAction{{Name: "tell", Webhook: &api.WebhookAction{URL: "https://x/"}}},
		Groups: []api.PlanGroup{
			{Name: "app", Machines: []api.PlanMachine{{Name: "app-1"}, {Name: "app-2"}, {Name: "app-3"}}, After: []api.PlanAction{
				{Name: "check", Script: &api.ScriptAction{File: "a.sh", Args: []string{"y"}}, Timeout: api.Duration(time.Minute)}}},
			{Name: "db", Machines: []api.PlanMachine{}}}}
	got, err := Changes(was, is)
	require.NoError(t, err)
	require.Equal(t, []string{
		`before: tell is new`,
		`groups: another order, from app on`,
		`groups[app].after[check].script.args: was ["x"], is ["y"]`,
		`groups[app].machines[app-2].optional: was true, is nothing`,
		`groups[app].machines: app-3 is new`,
		`groups[db].machines: db-1 is gone`,
		`rto: was nothing, is "1h0m0s"`,
	}, got)
	all, err := Changes(api.Plan{}, is)
	require.NoError(t, err)
	require.Contains(t, all, `name: was "", is "shop"`)
}
