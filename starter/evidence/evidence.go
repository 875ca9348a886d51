// Package evidence makes the proof of a plan's run from the run's workflow history:
// who asked for it and decided what, which steps ran and when, and the recovery point
// and recovery time of each machine against its goal. The history is part of the pack,
// so that anybody can make the pack again and compare, or look at the run in Temporal.
package evidence

import (
	"time"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// Format is the version of a pack's JSON.
const Format = 1

// Verdicts on a goal.
const (
	Met     = "met"
	Missed  = "missed"
	NoGoal  = "no goal"
	Unknown = "not measured"
)

// Pack is what is known of one run.
type Pack struct {
	Format int `json:"format"`
	// Run and RunID are the workflow's ids.
	Run   string           `json:"run"`
	RunID string           `json:"runID"`
	Input api.PlanRunInput `json:"input"` // who asked for what, and why
	// Authenticated is who Temporal knows to have asked for it; empty where its clients do
	// not log in. Input.By is what the client said.
	Authenticated string    `json:"authenticated,omitempty"`
	State         string    `json:"state"`
	Message       string    `json:"message,omitempty"`
	Started       time.Time `json:"started"`
	Finished      time.Time `json:"finished,omitzero"`
	// RTO is from the start of the run to its end, all waiting for people included.
	RTO       Goal           `json:"rto"`
	Plan      *api.Plan      `json:"plan,omitempty"` // as it was when the run began
	Decisions []Decision     `json:"decisions"`
	Steps     []api.PlanStep `json:"steps"` // as the run reported them at its end
	Machines  []Machine      `json:"machines"`
	Calls     []Call         `json:"calls"` // all that the run had done, in order
	History   History        `json:"history"`
}

// Goal is something measured and what it should have been at most.
type Goal struct {
	Measured api.Duration `json:"measured,omitempty"`
	Goal     api.Duration `json:"goal,omitempty"` // 0: there is none
	Verdict  string       `json:"verdict"`
}

// Decision is what a person told the run.
type Decision struct {
	Time time.Time `json:"time"`
	What string    `json:"what"` // approve, reject, retry, skip, cancel
	api.StepDecision
	Event int64 `json:"event"` // of the history
	// Authenticated is who Temporal knows to have sent the signal; empty where its clients
	// do not log in, and of updates, whose events are the worker's. By is what the client said.
	Authenticated string `json:"authenticated,omitempty"`
	// Signal: it came as a signal, which the run may have refused.
	Signal bool `json:"signal,omitempty"`
}

// Machine is one machine of the run.
type Machine struct {
	Name    string          `json:"name"`
	Machine ident.MachineID `json:"machine"`
	Policy  string          `json:"policy,omitempty"`
	State   api.StepState   `json:"state"`
	Message string          `json:"message,omitempty"`
	// Point is the recovery point that the machine came up from.
	Point       *ident.Seq   `json:"point,omitempty"`
	PointTime   time.Time    `json:"pointTime,omitzero"`
	Consistency string       `json:"consistency,omitempty"`
	RPO         Goal         `json:"rpo"` // age of the point when the machine's step began, against its policy's threshold
	RTO         Goal         `json:"rto"` // from the start of the run to the checked machine
	Loss        api.Duration `json:"loss,omitempty"`
}

// Call is one activity: something that the run had done outside of itself.
type Call struct {
	Activity string    `json:"activity"`
	Event    int64     `json:"event"` // that scheduled it
	Begun    time.Time `json:"begun"`
	Ended    time.Time `json:"ended,omitzero"`
	Outcome  string    `json:"outcome"` // done, failed, timed out, cancelled, under way
	Worker   string    `json:"worker,omitempty"`
	Attempt  int32     `json:"attempt,omitempty"` // the last one; 1 is the first
	Error    string    `json:"error,omitempty"`
}

// History says which history the pack was made from.
type History struct {
	File   string `json:"file,omitempty"`
	Events int    `json:"events"`
	SHA256 string `json:"sha256"` // of the history as Temporal's JSON, which the file has
}

// judge compares what was measured with its goal.
func judge(measured, goal api.Duration, known bool) Goal {
	g := Goal{Measured: measured, Goal: goal, Verdict: Met}
	switch {
	case !known:
		g.Verdict = Unknown
	case goal == 0:
		g.Verdict = NoGoal
	case measured > goal:
		g.Verdict = Missed
	}
	return g
}

// Missed gives what of the run's goals was missed, for people; nothing when all that
// were set are met.
func (p *Pack) Missed() (missed []string) {
	tell := func(what string, g Goal) {
		if g.Verdict == Missed {
			missed = append(missed, what+" "+text(g.Measured)+", the goal is "+text(g.Goal))
		}
	}
	tell("RTO of the whole:", p.RTO)
	for _, m := range p.Machines {
		tell("RPO of "+m.Name+":", m.RPO)
		tell("RTO of "+m.Name+":", m.RTO)
	}
	return missed
}

func text(d api.Duration) string { return d.D().Round(100 * time.Millisecond).String() }
