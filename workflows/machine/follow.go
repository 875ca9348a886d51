package machine

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
)

// byVault asks for what the vault has, in the vault's name.
const byVault = "vault"

// told keeps what the vault has for the machine until it can be taken.
func (e *entity) told(_ workflow.Context, n api.VaultNews) {
	if n.Policy.Name != e.s.Policy || n.PolicyHash == "" || validPolicy(n.Policy) != nil {
		return // another policy was set meanwhile, or somebody sent nonsense
	}
	e.news, e.stirred = &n, true
}

// mayFollow reports whether there is something to take, and no action that it would
// come between.
func (e *entity) mayFollow() bool {
	return e.news != nil && e.running == nil && len(e.queue) == 0 && slices.Contains(allowed[api.ActionSetPolicy], e.s.State)
}

// follow takes the news: a changed policy like set-policy, plans at once.
func (e *entity) follow(ctx workflow.Context) {
	n := *e.news
	e.news = nil
	e.s.Plans, e.s.Follows = n.Plans, n.Digest()
	if n.PolicyHash != e.s.PolicyHash {
		e.counter++
		e.enqueue(ctx, api.ActionSetPolicy, api.ActionRequest{
			RequestID: fmt.Sprintf("vault-%d", e.counter), By: byVault, Reason: "policy " + n.Policy.Name + " was changed",
			Policy: &n.Policy, PolicyHash: n.PolicyHash,
		})
		return
	}
	e.show(ctx)
	e.aside(ctx, func(ctx workflow.Context) {
		if err := call.VaultJoin(ctx, e.member()); err != nil {
			workflow.GetLogger(ctx).Warn("the vault was not told what the machine has taken; it tells again", "error", err)
		}
	})
}

// member is the machine's entry in the vault.
func (e *entity) member() api.VaultMember {
	return api.VaultMember{Machine: e.s.Machine, Name: e.s.Name, Policy: e.s.Policy, Follows: e.s.Follows}
}

// aside does something that nobody waits for; the run does not continue as new before
// its end.
func (e *entity) aside(ctx workflow.Context, f func(workflow.Context)) {
	e.asides++
	if e.version != workflow.DefaultVersion { // stopping an action or what goes on beside does not end it
		ctx, _ = workflow.NewDisconnectedContext(ctx)
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() { e.asides-- }()
		f(ctx)
	})
}
