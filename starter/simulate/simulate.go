// Package simulate plays a run of a recovery plan: the very workflows of the plan, its
// machines and their runbooks, against a model of the world, in which calls fail where one
// wants them to. It needs no server, no vCenter and no cloud; the clock is the
// environment's own, so that a day of waiting takes no time.
//
//	simulate.go one run, from its options to its result
//	world.go    the model: sources, targets, the store, and what must always hold
//	calls.go    the workflows' calls, as the model answers them
//	machine.go  the actions of a machine, played on its entity
//	every.go    a fault at every call of a run, in turn
package simulate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/testsuite"

	"drover/workflows/api"
	"drover/workflows/fault"
	"drover/workflows/plan"
)

// Bounds of a simulation.
const (
	runTimeout = time.Minute // without any progress; a run takes a fraction of a second
	tick       = time.Minute // of the run's own clock, between two looks of those who decide
	runID      = "plan-simulated"
)

// What can be decided about a step that failed.
var decisions = []string{api.PlanRetry, api.PlanSkip, api.PlanCancel, api.PlanBack}

// Options of a simulation.
type Options struct {
	Plan   api.Plan
	Kind   api.PlanKind
	Point  api.PointChoice
	Reason string
	Faults []Fault
	// Then is decided about every step that failed, once; after that the run is cancelled.
	Then string
	// Verify as in the run.
	Verify bool
	// CancelAt is the call at which the run is cancelled, KillAt that at which its runbook is.
	CancelAt, KillAt *Call
	// Brief lets Every leave out what the other ways of disturbing a call would find, mostly.
	Brief bool
}

// Call names one call of a run: the n-th of its kind for a machine, or a plan's action.
type Call struct {
	Machine string `json:"machine,omitempty"`
	Name    string `json:"call"` // an activity's type, or the id of an action's step
	N       int    `json:"n"`    // from 1
}

func (c Call) String() string {
	text := c.Name
	if c.Machine != "" {
		text = c.Machine + "=" + c.Name
	}
	if c.N > 1 {
		text += fmt.Sprintf("#%d", c.N)
	}
	return text
}

// Fault is a call that fails. It is not tried again by itself.
type Fault struct {
	Call
	Lost bool `json:"lost,omitempty"` // it takes effect, but the answer is an error
}

// Result of a simulation.
type Result struct {
	Plan     string         `json:"plan"`
	Kind     api.PlanKind   `json:"kind"`
	State    string         `json:"state"`
	Message  string         `json:"message,omitempty"`
	Steps    []api.PlanStep `json:"steps"`
	Decided  []string       `json:"decided,omitempty"` // what the simulation decided, and where
	Machines []Machine      `json:"machines"`
	Calls    []Call         `json:"calls"`
	// Broken is what must always hold and did not: nothing, unless Drover has a bug.
	Broken []string `json:"broken"`
}

// Machine is what became of one.
type Machine struct {
	Name  string    `json:"name"`
	State api.State `json:"state"`
	Runs  string    `json:"runs"` // source, target, both, nowhere
	Error string    `json:"error,omitempty"`
}

// Run plays one run of the plan, on machines that are in the state it begins with.
func Run(o Options) (Result, error) {
	w, err := newWorld(o)
	if err != nil {
		return Result{}, err
	}
	return w.run(o), nil
}

// ParseFault reads MACHINE=CALL[#N][,lost] or STEP[#N] of a plan's action.
func ParseFault(text string) (Fault, error) {
	f := Fault{Call: Call{N: 1}}
	rest, lost := strings.CutSuffix(text, ",lost")
	f.Lost = lost
	rest, n, numbered := strings.Cut(rest, "#")
	if numbered {
		if _, err := fmt.Sscanf(n, "%d", &f.N); err != nil || f.N < 1 {
			return f, fmt.Errorf("fault %q: want a number from 1 after #", text)
		}
	}
	machine, call, named := strings.Cut(rest, "=")
	if f.Name = machine; named {
		f.Machine, f.Name = machine, call
	}
	if f.Name == "" || named && f.Machine == "" {
		return f, fmt.Errorf("fault %q: want MACHINE=CALL, such as db-1=%s, or the step of an action, such as before/announce", text, api.ActStartMachine)
	}
	return f, nil
}

