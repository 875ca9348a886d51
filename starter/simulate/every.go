package simulate

import (
	"fmt"

	"drover/workflows/api"
)

// How a run is disturbed at a call.
const (
	howFails  = "fails"
	howLost   = "its answer is lost"
	howCancel = "the run is cancelled"
	howKill   = "its runbook is cancelled"
)

// Case is one disturbed run, and what came after it.
type Case struct {
	Call   Call     `json:"call"`
	How    string   `json:"how"`
	Then   string   `json:"then"`            // what is decided
	State  string   `json:"state"`           // of the run
	After  string   `json:"after,omitempty"` // the next run, and its state
	Broken []string `json:"broken,omitempty"`
}

// Table is what Every found.
type Table struct {
	Plan   string       `json:"plan"`
	Kind   api.PlanKind `json:"kind"`
	Calls  int          `json:"calls"`
	Cases  []Case       `json:"cases"`
	Broken int          `json:"broken"` // cases in which something did not hold
}

// way is a disturbance, a decision, and the run that follows.
type way struct {
	how, then string
	next      func(api.PlanKind) api.PlanKind
	ends      string // the state that the disturbed run must come to; "" is any
}

func same(kind api.PlanKind) api.PlanKind { return kind }

// BackOf is the kind of run that takes another one's machines back; "" when none does.
func BackOf(kind api.PlanKind) api.PlanKind {
	switch kind {
	case api.PlanTest:
		return api.PlanCleanup
	case api.PlanPlanned, api.PlanUnplanned, api.PlanReprotect, api.PlanFailback:
		return api.PlanRollBack
	}
	return ""
}

// ways are those in which every call is disturbed; brief: one for every disturbance and one
// for every decision.
func ways(kind api.PlanKind, brief bool) []way {
	if brief && BackOf(kind) == "" {
		return []way{{howFails, api.PlanRetry, nil, api.RunDone}, {howLost, api.PlanCancel, same, ""}, {howKill, api.PlanCancel, same, ""}}
	}
	if brief {
		return []way{{howFails, api.PlanRetry, nil, api.RunDone}, {howLost, api.PlanBack, nil, ""}, {howCancel, api.PlanCancel, same, ""}, {howKill, api.PlanCancel, BackOf, ""}}
	}
	out := []way{
		{howFails, api.PlanRetry, nil, api.RunDone}, {howLost, api.PlanRetry, nil, api.RunDone}, {howKill, api.PlanRetry, nil, api.RunDone},
		{howFails, api.PlanCancel, same, ""}, {howLost, api.PlanCancel, same, ""}, {howCancel, api.PlanCancel, same, ""}, {howKill, api.PlanCancel, same, ""},
	}
	if BackOf(kind) == "" {
		return out
	}
	return append(out,
		way{howFails, api.PlanBack, nil, ""}, way{howLost, api.PlanBack, nil, ""},
		way{howFails, api.PlanCancel, BackOf, ""}, way{howLost, api.PlanCancel, BackOf, ""},
		way{howCancel, api.PlanCancel, BackOf, ""}, way{howKill, api.PlanCancel, BackOf, ""})
}

// Every plays the run undisturbed, and then disturbs every call of it in turn: it fails, its
// answer is lost, the run is cancelled, its runbook is. After each, going on must come to
// the end, and going back to the beginning, and nothing may be left half made. told, if not
// nil, gets every case.
func Every(o Options, told func(Case)) (Table, error) {
	o.Faults, o.CancelAt, o.KillAt = nil, nil, nil
	begin, err := newWorld(o)
	if err != nil {
		return Table{}, err
	}
	base := begin.clone().run(o)
	t := Table{Plan: o.Plan.Name, Kind: o.Kind, Calls: len(base.Calls), Cases: []Case{}}
	if base.State != api.RunDone || len(base.Broken) > 0 {
		return t, fmt.Errorf("the undisturbed run ends as %s: %s %v", base.State, base.Message, base.Broken)
	}
	for _, call := range base.Calls {
		for _, way := range ways(o.Kind, o.Brief) {
			c := begin.clone().disturb(o, call, way)
			t.Cases = append(t.Cases, c)
			if len(c.Broken) > 0 {
				t.Broken++
			}
			if told != nil {
				told(c)
			}
		}
	}
	return t, nil
}

// disturb plays one case.
func (w *world) disturb(o Options, call Call, way way) Case {
	c := Case{Call: call, How: way.how, Then: way.then}
	next := o
	o.Then = way.then
	switch way.how {
	case howFails, howLost:
		o.Faults = []Fault{{Call: call, Lost: way.how == howLost}}
	case howCancel:
		o.CancelAt = &call
	case howKill:
		o.KillAt = &call
	}
	r := w.run(o)
	c.State, c.Broken = r.State, r.Broken
	if way.ends != "" && r.State != way.ends {
		c.Broken = append(c.Broken, fmt.Sprintf("after %s the run ends as %s: %s", way.then, r.State, r.Message))
	}
	if way.next == nil {
		return c
	}
	next.Kind = way.next(o.Kind)
	r = w.run(next)
	c.After = fmt.Sprintf("%s: %s", next.Kind, r.State)
	for _, b := range r.Broken {
		c.Broken = append(c.Broken, "then: "+b)
	}
	if r.State != api.RunDone {
		c.Broken = append(c.Broken, fmt.Sprintf("%s after it ends as %s: %s", next.Kind, r.State, r.Message))
	}
	return c
}
