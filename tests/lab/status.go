package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// statusPause is between two looks at the status.
const statusPause = 400 * time.Millisecond

// MachineLine is one machine of `drover status --json`.
type MachineLine struct {
	Machine api.MachineStatus `json:"machine"`
	Stream  *stream.Status    `json:"stream"`
}

// PlanRun is what `drover plan run --json` and `plan status --json` print.
type PlanRun struct {
	Run string `json:"run"`
	api.PlanStatus
}

// Status gives the machines by name.
func (l *Lab) Status(ctx context.Context) (map[string]MachineLine, error) {
	var lines []MachineLine
	if err := l.DroverJSON(ctx, &lines, "status"); err != nil {
		return nil, err
	}
	out := map[string]MachineLine{}
	for _, line := range lines {
		out[line.Machine.Name] = line
	}
	return out, nil
}

// WaitStatus looks at the status until ready says that it is as it should be. A
// machine with a problem that ready does not expect is for ready to report.
func (l *Lab) WaitStatus(ctx context.Context, limit time.Duration, what string, ready func(map[string]MachineLine) (bool, error)) (map[string]MachineLine, error) {
	deadline := time.Now().Add(limit)
	for {
		status, err := l.Status(ctx)
		if err == nil {
			var ok bool
			if ok, err = ready(status); ok || err != nil {
				return status, err
			}
		}
		if time.Now().After(deadline) {
			return status, errors.Join(fmt.Errorf("%s: not within %s; status: %s", what, limit, summary(status)), err)
		}
		select {
		case <-ctx.Done():
			return status, fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(statusPause):
		}
	}
}

// InState is ready when all the machines are in the state.
func InState(state api.State, names ...string) func(map[string]MachineLine) (bool, error) {
	return func(status map[string]MachineLine) (bool, error) {
		for _, name := range names {
			if status[name].Machine.State != state {
				return false, nil
			}
		}
		return true, nil
	}
}

func summary(status map[string]MachineLine) string {
	var out []string
	for name, line := range status {
		text := fmt.Sprintf("%s is %s (%s)", name, line.Machine.State, line.Machine.Doing)
		for _, p := range line.Machine.Problems {
			text += fmt.Sprintf(", %s %s", p.Code, p.Cause)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// Points lists a machine's recovery points.
func (l *Lab) Points(ctx context.Context, name string) ([]replica.Point, error) {
	var points []replica.Point
	err := l.DroverJSON(ctx, &points, "points", name)
	return points, err
}

// WaitPoints waits until the machine has count recovery points that are newer
// than after.
func (l *Lab) WaitPoints(ctx context.Context, name string, count int, after time.Time, limit time.Duration) ([]replica.Point, error) {
	deadline := time.Now().Add(limit)
	for {
		points, err := l.Points(ctx, name)
		var fresh []replica.Point
		for _, p := range points {
			if p.Time.After(after) {
				fresh = append(fresh, p)
			}
		}
		if err == nil && len(fresh) >= count {
			return fresh, nil
		}
		if time.Now().After(deadline) {
			return fresh, fmt.Errorf("%s has %d new recovery points after %s, want %d (%w)", name, len(fresh), limit, count, err)
		}
		select {
		case <-ctx.Done():
			return fresh, ctx.Err()
		case <-time.After(statusPause):
		}
	}
}

// RunPlan starts a run of the plan and follows it to its end. step is told every
// change of a step; at a manual step decide is called with the run's id.
func (l *Lab) RunPlan(ctx context.Context, plan, kind string, limit time.Duration, step func(api.PlanStep), decide func(run string, s api.PlanStep) error) (PlanRun, error) {
	var run PlanRun
	if err := l.DroverJSON(ctx, &run, "plan", "run", plan, "--"+kind); err != nil {
		return run, err
	}
	id, seen, decided := run.Run, map[string]api.StepState{}, map[string]bool{}
	for deadline := time.Now().Add(limit); ; {
		var status PlanRun
		if err := l.DroverJSON(ctx, &status, "plan", "status", id); err == nil {
			run = status
		} else if time.Now().After(deadline) {
			return run, err
		}
		for _, s := range run.Steps {
			if seen[s.ID] != s.State && s.State != api.StepPending {
				seen[s.ID] = s.State
				step(s)
			}
			if s.State == api.StepWaiting && s.Kind == "manual" && !decided[s.ID] {
				decided[s.ID] = true
				if err := decide(id, s); err != nil {
					return run, err
				}
			}
		}
		switch {
		case run.State == "done":
			return run, nil
		case run.State != "" && run.State != "running" && run.State != "waiting":
			return run, fmt.Errorf("plan %s, %s: %s: %s", plan, kind, run.State, run.Message)
		case time.Now().After(deadline):
			return run, fmt.Errorf("plan %s, %s: not done within %s, state %s", plan, kind, limit, run.State)
		}
		select {
		case <-ctx.Done():
			return run, ctx.Err()
		case <-time.After(statusPause):
		}
	}
}

// Results gives what the run came to for each machine.
func (r PlanRun) Results() map[string]api.ActionResult {
	out := map[string]api.ActionResult{}
	for _, s := range r.Steps {
		if s.Kind == "machine" && s.Result != nil {
			out[s.Name] = *s.Result
		}
	}
	return out
}
