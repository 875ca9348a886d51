package replay

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/workflows"
	"drover/workflows/api"
)

func replayer() worker.WorkflowReplayer {
	r := worker.NewWorkflowReplayer()
	for _, w := range workflows.All() {
		r.RegisterWorkflowWithOptions(w.Func, workflow.RegisterOptions{Name: w.Name})
	}
	return r
}

func corpus(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*", "*"+suffix))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func load(t *testing.T, file string) *history.History {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	h, err := client.HistoryFromJSON(z, client.HistoryJSONOptions{})
	require.NoError(t, err)
	return h
}

func TestHistoriesReplay(t *testing.T) {
	for _, file := range corpus(t) {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), suffix), func(t *testing.T) {
			h := load(t, file)
			started := h.Events[0].GetWorkflowExecutionStartedEventAttributes()
			require.NotEmpty(t, started.GetWorkflowId())
			// Children are named after their parent.
			require.NoError(t, replayer().ReplayWorkflowHistoryWithOptions(nil, h, worker.ReplayWorkflowHistoryOptions{
				OriginalExecution: workflow.Execution{ID: started.GetWorkflowId(), RunID: started.GetOriginalExecutionRunId()},
			}))
		})
	}
}

// TestCorpusHasAll: what is not in the corpus is not protected by it.
func TestCorpusHasAll(t *testing.T) {
	have := map[string]bool{}
	for _, file := range corpus(t) {
		name, _, _ := strings.Cut(filepath.Base(file), "-")
		have[name] = true
	}
	for _, w := range workflows.All() {
		require.True(t, have[w.Name], "no history of %s: run `make histories`", w.Name)
	}
}

// TestCorpusHasEveryKindAndDecision: of plan runs, what people can do with them.
func TestCorpusHasEveryKindAndDecision(t *testing.T) {
	have := map[string]bool{}
	for _, file := range corpus(t) {
		if !strings.HasPrefix(filepath.Base(file), api.WorkflowRecoveryPlan+"-") {
			continue
		}
		h := load(t, file)
		var in api.PlanRunInput
		payloads := h.GetEvents()[0].GetWorkflowExecutionStartedEventAttributes().GetInput()
		require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(payloads, &in))
		have[string(in.Kind)] = true
		for _, e := range h.GetEvents() {
			have[e.GetWorkflowExecutionUpdateAcceptedEventAttributes().GetAcceptedRequest().GetInput().GetName()] = true
		}
	}
	for _, kind := range api.PlanKinds {
		require.True(t, have[string(kind)], "no run of kind %s: run `make histories`", kind)
	}
	for _, what := range api.PlanDecisions {
		require.True(t, have[what], "no run in which somebody said %s: run `make histories`", what)
	}
}
