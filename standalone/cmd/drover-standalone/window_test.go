package main

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/types/known/timestamppb"

	"drover/datapath/replica"
	"drover/workflows/api"
)

// TestResyncWindowIsASchedule: from a policy to Temporal's own idea of when its window
// opens, in the nights in which the clock is set forward and back, too.
func TestResyncWindowIsASchedule(t *testing.T) {
	s := newSite(t)
	p := s.start(t)
	p.healthy(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{HostPort: s.temporal, Namespace: "drover", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer c.Close()
	policy := api.Policy{Name: "gold", CutInterval: api.Duration(30 * time.Second), Retention: replica.DefaultRetention()}
	vault := func(update string, in any) {
		t.Helper()
		h, err := c.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{WorkflowID: api.VaultID, UpdateName: update,
			Args: []any{in}, WaitForStage: client.WorkflowUpdateStageCompleted})
		require.NoError(t, err)
		require.NoError(t, h.Get(ctx, nil))
	}
	apply := func(automatic bool, start string) {
		t.Helper()
		policy.Resync = api.ResyncPolicy{Automatic: automatic, Window: api.Window{TimeZone: "Europe/Berlin", Start: start, End: "05:00"}}
		vault(api.VaultApplyPolicy, api.ApplyPolicy{Policy: policy})
	}
	opens := func(from, to string) []string {
		a, err := time.Parse(time.RFC3339, from)
		require.NoError(t, err)
		b, err := time.Parse(time.RFC3339, to)
		require.NoError(t, err)
		r, err := c.WorkflowService().ListScheduleMatchingTimes(ctx, &workflowservice.ListScheduleMatchingTimesRequest{
			Namespace: "drover", ScheduleId: "resync-gold", StartTime: timestamppb.New(a), EndTime: timestamppb.New(b)})
		if err != nil {
			return nil
		}
		out := []string{}
		for _, at := range r.GetStartTime() {
			out = append(out, at.AsTime().Truncate(10*time.Minute).Format("15:04")) // without the jitter
		}
		return out
	}
	has := func(from, to string, want ...string) {
		t.Helper()
		var last []string
		require.Eventually(t, func() bool {
			last = opens(from, to)
			return len(last) == len(want)
		}, patience, 200*time.Millisecond, "%s: %v, want %v", from, last, want)
		require.Equal(t, want, last)
	}
	apply(true, "02:30")
	has("2026-01-10T12:00:00Z", "2026-01-11T12:00:00Z", "01:30", "02:30", "03:30")
	// There is no 02:30: the window opens with 03:30, an hour later by the clock.
	has("2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z", "01:30", "02:30")
	// There are two: Temporal takes one of them or both; a second opening would be skipped
	// or find nothing to do.
	autumn := opens("2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z")
	require.Subset(t, []string{"00:30", "01:30", "02:30", "03:30"}, autumn)
	require.Subset(t, autumn, []string{"02:30", "03:30"})
	require.GreaterOrEqual(t, len(autumn), 3, "%v", autumn)
	apply(true, "04:00")
	has("2026-01-10T12:00:00Z", "2026-01-11T12:00:00Z", "03:00")

	// By hand, outside the window: there is nothing to do, and it says so.
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: api.ControlQueue}, api.WorkflowResyncWindow, api.ResyncWindowInput{Policy: "gold", Now: true})
	require.NoError(t, err)
	var result api.ResyncWindowResult
	require.NoError(t, run.Get(ctx, &result))
	require.Equal(t, "policy gold: 0 resynchronised, 0 failed, 0 paused", result.Message)

	// A person pauses it: so it stays, whatever else changes, until it goes away with the
	// window, and with the policy.
	schedule := c.ScheduleClient().GetHandle(ctx, "resync-gold")
	require.NoError(t, schedule.Pause(ctx, client.SchedulePauseOptions{Note: "no resync tonight"}))
	apply(true, "03:00")
	has("2026-01-10T12:00:00Z", "2026-01-11T12:00:00Z", "02:00", "03:00")
	d, err := schedule.Describe(ctx)
	require.NoError(t, err)
	require.True(t, d.Schedule.State.Paused)
	gone := func() {
		t.Helper()
		var missing *serviceerror.NotFound
		require.Eventually(t, func() bool { _, err := schedule.Describe(ctx); return errors.As(err, &missing) }, patience, 200*time.Millisecond)
	}
	apply(false, "03:00")
	gone()
	apply(true, "04:00") // one that was deleted can be made again, and is not paused
	has("2026-01-10T12:00:00Z", "2026-01-11T12:00:00Z", "03:00")
	d, err = schedule.Describe(ctx)
	require.NoError(t, err)
	require.False(t, d.Schedule.State.Paused)
	vault(api.VaultDeletePolicy, "gold")
	gone()
	require.NoError(t, p.process.Signal(syscall.SIGTERM))
	require.NoError(t, p.end(t, stopLimit), p.out.String())
}
