package machine

import (
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// allowed lists in which states an action is possible. An action is not possible
// while another one runs, whatever the state.
var allowed = map[string][]api.State{
	api.ActionResync:       {api.StateProtected, api.StateProtectedReverse, api.StateResyncRequired},
	api.ActionPause:        {api.StateProtected, api.StateProtectedReverse, api.StateResyncRequired},
	api.ActionResume:       {api.StatePaused},
	api.ActionTestFailover: {api.StateProtected, api.StateResyncRequired, api.StatePaused},
	api.ActionCleanup:      nil, // whenever there is a test to clean up
	api.ActionFailover:     {api.StateProtected, api.StateResyncRequired, api.StatePaused},
	api.ActionCommit:       {api.StateFailedOver},
	api.ActionChangePoint:  {api.StateFailedOver},
	api.ActionRollBack:     {api.StateFailedOver, api.StateProtectedReverse, api.StateFailedBack},
	api.ActionReprotect:    {api.StateCommitted},
	api.ActionFailback:     {api.StateProtectedReverse},
	api.ActionReenable:     {api.StateFailedBack},
	api.ActionUnprotect: {api.StateEnabling, api.StateInitialReplication, api.StateProtected, api.StateProtectedReverse,
		api.StateResyncRequired, api.StatePaused, api.StateFailedOver, api.StateCommitted, api.StateFailedBack},
	api.ActionSetPolicy: {api.StateEnabling, api.StateProtected, api.StateProtectedReverse, api.StateResyncRequired, api.StatePaused,
		api.StateFailedOver, api.StateCommitted, api.StateFailedBack},
	api.ActionStopResync: {api.StateResyncing}, // it is what runs
}

// possible reports why the action is not possible now, and what is instead; nil when
// it is.
func (e *entity) possible(action string) error {
	err := e.free(action)
	if err == nil {
		return nil
	}
	instead := "nothing but to wait"
	if all := e.possibleActions(); len(all) > 0 {
		instead = strings.Join(all, ", ")
	}
	return fault.New(codeOf(err), "%s; possible now: %s", fault.Message(err), instead)
}

// free reports why the action is not possible now.
func (e *entity) free(action string) error {
	switch {
	case action == api.ActionStopResync && !e.resyncing():
		return fault.New(api.CodeNotInState, "stop-resync of %s: no resync is under way", e.s.Name)
	case e.resyncing() && len(e.queue) == 0 && (action == api.ActionFailover || action == api.ActionStopResync):
		return nil // a failover does not wait for hours: the resync goes on afterwards
	case e.running != nil || len(e.queue) > 0:
		return fault.New(api.CodeBusy, "%s of %s: %s is under way (%s); wait for its end", action, e.s.Name, e.busyWith(), e.s.Doing)
	}
	return e.possibleInState(action)
}

// possibleActions lists the actions that are possible now.
func (e *entity) possibleActions() []string {
	out := []string{}
	for _, a := range api.MachineActions {
		if e.free(a) == nil {
			out = append(out, a)
		}
	}
	return out
}

func (e *entity) busyWith() string {
	if e.running != nil {
		return e.running.Action
	}
	return e.queue[0].Action
}

func (e *entity) possibleInState(action string) error {
	test := e.s.Test != nil && !e.s.Test.Cleaned
	switch {
	case action == api.ActionCleanup:
		if !test {
			return fault.New(api.CodeNotInState, "cleanup of %s: there is no test failover to clean up", e.s.Name)
		}
		return nil
	case action == api.ActionTestFailover && test:
		return fault.New(api.CodeNotInState, "test failover of %s: clean up the last one first", e.s.Name)
	case (action == api.ActionTestFailover || action == api.ActionFailover) && e.reverse():
		return fault.New(api.CodeNotInState, "%s of %s: it runs in the target; fail it back", action, e.s.Name)
	}
	if e.s.State == api.StateResyncRequired && e.reverse() && (action == api.ActionFailback || action == api.ActionRollBack) {
		return nil // the failback resynchronises first
	}
	if !slices.Contains(allowed[action], e.s.State) {
		return fault.New(api.CodeNotInState, "%s of %s is not possible in state %s", action, e.s.Name, e.s.State)
	}
	return nil
}

// reverse reports whether the machine replicates from the target side back.
func (e *entity) reverse() bool { return e.s.Assignment.Role == ident.RoleMasterTarget }

// replicating is the state of a machine whose replication is whole.
func (e *entity) replicating() api.State {
	if e.reverse() {
		return api.StateProtectedReverse
	}
	return api.StateProtected
}

// setState moves to a state.
func (e *entity) setState(ctx workflow.Context, s api.State) {
	if e.s.State != s {
		e.s.State, e.s.Since = s, workflow.Now(ctx)
	}
	e.show(ctx)
}

// show keeps what people see in step: what is possible, health, search
// attributes, the text in the UI.
func (e *entity) show(ctx workflow.Context) {
	e.s.Possible = e.possibleActions()
	e.s.Health = healthOf(e.s.Problems)
	for i := range e.s.Problems {
		e.s.Problems[i].Failover = e.failoverPossible(e.s.Problems[i].Code)
	}
	e.publish(ctx)
	workflow.SetCurrentDetails(ctx, e.describe())
}

func (e *entity) describe() string {
	text := "**" + e.s.Name + "**: " + string(e.s.State) + ", " + string(e.s.Health)
	if e.s.Doing != "" {
		text += "\n\n" + e.s.Doing
	}
	for _, t := range e.s.Timers {
		text += "\n\nBy itself at " + t.At.UTC().Format(time.DateTime) + " UTC: " + t.Action
	}
	for _, p := range e.s.Problems {
		text += "\n\n- " + p.Code + " " + p.Cause + " " + p.Action
	}
	return text
}
