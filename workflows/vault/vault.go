// Package vault has the entity that keeps what the operator has set up: policies,
// recovery plans and the list of protected machines. There is one per namespace.
package vault

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// Bounds of a vault. Its whole state must fit in one workflow's input (2 MiB).
const (
	maxPolicies = 200
	maxPlans    = 200
	maxMachines = 2000
	// maxStateBytes is what the policies and plans together may take.
	maxStateBytes = 1 << 20
)

type vault struct {
	api.VaultStatus
}

// Workflow is the vault. It ends only by continuing as new.
func Workflow(ctx workflow.Context, in api.VaultInput) error {
	v := &vault{}
	if in.Carry != nil {
		v.VaultStatus = *in.Carry
	}
	if err := v.handlers(ctx); err != nil {
		return err
	}
	v.describe(ctx)
	err := workflow.Await(ctx, func() bool {
		return workflow.GetInfo(ctx).GetContinueAsNewSuggested() && workflow.AllHandlersFinished(ctx)
	})
	if err != nil {
		return err // cancelled
	}
	return workflow.NewContinueAsNewError(ctx, api.WorkflowVault, api.VaultInput{Carry: &v.VaultStatus})
}

func (v *vault) handlers(ctx workflow.Context) error {
	query := func() (api.VaultStatus, error) { return v.VaultStatus, nil }
	if err := workflow.SetQueryHandler(ctx, api.QueryStatus, query); err != nil {
		return err
	}
	for _, err := range []error{
		handle(ctx, v, api.VaultApplyPolicy, v.checkPolicy, v.applyPolicy),
		handle(ctx, v, api.VaultApplyPlan, v.checkPlan, v.applyPlan),
		handle(ctx, v, api.VaultDeletePolicy, v.checkDeletePolicy, v.deletePolicy),
		handle(ctx, v, api.VaultDeletePlan, v.checkDeletePlan, v.deletePlan),
		handle(ctx, v, api.VaultJoin, v.checkJoin, v.join),
		handle(ctx, v, api.VaultLeave, nil, v.leave),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// handle makes an update that is refused by check before it enters the history,
// and whose effect is at once.
func handle[In any](ctx workflow.Context, v *vault, name string, check func(In) error, apply func(workflow.Context, In) api.ApplyResult) error {
	update := func(ctx workflow.Context, in In) (api.ApplyResult, error) {
		r := apply(ctx, in)
		if r.Changed {
			v.describe(ctx)
		}
		return r, nil
	}
	validate := func(in In) error {
		if check == nil {
			return nil
		}
		return check(in)
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, name, update, workflow.UpdateHandlerOptions{Validator: validate})
}

// describe shows the vault in the UI.
func (v *vault) describe(ctx workflow.Context) {
	workflow.SetCurrentDetails(ctx, fmt.Sprintf("%d machines, %d policies, %d plans", len(v.Machines), len(v.Policies), len(v.Plans)))
}

// invalid makes the error of a document with all that is wrong in it.
func invalid(what string, wrong []api.FieldError) error {
	if len(wrong) == 0 {
		return nil
	}
	lines := make([]string, len(wrong))
	for i, w := range wrong {
		lines[i] = w.Error()
	}
	return fault.New(api.CodeInvalid, "%s: %s", what, strings.Join(lines, "; "))
}

// room refuses what would make the state too large to carry on.
func (v *vault) room(added any) error {
	total := 0
	for _, part := range []any{v.Policies, v.Plans, added} {
		b, err := json.Marshal(part)
		if err != nil {
			return fault.Wrap(api.CodeInvalid, err, "the document cannot be stored")
		}
		total += len(b)
	}
	if total > maxStateBytes {
		return fault.New(api.CodeInvalid, "the vault's policies and plans take %d bytes, at most %d: delete some", total, maxStateBytes)
	}
	return nil
}

// hash names a document's content. Encoding plain structs gives the same bytes
// every time; the checker follows reflection into the runtime and cannot know.
//
//workflowcheck:ignore
func hash(doc any) string {
	b, err := json.Marshal(doc)
	if err != nil {
		return "" // it was validated: cannot be
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (v *vault) policy(name string) int {
	return slices.IndexFunc(v.Policies, func(p api.StoredPolicy) bool { return p.Policy.Name == name })
}

func (v *vault) plan(name string) int {
	return slices.IndexFunc(v.Plans, func(p api.StoredPlan) bool { return p.Plan.Name == name })
}

func (v *vault) machine(id ident.MachineID) int {
	return slices.IndexFunc(v.Machines, func(m api.VaultMember) bool { return m.Machine == id })
}

func (v *vault) checkPolicy(in api.ApplyPolicy) error {
	if err := invalid("policy "+in.Policy.Name, api.ValidateNewPolicy(in.Policy)); err != nil {
		return err
	}
	if v.policy(in.Policy.Name) < 0 && len(v.Policies) >= maxPolicies {
		return fault.New(api.CodeInvalid, "the vault has %d policies, at most %d: delete some", len(v.Policies), maxPolicies)
	}
	return v.room(in)
}

func (v *vault) applyPolicy(ctx workflow.Context, in api.ApplyPolicy) api.ApplyResult {
	s := api.StoredPolicy{Policy: in.Policy, Hash: hash(in.Policy), Applied: workflow.Now(ctx), By: in.By}
	back := in.Policy.ForFailback()
	s.Policy.Failback = &back // the hash is of what was given
	i := v.policy(in.Policy.Name)
	switch {
	case i < 0:
		v.Policies = append(v.Policies, s)
		return api.ApplyResult{Changed: true, Hash: s.Hash, Message: "added"}
	case v.Policies[i].Hash == s.Hash:
		return api.ApplyResult{Hash: s.Hash, Message: "unchanged"}
	}
	v.Policies[i] = s
	return api.ApplyResult{Changed: true, Hash: s.Hash, Message: "changed; its machines follow by themselves"}
}

func (v *vault) checkPlan(in api.ApplyPlan) error {
	if err := invalid("plan "+in.Plan.Name, api.ValidatePlan(in.Plan)); err != nil {
		return err
	}
	if v.plan(in.Plan.Name) < 0 && len(v.Plans) >= maxPlans {
		return fault.New(api.CodeInvalid, "the vault has %d plans, at most %d: delete some", len(v.Plans), maxPlans)
	}
	return v.room(in)
}

func (v *vault) applyPlan(ctx workflow.Context, in api.ApplyPlan) api.ApplyResult {
	s := api.StoredPlan{Plan: in.Plan, Hash: hash(in.Plan), Applied: workflow.Now(ctx), By: in.By}
	i := v.plan(in.Plan.Name)
	switch {
	case i < 0:
		v.Plans = append(v.Plans, s)
		return api.ApplyResult{Changed: true, Hash: s.Hash, Message: "added"}
	case v.Plans[i].Hash == s.Hash:
		return api.ApplyResult{Hash: s.Hash, Message: "unchanged"}
	}
	v.Plans[i] = s
	return api.ApplyResult{Changed: true, Hash: s.Hash, Message: "changed"}
}

func (v *vault) checkDeletePolicy(name string) error {
	if v.policy(name) < 0 {
		return fault.New(api.CodeNotFound, "the vault has no policy %q", name)
	}
	for _, m := range v.Machines {
		if m.Policy == name {
			return fault.New(api.CodeNotInState, "policy %s is in use by machine %s: give its machines another one first", name, m.Name)
		}
	}
	return nil
}

func (v *vault) deletePolicy(_ workflow.Context, name string) api.ApplyResult {
	i := v.policy(name)
	if i < 0 {
		return api.ApplyResult{Message: "not there"}
	}
	v.Policies = slices.Delete(v.Policies, i, i+1)
	return api.ApplyResult{Changed: true, Message: "deleted"}
}

func (v *vault) checkDeletePlan(name string) error {
	if v.plan(name) < 0 {
		return fault.New(api.CodeNotFound, "the vault has no plan %q", name)
	}
	return nil
}

func (v *vault) deletePlan(_ workflow.Context, name string) api.ApplyResult {
	i := v.plan(name)
	if i < 0 {
		return api.ApplyResult{Message: "not there"}
	}
	v.Plans = slices.Delete(v.Plans, i, i+1)
	return api.ApplyResult{Changed: true, Message: "deleted"}
}

func (v *vault) checkJoin(m api.VaultMember) error {
	if m.Machine.IsZero() || m.Name == "" {
		return fault.New(api.CodeInvalid, "a machine needs an id and a name to join the vault")
	}
	if v.machine(m.Machine) < 0 && len(v.Machines) >= maxMachines {
		return fault.New(api.CodeInvalid, "the vault has %d machines, at most %d: use another namespace", len(v.Machines), maxMachines)
	}
	return nil
}

func (v *vault) join(_ workflow.Context, m api.VaultMember) api.ApplyResult {
	i := v.machine(m.Machine)
	switch {
	case i < 0:
		v.Machines = append(v.Machines, m)
	case v.Machines[i] == m:
		return api.ApplyResult{Message: "unchanged"}
	default:
		v.Machines[i] = m
	}
	return api.ApplyResult{Changed: true, Message: "joined"}
}

func (v *vault) leave(_ workflow.Context, id ident.MachineID) api.ApplyResult {
	i := v.machine(id)
	if i < 0 {
		return api.ApplyResult{Message: "not there"}
	}
	v.Machines = slices.Delete(v.Machines, i, i+1)
	return api.ApplyResult{Changed: true, Message: "left"}
}
