// Package forecast tells what a run of a plan would take, from what runs before it took,
// and what has changed in the plan since it was drilled last.
package forecast

import (
	"slices"
	"time"

	"drover/starter/evidence"
	"drover/workflows/api"
)

// Time is how long something took in the runs before.
type Time struct {
	P50  api.Duration `json:"p50"` // nearest rank
	P95  api.Duration `json:"p95"`
	Runs int          `json:"runs"` // that it was measured in; 0: nothing is known
}

// Forecast is of one run.
type Forecast struct {
	Steps map[string]Time `json:"steps"` // by the step's id
	// Whole adds the steps up; machines of a group run at the same time, so the slowest of
	// them counts. Its P95 is of a run in which every step is slow: an upper bound.
	Whole Time `json:"whole"`
	// Unknown are the steps that no run before had.
	Unknown []string `json:"unknown,omitempty"`
}

// Of forecasts a run of these steps from runs before of the same kind.
func Of(steps []api.PlanStep, before []*evidence.Pack) Forecast {
	took := map[string][]time.Duration{}
	for _, p := range before {
		for _, s := range p.Steps {
			if s.State == api.StepDone && !s.Finished.IsZero() {
				took[s.ID] = append(took[s.ID], s.Finished.Sub(s.Started))
			}
		}
	}
	f := Forecast{Steps: map[string]Time{}}
	for _, s := range steps {
		t := timeOf(took[s.ID])
		f.Steps[s.ID] = t
		if t.Runs == 0 {
			f.Unknown = append(f.Unknown, s.ID)
		}
	}
	f.Whole = whole(steps, f.Steps)
	return f
}

func timeOf(took []time.Duration) Time {
	if len(took) == 0 {
		return Time{}
	}
	slices.Sort(took)
	rank := func(percent int) api.Duration {
		return api.Duration(took[(len(took)*percent+99)/100-1])
	}
	return Time{P50: rank(50), P95: rank(95), Runs: len(took)}
}

func whole(steps []api.PlanStep, each map[string]Time) (sum Time) {
	for i := 0; i < len(steps); {
		part, group := each[steps[i].ID], steps[i].Group
		for i++; group != "" && i < len(steps) && steps[i].Group == group; i++ {
			t := each[steps[i].ID]
			part.P50, part.P95 = max(part.P50, t.P50), max(part.P95, t.P95)
			part.Runs = min(part.Runs, t.Runs)
		}
		sum.P50, sum.P95 = sum.P50+part.P50, sum.P95+part.P95
		if sum.Runs == 0 || part.Runs < sum.Runs {
			sum.Runs = part.Runs
		}
	}
	return sum
}
