package machine

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// Workflow is the entity. It ends when the machine is unprotected.
func Workflow(ctx workflow.Context, in api.MachineInput) (api.MachineStatus, error) {
	e := &entity{in: in, id: workflow.GetInfo(ctx).WorkflowExecution.ID}
	e.version = workflow.GetVersion(ctx, changeVisible, workflow.DefaultVersion, 1)
	if err := e.restore(ctx); err != nil {
		return api.MachineStatus{}, err
	}
	if err := e.handlers(ctx); err != nil {
		return e.s, err
	}
	if e.s.Forced != nil {
		workflow.Go(ctx, e.awaitBoot)
	}
	e.show(ctx)
	e.judgeDisks(ctx)
	for !e.gone {
		if e.mayContinueAsNew(ctx) {
			e.stopBackground(ctx)
			if e.settled(ctx) {
				return e.s, workflow.NewContinueAsNewError(ctx, api.WorkflowMachine, e.carry())
			}
		}
		e.startBackground(ctx)
		e.expire(ctx)
		if err := workflow.Await(ctx, func() bool { return e.due(ctx) }); err != nil {
			return e.s, err // the workflow itself was cancelled
		}
		e.step(ctx)
	}
	// Whoever waits for the end of the unprotect gets it.
	return e.s, workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) })
}

// due reports whether there is something to do.
func (e *entity) due(ctx workflow.Context) bool {
	return e.ended || e.stirred || e.mayFollow() || e.background != nil && e.background.done ||
		e.running == nil && len(e.queue) > 0 || e.mayContinueAsNew(ctx)
}

// step does what is due, without waiting.
func (e *entity) step(ctx workflow.Context) {
	e.ended, e.stirred = false, false
	if e.background != nil && e.background.done {
		b := e.background
		e.background = nil
		b.then()
	}
	if e.mayFollow() {
		e.follow(ctx)
	}
	if e.running == nil && len(e.queue) > 0 {
		next := e.queue[0]
		e.queue = e.queue[1:]
		e.running = &next
		ctx, e.cancelAction = workflow.WithCancel(ctx)
		workflow.Go(ctx, func(ctx workflow.Context) { e.act(ctx, next) })
	}
}
