package replay

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// TestWorkerDiesAtEveryStep replays what was recorded of plans and runbooks up to each
// workflow task in turn: that is what a worker does that takes a run over from one that died
// there. It must come to the same decisions.
func TestWorkerDiesAtEveryStep(t *testing.T) {
	steps := 0
	for _, file := range corpus(t) {
		name, _, _ := strings.Cut(filepath.Base(file), "-")
		switch name {
		case api.WorkflowRecoveryPlan, api.WorkflowFailover, api.WorkflowTestFailover, api.WorkflowReprotect, api.WorkflowFailback, api.WorkflowReenable,
			api.WorkflowRollBack, api.WorkflowChangePoint:
		default:
			continue
		}
		h := load(t, file)
		started := h.GetEvents()[0].GetWorkflowExecutionStartedEventAttributes()
		for i, e := range h.GetEvents() {
			if e.GetEventType() != enums.EVENT_TYPE_WORKFLOW_TASK_STARTED {
				continue
			}
			steps++
			died := &history.History{Events: h.GetEvents()[:i+1]}
			require.NoError(t, replayer().ReplayWorkflowHistoryWithOptions(nil, died, worker.ReplayWorkflowHistoryOptions{
				OriginalExecution: workflow.Execution{ID: started.GetWorkflowId(), RunID: started.GetOriginalExecutionRunId()},
			}), "%s up to event %d", file, e.GetEventId())
		}
	}
	require.Greater(t, steps, 200)
	t.Log(steps, "steps")
}

// TestOtherDecisionsAreNoticed: a history in which something else was called does not replay,
// cut short or whole.
func TestOtherDecisionsAreNoticed(t *testing.T) {
	h := load(t, filepath.Join("testdata", "cycle", api.WorkflowFailover+"-1"+suffix))
	for i, e := range h.GetEvents() {
		if a := e.GetActivityTaskScheduledEventAttributes(); a != nil {
			a.ActivityType.Name = "another"
			tasks := 0
			for j := i; j < len(h.GetEvents()); j++ {
				if h.GetEvents()[j].GetEventType() == enums.EVENT_TYPE_WORKFLOW_TASK_STARTED {
					if tasks++; tasks < 2 {
						continue // what the last task decided is not in it yet
					}
					require.Error(t, replayer().ReplayWorkflowHistory(nil, &history.History{Events: h.GetEvents()[:j+1]}))
					return
				}
			}
		}
	}
	t.Fatal("nothing was called")
}
