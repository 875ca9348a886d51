package simulate

import (
	"context"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/workflows"
	"drover/workflows/api"
	"drover/workflows/fault"
)

const (
	settle   = time.Minute // of the entity's clock after an action, so that what follows it happens
	perAct   = 100         // children that an action may start
	carryVer = 1           // of api.MachineCarry
)

// act plays one action on the machine's entity: it is taken up in the state it was left in,
// and left again when the action has ended.
func (w *world) act(m *machine, action string, r api.ActionRequest) (api.ActionResult, error) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet{})
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(runTimeout)
	env.SetStartWorkflowOptions(startOptions(api.MachineWorkflowID(m.id)))
	for _, f := range workflows.All() {
		env.RegisterWorkflowWithOptions(f.Func, workflow.RegisterOptions{Name: f.Name})
	}
	w.machineCalls(env, m, env.Now)
	w.mu.Lock()
	m.kill = func(child string) { env.CancelWorkflowByID(child, "") }
	m.acted++
	in := api.MachineInput{VM: m.vm, Policy: m.status.PolicySpec, Target: m.status.TargetSpec, Carry: &api.MachineCarry{
		Status: m.status, Counter: m.acted * perAct, Version: carryVer, Joined: true, Assigned: m.status.Assignment.Epoch,
	}}
	w.mu.Unlock()
	a := &answer{}
	a.then = func() { env.RegisterDelayedCallback(env.CancelWorkflow, settle) }
	env.RegisterDelayedCallback(func() { env.UpdateWorkflow(action, r.RequestID, a, r) }, time.Second)
	env.ExecuteWorkflow(api.WorkflowMachine, in)
	var s api.MachineStatus
	v, err := env.QueryWorkflow(api.QueryStatus)
	if err == nil {
		err = v.Get(&s)
	}
	switch {
	case a.err != nil:
		err = a.err // as it is: its code decides
	case err == nil && !a.done:
		err = fault.New(api.CodeInternal, "the simulation of %s did not come to an end: %v", action, env.GetWorkflowError())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.Machine == m.id {
		m.status = s
	}
	m.leftover = m.leftover || strings.Contains(a.result.Message, "delete it by hand") || strings.Contains(a.result.Message, "it ends by itself")
	m.failed = ""
	if err != nil {
		m.failed = fault.Message(err)
	}
	return a.result, err
}

// Registry takes the model's calls: a test environment or a worker.
type Registry interface {
	RegisterActivityWithOptions(f any, options activity.RegisterOptions)
}

// none is a call's result when it has none.
type none struct{}

// serve registers a call of the model: counted, perhaps failing, and looked at afterwards.
func serve[In, Out any](w *world, r Registry, m *machine, name string, f func(In) (Out, error)) {
	r.RegisterActivityWithOptions(func(ctx context.Context, in In) (out Out, err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		before, after := w.called(m.name, name, func() {
			if child := activity.GetInfo(ctx).WorkflowExecution.ID; child != api.MachineWorkflowID(m.id) {
				m.kill(child)
			}
		})
		if before != nil {
			// An unplanned failover goes on, for a stated reason, with a source that may still run.
			m.lost = m.lost || name == api.ActShutdownVM && w.options.Kind == api.PlanUnplanned && w.options.Reason != ""
			return out, before
		}
		out, err = f(in)
		w.changed(m)
		if err == nil {
			err = after
		}
		return out, err
	}, activity.RegisterOptions{Name: name})
}
