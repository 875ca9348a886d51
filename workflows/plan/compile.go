package plan

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
	"drover/workflows/fault"
)

// Kinds of step.
const (
	kindScript  = "script"
	kindWebhook = "webhook"
	kindRunbook = "runbook"
	kindManual  = "manual"
	kindMachine = "machine"
)

// step is what a line of the status does.
type step struct {
	kind     api.PlanKind // of its phase
	group    int
	action   *api.PlanAction
	machine  *api.VaultMember
	location *api.Location // of its VM, if a reprotect is to make it anew
	optional bool
	asks     string // what a person is asked
	tries    int
	undos    int
}

func kindOf(a api.PlanAction) string {
	switch {
	case a.Script != nil:
		return kindScript
	case a.Webhook != nil:
		return kindWebhook
	case a.Runbook != nil:
		return kindRunbook
	}
	return kindManual
}

// phases of a kind of run: what it does to all machines, one after the other.
func phases(kind api.PlanKind) []api.PlanKind {
	if kind == api.PlanReturn {
		return []api.PlanKind{api.PlanReprotect, api.PlanFailback, api.PlanReenable}
	}
	return []api.PlanKind{kind}
}

// compile looks everything up and lists the steps.
func (r *run) compile(ctx workflow.Context) error {
	if !slices.Contains(api.PlanKinds, r.in.Kind) {
		return fault.New(api.CodeInvalid, "plan %s: unknown kind of run %q", r.in.Plan, r.in.Kind)
	}
	p, err := call.LookupPlan(ctx, r.in.Plan)
	if err != nil {
		return err
	}
	if wrong := api.ValidatePlan(p); len(wrong) > 0 {
		return fault.New(api.CodeInvalid, "plan %s: %s", p.Name, wrong[0].Error())
	}
	if r.in.Kind == api.PlanRollBack {
		slices.Reverse(p.Groups)
	}
	r.groups, r.shutdown = len(p.Groups), p.Shutdown
	members, err := r.find(ctx, p)
	if err != nil {
		return err
	}
	for _, phase := range phases(r.in.Kind) {
		if err := r.phase(ctx, p, phase, members); err != nil {
			return err
		}
	}
	if err := r.checkActions(ctx, p); err != nil {
		return fault.Wrap(codeOf(err), err, "plan %s: %s", p.Name, fault.Message(err))
	}
	return r.checkPoints(p)
}

// maxFinds run at once: one after the other, those of a large plan would cost RTO.
const maxFinds = 32

// find looks the plan's machines up. The first that is not there, in the plan's order, is told.
func (r *run) find(ctx workflow.Context, p api.Plan) (map[string]api.VaultMember, error) {
	members := map[string]api.VaultMember{}
	if workflow.GetVersion(ctx, "find-together", workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return members, nil // they are found one by one
	}
	type named struct{ machine, group string }
	var all []named
	for _, g := range p.Groups {
		for _, m := range g.Machines {
			all = append(all, named{m.Name, g.Name})
		}
	}
	turns := workflow.NewSemaphore(ctx, maxFinds)
	err := firstOf(atOnce(ctx, len(all), func(ctx workflow.Context, i int) error {
		if err := turns.Acquire(ctx, 1); err != nil {
			return err
		}
		defer turns.Release(1)
		member, err := call.FindMachine(ctx, all[i].machine)
		if err != nil {
			return notFound(err, all[i].machine, all[i].group)
		}
		members[all[i].machine] = member
		return nil
	}))
	return members, err
}

func notFound(err error, machine, group string) error {
	return fault.Wrap(codeOf(err), err, "machine %s of group %s: %s", machine, group, fault.Message(err))
}

// checkPoints refuses points of machines that are not in the plan, and a custom choice
// without one.
func (r *run) checkPoints(p api.Plan) error {
	named := 0
	for _, g := range p.Groups {
		for _, m := range g.Machines {
			switch {
			case r.in.Points[m.Name] != 0:
				named++
			case r.in.Point == api.PointCustom:
				return fault.New(api.CodeInvalid, "plan %s: machine %s has no recovery point named", p.Name, m.Name)
			}
		}
	}
	if named < len(r.in.Points) {
		return fault.New(api.CodeInvalid, "plan %s: recovery points are named for %d machines, of which %d are in the plan", p.Name, len(r.in.Points), named)
	}
	return nil
}

// phase lists the steps of one phase.
func (r *run) phase(ctx workflow.Context, p api.Plan, kind api.PlanKind, members map[string]api.VaultMember) error {
	at := ""
	if kind != r.in.Kind {
		at = string(kind) + "/"
	}
	r.actions(at+"before", kind, -1, p.Before)
	for i, g := range p.Groups {
		group := fmt.Sprintf("%s%d", at, i+1)
		r.actions(group+"/before", kind, i, g.Before)
		for _, m := range g.Machines {
			member, known := members[m.Name]
			if !known {
				var err error
				if member, err = call.FindMachine(ctx, m.Name); err != nil {
					return notFound(err, m.Name, g.Name)
				}
				members[m.Name] = member
			}
			r.add(step{kind: kind, group: i, machine: &member, optional: m.Optional, location: m.Location},
				api.PlanStep{ID: group + "/" + m.Name, Group: g.Name, Kind: kindMachine, Name: m.Name})
		}
		r.actions(group+"/after", kind, i, g.After)
	}
	r.actions(at+"after", kind, len(p.Groups), p.After)
	return nil
}

// actions adds those that take part in this kind of run.
func (r *run) actions(at string, kind api.PlanKind, group int, actions []api.PlanAction) {
	for _, a := range actions {
		if !takesPart(a, kind) {
			continue
		}
		r.add(step{kind: kind, group: group, action: &a}, api.PlanStep{ID: at + "/" + a.Name, Kind: kindOf(a), Name: a.Name})
	}
}

func takesPart(a api.PlanAction, kind api.PlanKind) bool {
	return slices.Contains(a.On, kind) || len(a.On) == 0 && kind.BringsUp()
}

func (r *run) add(s step, line api.PlanStep) {
	line.State = api.StepPending
	if s.kind != r.in.Kind {
		line.Phase = s.kind
	}
	r.steps = append(r.steps, s)
	r.status.Steps = append(r.status.Steps, line)
}
