package runbook

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// book makes four steps that log what they do; the named ones fail.
func book(log *[]string, fails map[string]error, sleep time.Duration) []Step {
	var steps []Step
	for i := 1; i <= 4; i++ {
		name := fmt.Sprintf("s%d", i)
		act := func(verb string) func(workflow.Context) error {
			return func(ctx workflow.Context) error {
				if err := workflow.Sleep(ctx, sleep); err != nil {
					return err
				}
				*log = append(*log, verb+name)
				return fails[verb+name]
			}
		}
		steps = append(steps, Step{Name: name, Do: act("do "), Undo: act("undo ")})
	}
	steps[1].Undo = nil
	return steps
}

func run4(t *testing.T, fails map[string]error, cancelAt time.Duration) ([]string, api.RunbookStatus, error) {
	t.Helper()
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	var log []string
	if cancelAt > 0 {
		env.RegisterDelayedCallback(env.CancelWorkflow, cancelAt)
	}
	env.ExecuteWorkflow(func(ctx workflow.Context) error {
		return Run(ctx, "test", book(&log, fails, time.Second))
	})
	require.True(t, env.IsWorkflowCompleted())
	v, err := env.QueryWorkflow(api.QueryStatus)
	require.NoError(t, err)
	var status api.RunbookStatus
	require.NoError(t, v.Get(&status))
	return log, status, env.GetWorkflowError()
}

func TestAllStepsInOrder(t *testing.T) {
	log, status, err := run4(t, nil, 0)
	require.NoError(t, err)
	assert.Equal(t, []string{"do s1", "do s2", "do s3", "do s4"}, log)
	for _, s := range status.Steps {
		assert.Equal(t, api.StepDone, s.State)
	}
}

func TestUndoIsRegisteredBeforeTheStep(t *testing.T) {
	log, status, err := run4(t, map[string]error{"do s3": fault.New(api.CodeFenced, "old epoch")}, 0)
	assert.Equal(t, []string{"do s1", "do s2", "do s3", "undo s3", "undo s1"}, log, "the failed step is undone too")
	assert.Equal(t, api.CodeFenced, fault.Code(err))
	assert.Equal(t, "test: s3: old epoch", fault.Message(err))
	assert.Equal(t, api.StepFailed, status.Steps[2].State)
	assert.Equal(t, api.StepPending, status.Steps[3].State)
	r, ok := ReportOf(err)
	require.True(t, ok)
	assert.Equal(t, Report{Step: "s3", Begun: []string{"s1", "s2", "s3"}, Undone: []string{"s3", "s1"}}, r)
	assert.True(t, r.HasBegun("s2"))
	assert.False(t, r.HasBegun("s4"))
}

func TestAFailedUndoIsReportedAndTheOthersGoOn(t *testing.T) {
	log, _, err := run4(t, map[string]error{"do s4": errors.New("boom"), "undo s3": errors.New("stuck")}, 0)
	assert.Equal(t, []string{"undo s4", "undo s3", "undo s1"}, log[4:])
	r, ok := ReportOf(err)
	require.True(t, ok)
	assert.Equal(t, []Leftover{{Step: "s3", Reason: "stuck"}}, r.Left)
	assert.Contains(t, fault.Message(err), "could not put back: s3 (stuck)")
}

func TestCancelledRunUndoes(t *testing.T) {
	log, _, err := run4(t, nil, 2500*time.Millisecond)
	assert.Equal(t, []string{"do s1", "do s2", "undo s3", "undo s1"}, log)
	assert.True(t, fault.Cancelled(err))
	r, ok := ReportOf(err)
	require.True(t, ok)
	assert.Equal(t, "s3", r.Step)
}