// check refuses options that mean nothing.
func (o Options) check() error {
	if wrong := api.ValidatePlan(o.Plan); len(wrong) > 0 {
		return fmt.Errorf("plan %s: %s", o.Plan.Name, wrong[0].Error())
	}
	if !slices.Contains(api.PlanKinds, o.Kind) {
		return fmt.Errorf("unknown kind of run %q", o.Kind)
	}
	if o.Then != "" && !slices.Contains(decisions, o.Then) {
		return fmt.Errorf("%q: want what is decided about a step that failed: %s", o.Then, strings.Join(decisions, ", "))
	}
	return nil
}

// run plays one run in the world as it is.
func (w *world) run(o Options) Result {
	w.begin(o)
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet{})
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(runTimeout)
	env.SetStartWorkflowOptions(startOptions(runID))
	w.runs++
	w.planCalls(env)
	person := &person{env: env, then: o.Then, tried: map[string]bool{}}
	env.RegisterDelayedCallback(person.look, tick)
	w.cancelRun = func() { env.SignalWorkflow(api.PlanCancel, api.StepDecision{By: "the simulation"}) }
	env.ExecuteWorkflow(plan.Workflow, api.PlanRunInput{
		Plan: o.Plan.Name, Kind: o.Kind, Point: o.Point, Reason: o.Reason, By: "the simulation", Verify: o.Verify,
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	out := Result{Plan: o.Plan.Name, Kind: o.Kind, State: api.RunFailed, Decided: person.decided, Calls: w.calls, Broken: []string{}}
	if err := env.GetWorkflowError(); err != nil {
		out.Message = fault.Message(err)
	}
	var s api.PlanStatus
	if v, err := env.QueryWorkflow(api.QueryStatus); err == nil && v.Get(&s) == nil {
		out.State, out.Message, out.Steps = s.State, s.Message, s.Steps
	}
	for _, m := range w.machines {
		w.settled(m)
		out.Machines = append(out.Machines, Machine{Name: m.name, State: m.status.State, Runs: m.runs(), Error: m.failed})
	}
	out.Broken = append(out.Broken, w.broken...)
	if f := w.unused(); f != "" {
		out.Message = strings.TrimPrefix(out.Message+"; the run never came to the fault "+f, "; ")
	}
	return out
}

// person decides what a run asks.
type person struct {
	env     *testsuite.TestWorkflowEnvironment
	then    string
	tried   map[string]bool
	decided []string
}

// look answers what is asked now, and looks again later.
func (p *person) look() {
	if p.env.IsWorkflowCompleted() {
		return
	}
	defer p.env.RegisterDelayedCallback(p.look, tick)
	v, err := p.env.QueryWorkflow(api.QueryStatus)
	var s api.PlanStatus
	if err != nil || v.Get(&s) != nil {
		return
	}
	switch s.State {
	case api.RunPaused:
		_ = p.say(api.PlanResume, "")
	case api.RunWaiting, api.RunStopped:
		for _, step := range s.Steps {
			if step.State == api.StepWaiting && step.Kind == "manual" && step.Finished.IsZero() {
				_ = p.say(api.PlanApprove, step.ID)
				return
			}
		}
		for _, step := range s.Steps {
			if step.State == api.StepWaiting || step.State == api.StepFailed || step.Undo == api.StepFailed {
				p.failed(step.ID)
				return
			}
		}
	}
}

// failed decides about a step that failed.
func (p *person) failed(step string) {
	what := p.then
	if what == "" || p.tried[step] {
		what = api.PlanCancel
	}
	p.tried[step] = true
	if what == api.PlanBack || what == api.PlanCancel {
		step = ""
	}
	if err := p.say(what, step); err != nil && what != api.PlanCancel {
		_ = p.say(api.PlanCancel, "")
	}
}

// say sends an update; a refusal is its error.
func (p *person) say(what, step string) error {
	a := &answer{}
	p.env.UpdateWorkflow(what, fmt.Sprintf("%s-%d", what, len(p.decided)), a, api.StepDecision{Step: step, By: "the simulation"})
	text := strings.TrimSpace(what + " " + step)
	if a.err != nil {
		text += " (refused: " + fault.Message(a.err) + ")"
	}
	p.decided = append(p.decided, text)
	return a.err
}

// answer is what became of an update.
type answer struct {
	done   bool
	err    error
	result api.ActionResult
	then   func()
}

func (*answer) Accept() {}
func (a *answer) Reject(err error) {
	a.err = err
	a.end()
}

func (a *answer) Complete(v any, err error) {
	if r, ok := v.(api.ActionResult); ok {
		a.result = r
	}
	a.err = err
	a.end()
}

func (a *answer) end() {
	a.done = true
	if a.then != nil {
		a.then()
	}
}

// quiet is a logger that says nothing.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
