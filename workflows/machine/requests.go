package machine

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/fault"
)

func (e *entity) validate() error {
	switch {
	case e.in.VM.Machine.IsZero() || e.in.VM.Name == "":
		return fault.New(api.CodeInvalid, "protect: no VM given")
	case len(protected(e.in.VM, e.in.Exclude)) == 0:
		return fault.New(api.CodeInvalid, "protect %s: no disks are left to protect", e.in.VM.Name)
	case e.in.Target.Network == "":
		return fault.New(api.CodeInvalid, "protect %s: no target network given", e.in.VM.Name)
	}
	return validPolicy(e.in.Policy)
}

func validPolicy(p api.Policy) error {
	if wrong := api.ValidatePolicy(p); len(wrong) > 0 {
		return fault.New(api.CodeInvalid, "policy %s: %s", p.Name, wrong[0].Error())
	}
	return nil
}

// handlers answer the query and take requests, by update or by signal.
func (e *entity) handlers(ctx workflow.Context) error {
	query := func() (api.MachineStatus, error) { return e.s, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return err
	}
	for _, action := range api.MachineActions {
		if err := e.handle(ctx, action); err != nil {
			return err
		}
	}
	e.listen(ctx)
	return nil
}

// handle takes an action's updates and signals.
func (e *entity) handle(ctx workflow.Context, action string) error {
	update := func(ctx workflow.Context, r api.ActionRequest) (api.ActionResult, error) {
		if r.RequestID == "" {
			r.RequestID = workflow.GetCurrentUpdateInfo(ctx).ID
		}
		// What the validator saw may have changed: another request came first.
		if err := e.check(action, r); err != nil {
			return api.ActionResult{}, err
		}
		e.enqueue(ctx, action, r)
		if err := workflow.Await(ctx, func() bool { return e.resultOf(r.RequestID) != nil }); err != nil {
			return api.ActionResult{}, err
		}
		return e.answer(r.RequestID)
	}
	validate := func(ctx workflow.Context, r api.ActionRequest) error {
		if r.RequestID == "" {
			r.RequestID = workflow.GetCurrentUpdateInfo(ctx).ID
		}
		return e.check(action, r)
	}
	if err := workflow.SetUpdateHandlerWithOptions(ctx, action, update, workflow.UpdateHandlerOptions{Validator: validate}); err != nil {
		return err
	}
	signals := workflow.GetSignalChannel(ctx, action)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var r api.ActionRequest
			signals.Receive(ctx, &r)
			e.signalled(ctx, action, r)
		}
	})
	return nil
}

// signalled takes a request that nobody waits for; a refusal is kept for people.
func (e *entity) signalled(ctx workflow.Context, action string, r api.ActionRequest) {
	if r.RequestID == "" {
		e.counter++
		r.RequestID = fmt.Sprintf("signal-%d", e.counter)
	}
	if err := e.check(action, r); err != nil {
		e.s.Refused = &api.Refusal{Action: action, Code: codeOf(err), Reason: fault.Message(err), At: workflow.Now(ctx)}
		e.show(ctx)
		return
	}
	e.enqueue(ctx, action, r)
}

// check refuses a request that cannot be done now. One that is known already is
// never refused.
func (e *entity) check(action string, r api.ActionRequest) error {
	if e.known(r.RequestID) {
		return nil
	}
	if err := e.possible(action); err != nil {
		return err
	}
	switch {
	case action == api.ActionResync:
		return e.checkResync(r)
	case action == api.ActionSetPolicy && r.Policy == nil:
		return fault.New(api.CodeInvalid, "set-policy of %s: no policy given", e.s.Name)
	case action == api.ActionSetPolicy:
		return validPolicy(*r.Policy)
	case action == api.ActionFailover && r.Planned && e.s.State != api.StateProtected:
		return fault.New(api.CodeNotInState, "planned failover of %s needs a whole replication, it is %s; resynchronise, or fail over unplanned", e.s.Name, e.s.State)
	case r.Point == api.PointCustom && r.PointID == 0:
		return fault.New(api.CodeInvalid, "%s of %s: a custom recovery point needs its number", action, e.s.Name)
	}
	return nil
}

func (e *entity) known(id string) bool {
	return e.resultOf(id) != nil || e.running != nil && e.running.Request.RequestID == id ||
		slices.ContainsFunc(e.queue, func(q api.QueuedAction) bool { return q.Request.RequestID == id })
}

func (e *entity) enqueue(ctx workflow.Context, action string, r api.ActionRequest) {
	if e.known(r.RequestID) {
		return
	}
	e.queue = append(e.queue, api.QueuedAction{Action: action, Request: r, Asked: workflow.Now(ctx)})
	e.show(ctx)
}

func (e *entity) resultOf(id string) *api.RecentRequest {
	for i := range e.recent {
		if e.recent[i].ID == id {
			return &e.recent[i]
		}
	}
	return nil
}

func (e *entity) answer(id string) (api.ActionResult, error) {
	r := e.resultOf(id)
	if r == nil {
		return api.ActionResult{}, fault.New(api.CodeInternal, "the result of request %s is not remembered any more", id)
	}
	if r.Error != "" {
		return r.Result, fault.New(r.Code, "%s", r.Error)
	}
	return r.Result, nil
}

// remember keeps what a request came to.
func (e *entity) remember(id string, result api.ActionResult, err error) {
	r := api.RecentRequest{ID: id, Result: result}
	if err != nil {
		r.Error, r.Code = fault.Message(err), codeOf(err)
		if r.Error == "" {
			r.Error = "failed"
		}
	}
	e.recent = append(e.recent, r)
	if len(e.recent) > maxRecent {
		e.recent = slices.Delete(e.recent, 0, len(e.recent)-maxRecent)
	}
}

// listen takes the signals that are not requests.
func (e *entity) listen(ctx workflow.Context) {
	steps := workflow.GetSignalChannel(ctx, api.SignalStep)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var p api.StepProgress
			steps.Receive(ctx, &p)
			if p.Run == e.s.Child {
				e.s.Doing = p.Step
				if e.running != nil {
					e.s.Doing = e.running.Action + ": " + p.Step
				}
				workflow.SetCurrentDetails(ctx, e.describe())
			}
		}
	})
	events := workflow.GetSignalChannel(ctx, api.SignalReplicationEvent)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var ev api.ReplicationEvent
			events.Receive(ctx, &ev)
			if ev.Cleared {
				e.clear(ctx, ev.Problem.Code)
				continue
			}
			e.raise(ctx, ev.Problem)
		}
	})
	inventory := workflow.GetSignalChannel(ctx, api.SignalInventory)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var vm api.VM
			inventory.Receive(ctx, &vm)
			e.seen(ctx, vm)
		}
	})
	agents := workflow.GetSignalChannel(ctx, api.SignalAgent)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var r api.AgentReport
			agents.Receive(ctx, &r)
			e.reported(ctx, r)
		}
	})
}
