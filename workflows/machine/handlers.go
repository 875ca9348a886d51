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

// take receives the signals of a name, one after the other. What has arrived and was
// not taken keeps the run from continuing as new.
func take[T any](ctx workflow.Context, e *entity, name string, f func(workflow.Context, T)) {
	signals := workflow.GetSignalChannel(ctx, name)
	e.signals = append(e.signals, signals)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var in T
			signals.Receive(ctx, &in)
			f(ctx, in)
		}
	})
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
		if action == api.ActionStopResync {
			return e.stopResync(ctx, r)
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
	take(ctx, e, action, func(ctx workflow.Context, r api.ActionRequest) { e.signalled(ctx, action, r) })
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
	if action == api.ActionStopResync {
		e.cancelResync(stopReason(r), !r.Window)
		return
	}
	e.enqueue(ctx, action, r)
}

// check refuses a request that cannot be done now. One that is known already is
// never refused, nor one for the same as what is under way.
func (e *entity) check(action string, r api.ActionRequest) error {
	if e.known(r.RequestID) || e.same(action, r) != nil {
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
	case action == api.ActionChangePoint && (r.Point == "" || r.Point.Common()):
		return fault.New(api.CodeInvalid, "change-point of %s: name the recovery point, one of the machine's own", e.s.Name)
	case r.CommitAfter < 0 || r.CleanAfter < 0 || !slices.Contains([]string{"", api.ActionCommit, api.ActionRollBack}, r.OnTimer):
		return fault.New(api.CodeInvalid, "%s of %s: want a timer of 0 (none) or more, and %s or %s", action, e.s.Name, api.ActionCommit, api.ActionRollBack)
	case len(api.ValidateShutdown(r.Shutdown)) > 0:
		return fault.New(api.CodeInvalid, "%s of %s: shutdown.%s", action, e.s.Name, api.ValidateShutdown(r.Shutdown)[0].Error())
	case r.Location != nil && action != api.ActionReprotect:
		return fault.New(api.CodeInvalid, "%s of %s: a location is for reprotect, which makes the VM anew there", action, e.s.Name)
	case r.Location != nil && len(api.ValidateLocation(*r.Location)) > 0:
		return fault.New(api.CodeInvalid, "%s of %s: location.%s", action, e.s.Name, api.ValidateLocation(*r.Location)[0].Error())
	case r.Point == api.PointCustom && r.PointID == 0:
		return fault.New(api.CodeInvalid, "%s of %s: a custom recovery point needs its number", action, e.s.Name)
	}
	return nil
}

func (e *entity) known(id string) bool {
	is := func(q api.QueuedAction) bool { return q.Request.RequestID == id || slices.Contains(q.Joined, id) }
	return e.resultOf(id) != nil || e.running != nil && is(*e.running) || slices.ContainsFunc(e.queue, is)
}

// same gives the action under way, or about to begin, that the request asks for too;
// nil when there is none.
func (e *entity) same(action string, r api.ActionRequest) *api.QueuedAction {
	is := func(q api.QueuedAction) bool { return q.Action == action && sameRequest(q.Request, r) }
	if e.running != nil && is(*e.running) {
		return e.running
	}
	if i := slices.IndexFunc(e.queue, is); i >= 0 {
		return &e.queue[i]
	}
	return nil
}

// sameRequest reports whether two requests of an action ask for the same, whoever asks
// and why.
func sameRequest(a, b api.ActionRequest) bool {
	policy := a.Policy == nil && b.Policy == nil || a.Policy != nil && b.Policy != nil && a.Policy.Name == b.Policy.Name && a.PolicyHash == b.PolicyHash
	return policy && a.Planned == b.Planned && a.Point == b.Point && a.PointID == b.PointID && a.Network == b.Network && a.Shutdown == b.Shutdown && a.Location.Equal(b.Location) &&
		a.CommitAfter == b.CommitAfter && a.OnTimer == b.OnTimer && a.CleanAfter == b.CleanAfter && a.KeepData == b.KeepData && a.OnlyIfRequired == b.OnlyIfRequired && a.Changed == b.Changed &&
		slices.Equal(a.Exclude, b.Exclude) && slices.Equal(a.Include, b.Include)
}

func (e *entity) enqueue(ctx workflow.Context, action string, r api.ActionRequest) {
	if e.known(r.RequestID) {
		return
	}
	if q := e.same(action, r); q != nil {
		q.Joined = append(q.Joined, r.RequestID)
		return
	}
	if e.resyncing() { // of all actions, check lets only a failover come so far
		e.cancelResync("a failover goes first", false)
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
	take(ctx, e, api.SignalStep, func(ctx workflow.Context, p api.StepProgress) {
		if p.Run != e.s.Child {
			return
		}
		e.s.Doing = p.Step
		if e.running != nil {
			e.s.Doing = e.running.Action + ": " + p.Step
		}
		workflow.SetCurrentDetails(ctx, e.describe())
	})
	take(ctx, e, api.SignalReplicationEvent, func(ctx workflow.Context, ev api.ReplicationEvent) {
		if ev.Cleared {
			e.clear(ctx, ev.Problem.Code)
			return
		}
		e.raise(ctx, ev.Problem)
	})
	take(ctx, e, api.SignalInventory, e.seen)
	take(ctx, e, api.SignalVMEvent, e.happened)
	take(ctx, e, api.SignalAgent, e.reported)
	take(ctx, e, api.SignalVault, e.told)
}
