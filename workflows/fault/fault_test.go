package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	sdkactivity "go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

func TestRetryFollowsTheCode(t *testing.T) {
	for _, code := range api.Codes() {
		var app *temporal.ApplicationError
		require.ErrorAs(t, New(code, "x"), &app)
		assert.Equal(t, api.Retryable(code), !app.NonRetryable(), code)
	}
}

func TestEveryCodeIsDecidedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, code := range api.Codes() {
		assert.False(t, seen[code], "%s stands twice", code)
		seen[code] = true
	}
	for _, e := range api.Catalogue() {
		if strings.ContainsAny(e.Code[len("DRV-"):len("DRV-")+1], "2349") { // others are the agent's and the servers' own
			assert.True(t, seen[e.Code], "%s: is it tried again?", e.Code)
		}
	}
}

func TestReadingErrors(t *testing.T) {
	timeout := temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_HEARTBEAT, nil)
	foreign := temporal.NewApplicationError("boom", "PanicError")
	cases := []struct {
		name, code, message string
		err                 error
		cancelled           bool
	}{
		{name: "nil"},
		{name: "ours", err: New(api.CodeNoPoint, "no point of %s", "db"), code: api.CodeNoPoint, message: "no point of db"},
		{name: "wrapped", err: fmt.Errorf("step: %w", New(api.CodeTarget, "quota")), code: api.CodeTarget, message: "quota"},
		{name: "ours inside a foreign one", err: temporal.NewApplicationErrorWithOptions("outer", "Other",
			temporal.ApplicationErrorOptions{Cause: New(api.CodeFenced, "old epoch")}), code: api.CodeFenced, message: "outer"},
		{name: "foreign", err: foreign, code: api.CodeInternal, message: "boom"},
		{name: "bare timeout", err: timeout, code: api.CodeInternal, message: "no answer (Heartbeat)"},
		{name: "cancelled", err: temporal.NewCanceledError(), message: "cancelled", cancelled: true},
		{name: "ours because of a cancellation", err: Wrap(api.CodeInternal, temporal.NewCanceledError(), "stopped"),
			code: api.CodeInternal, message: "stopped"},
		{name: "plain", err: errors.New("plain"), code: api.CodeInternal, message: "plain"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.code, Code(c.err))
			assert.Equal(t, c.message, Message(c.err))
			assert.Equal(t, c.cancelled, Cancelled(c.err))
			assert.Equal(t, c.code == api.CodeServerLost, HostLost(c.err))
		})
	}
}

func TestTimeoutsNameTheSystemThatDidNotAnswer(t *testing.T) {
	for activity, code := range map[string]string{
		api.ActReplicate: api.CodeServerLost, api.ActGrant: api.CodeServerLost, api.ActHostListPoints: api.CodeServerLost,
		api.ActShutdownVM: api.CodeVCenter, api.ActStartMachine: api.CodeTarget, api.ActScript: api.CodeActionFailed,
		api.ActAssign: api.CodeInternal, api.ActAwaitAgent: api.CodeInternal,
	} {
		t.Run(activity, func(t *testing.T) {
			env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
			env.RegisterActivityWithOptions(func(context.Context) error {
				return temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
			}, sdkactivity.RegisterOptions{Name: activity})
			env.ExecuteWorkflow(func(ctx workflow.Context) error {
				ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
				return workflow.ExecuteActivity(ctx, activity).Get(ctx, nil)
			})
			err := env.GetWorkflowError()
			assert.Equal(t, code, Code(err))
			assert.Equal(t, activity+" got no answer (ScheduleToStart)", Message(err))
		})
	}
}

func TestDetailsSurviveWrapping(t *testing.T) {
	type report struct{ Step string }
	err := fmt.Errorf("child: %w", WithDetails(api.CodeTarget, nil, report{"start"}, "failed"))
	var got report
	require.True(t, Details(err, &got))
	assert.Equal(t, "start", got.Step)
	assert.False(t, Details(errors.New("none"), &got))

	cancelled := CancelledWithDetails(report{"stop"})
	assert.True(t, Cancelled(cancelled))
	require.True(t, Details(cancelled, &got))
	assert.Equal(t, "stop", got.Step)
}
