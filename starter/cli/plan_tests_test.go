package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
)

func TestLinesOfTests(t *testing.T) {
	now := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	passed := now.Add(-100 * 24 * time.Hour)
	lines := []testLine{
		lineOfTest(api.MachineStatus{Name: "new"}, now),
		lineOfTest(api.MachineStatus{Name: "good", Test: &api.TestResult{Started: passed, Verdict: "passed", Passed: passed, Notes: "slow"}}, now),
		lineOfTest(api.MachineStatus{Name: "old", Test: &api.TestResult{Started: passed, Verdict: "passed", Passed: now.Add(-api.TestEvery - time.Hour)}}, now),
		lineOfTest(api.MachineStatus{Name: "fails", Test: &api.TestResult{Started: now, Verdict: "no room", Passed: passed}}, now),
	}
	var overdue []string
	for _, l := range lines {
		if l.Overdue {
			overdue = append(overdue, l.Machine)
		}
	}
	require.Equal(t, []string{"new", "old"}, overdue)
	require.Nil(t, lines[0].Due)
	require.Equal(t, passed.Add(api.TestEvery), *lines[3].Due, "a test that failed takes nothing away from the one before")
	var out strings.Builder
	printTests(&out, lines)
	require.Contains(t, out.String(), "2 of 4 machines are due for a test")
	require.Contains(t, out.String(), "slow")

	v := api.VaultStatus{Machines: []api.VaultMember{{Name: "a"}, {Name: "b"}}, Plans: []api.StoredPlan{{Plan: api.Plan{Name: "p", Groups: []api.PlanGroup{{Machines: []api.PlanMachine{{Name: "b"}}}}}}}}
	members, err := ofPlan(v, "p")
	require.NoError(t, err)
	require.Equal(t, []api.VaultMember{{Name: "b"}}, members)
	_, err = ofPlan(v, "q")
	require.Error(t, err)
}
