package configserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

const (
	schedulePrefix = "resync-"
	notePrefix     = "Drover: " // of the notes of schedules that are ours
	windowJitter   = 2 * time.Minute
	// windowCatchUp: an opening that Temporal missed is made up for only so long; the
	// next one is an hour later at most.
	windowCatchUp = 10 * time.Minute
	openingEvery  = 60 // minutes
	minutesOfDay  = 24 * 60
)

// dayNames is in the order of Temporal's days of the week.
var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// windowSchedule is the Temporal Schedule of a policy's resync window.
func windowSchedule(p api.Policy) client.ScheduleOptions {
	w := p.Resync.Window
	days := "every day"
	if len(w.Days) > 0 {
		days = strings.Join(w.Days, " ")
	}
	return client.ScheduleOptions{
		ID: schedulePrefix + p.Name,
		Spec: client.ScheduleSpec{
			Calendars: openings(w), TimeZoneName: w.TimeZone, Jitter: windowJitter,
		},
		Action: &client.ScheduleWorkflowAction{
			ID: "resync-window-" + p.Name, Workflow: api.WorkflowResyncWindow, TaskQueue: api.ControlQueue,
			Args: []any{api.ResyncWindowInput{Policy: p.Name}},
		},
		Overlap:       enumspb.SCHEDULE_OVERLAP_POLICY_SKIP,
		CatchupWindow: windowCatchUp,
		Note:          fmt.Sprintf("%sresync window of policy %s, %s to %s %s, %s", notePrefix, p.Name, w.Start, w.End, w.TimeZone, days),
	}
}

// openings are the times at which a window's workflow is started: when it opens, and
// every hour after that. An opening while the one before runs is skipped; one that finds
// nothing to do ends at once. So a start that daylight saving skips, or that Temporal or
// the worker was not there for, costs an hour and not a night.
func openings(w api.Window) []client.ScheduleCalendarSpec {
	start, end := minutes(w.Start), minutes(w.End)
	length := (end - start + minutesOfDay) % minutesOfDay
	var out []client.ScheduleCalendarSpec
	for offset := 0; offset < length; offset += openingEvery {
		at := start + offset
		var days []client.ScheduleRange
		for i, name := range dayNames {
			if len(w.Days) == 0 || slices.Contains(w.Days, name) {
				day := (i + at/minutesOfDay) % len(dayNames)
				days = append(days, client.ScheduleRange{Start: day})
			}
		}
		at %= minutesOfDay
		out = append(out, client.ScheduleCalendarSpec{
			Hour: []client.ScheduleRange{{Start: at / 60}}, Minute: []client.ScheduleRange{{Start: at % 60}}, DayOfWeek: days,
		})
	}
	return out
}

// minutes reads a time of day that was checked.
func minutes(clock string) int {
	t, err := time.Parse("15:04", clock)
	if err != nil {
		return 0
	}
	return t.Hour()*60 + t.Minute()
}

// temporalSchedules are the real ones.
type temporalSchedules struct{ client client.Client }

func (s temporalSchedules) list(ctx context.Context) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, vaultCall)
	defer cancel()
	list, err := s.client.ScheduleClient().List(ctx, client.ScheduleListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the schedules: %w", err)
	}
	out := map[string]string{}
	for list.HasNext() {
		e, err := list.Next()
		if err != nil {
			return nil, fmt.Errorf("list the schedules: %w", err)
		}
		if strings.HasPrefix(e.ID, schedulePrefix) && strings.HasPrefix(e.Note, notePrefix) {
			out[e.ID] = e.Note
		}
	}
	return out, nil
}

// put makes the schedule, or changes it. One that somebody paused stays paused.
func (s temporalSchedules) put(ctx context.Context, o client.ScheduleOptions, there bool) error {
	ctx, cancel := context.WithTimeout(ctx, vaultCall)
	defer cancel()
	if !there {
		_, err := s.client.ScheduleClient().Create(ctx, o)
		if err == nil || !errors.Is(err, temporal.ErrScheduleAlreadyRunning) {
			return wrapped("make", o.ID, err)
		}
	}
	err := s.client.ScheduleClient().GetHandle(ctx, o.ID).Update(ctx, client.ScheduleUpdateOptions{
		DoUpdate: func(in client.ScheduleUpdateInput) (*client.ScheduleUpdate, error) {
			schedule := in.Description.Schedule
			schedule.Spec, schedule.Action = &o.Spec, o.Action
			schedule.Policy = &client.SchedulePolicies{Overlap: o.Overlap, CatchupWindow: o.CatchupWindow}
			if schedule.State == nil {
				schedule.State = &client.ScheduleState{}
			}
			schedule.State.Note = o.Note
			return &client.ScheduleUpdate{Schedule: &schedule}, nil
		},
	})
	return wrapped("change", o.ID, err)
}

func (s temporalSchedules) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, vaultCall)
	defer cancel()
	err := s.client.ScheduleClient().GetHandle(ctx, id).Delete(ctx)
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return nil
	}
	return wrapped("remove", id, err)
}

func wrapped(verb, id string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s the schedule %s: %w", verb, id, err)
}
