package azure_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/activities/action"
	"drover/activities/azure"
	"drover/datapath/ident"
	"drover/tests/azurearm"
	"drover/workflows/api"
)

func runbook(step string) api.RunbookInput {
	return api.RunbookInput{
		Plan: "shop", Run: "plan-shop-1", Step: step, Kind: api.PlanTest, Group: "db",
		Runbook:  api.RunbookAction{Name: "Open-Port", Parameters: map[string]string{"port": "443"}},
		Machines: []api.RunbookMachine{{Machine: machine, Name: "db-1", TargetName: "db-1-test", TargetRun: "test/1", Point: 7}, {Machine: ident.NewMachineID("vc", "x"), Name: "x"}},
	}
}

func (w *world) actions() *action.Activities {
	w.t.Helper()
	a, err := action.New(action.Config{Logger: slog.New(slog.DiscardHandler), Runbooks: w.cloud()})
	require.NoError(w.t, err)
	return a
}

func TestRunbook(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	book := &azurearm.Runbook{Name: "Open-Port", State: "Published", Ends: "Completed", Output: strings.Repeat("much ", 4000) + "the end"}
	w.AddRunbook(book)
	a := w.actions()
	out, err := a.Runbook(t.Context(), runbook("1/after/open"))
	require.NoError(t, err)
	require.LessOrEqual(t, len(out.Output), 4096)
	require.True(t, strings.HasSuffix(out.Output, "the end"))
	var given map[string]string
	require.NoError(t, json.Unmarshal([]byte(book.Jobs[0]), &given))
	require.Equal(t, "443", given["port"])
	var about map[string]any
	require.NoError(t, json.Unmarshal([]byte(given["RecoveryPlanContext"]), &about))
	require.Equal(t, "shop", about["RecoveryPlanName"])
	require.Equal(t, "Test", about["FailoverType"])
	require.Equal(t, "PrimaryToSecondary", about["FailoverDirection"])
	require.Equal(t, "db", about["GroupId"])
	require.Contains(t, given["RecoveryPlanContext"], `"RecoveryPointId":"7"`)

	_, err = a.Runbook(t.Context(), runbook("1/after/open"))
	require.NoError(t, err)
	require.Len(t, book.Jobs, 1, "a second try of the step takes the job that ended well")
	_, err = a.Runbook(t.Context(), runbook("2/after/open"))
	require.NoError(t, err)
	require.Len(t, book.Jobs, 2)
}

func TestRunbookThatFails(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	book := &azurearm.Runbook{Name: "Open-Port", State: "Published", Ends: "Failed", Error: "no such port"}
	w.AddRunbook(book)
	_, err := w.actions().Runbook(t.Context(), runbook("s"))
	require.Equal(t, api.CodeActionFailed, code(t, err))
	require.ErrorContains(t, err, "no such port")
	book.Ends = "Completed"
	_, err = w.actions().Runbook(t.Context(), runbook("s"))
	require.NoError(t, err, "another job after one that failed")
	require.Len(t, book.Jobs, 2)
	w.Inject(azurearm.Fault{Method: "PUT", Path: "/jobs/", Lost: true})
	_, err = w.actions().Runbook(t.Context(), runbook("lost"))
	require.NoError(t, err)
	require.Len(t, book.Jobs, 3, "its reply was lost, and it was started once")
}

func TestRunbookThatNeverEnds(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	book := &azurearm.Runbook{Name: "Open-Port", State: "Published"}
	w.AddRunbook(book)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := w.actions().Runbook(ctx, runbook("s"))
	require.Error(t, err)
	require.Equal(t, 1, book.Stops, "its job is stopped")
}

func TestRunbookIsCheckedBefore(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	w.AddRunbook(&azurearm.Runbook{Name: "Draft", State: "New"})
	w.AddRunbook(&azurearm.Runbook{Name: "Good", State: "Published"})
	actions := []api.LocatedAction{}
	for _, n := range []string{"Absent", "Draft", "Good"} {
		actions = append(actions, api.LocatedAction{Path: n, Action: api.PlanAction{Name: n, Runbook: &api.RunbookAction{Name: n}}})
	}
	wrong, err := w.actions().Check(t.Context(), actions)
	require.NoError(t, err)
	require.Len(t, wrong, 2)
	require.Contains(t, wrong[0].Reason, "does not exist")
	require.Contains(t, wrong[1].Reason, "never published")
	w.config.Automation = ""
	wrong, err = w.actions().Check(t.Context(), actions)
	require.NoError(t, err)
	require.Len(t, wrong, 3)
}
