package call

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// LookupPlan reads a plan kept in the vault.
func LookupPlan(ctx workflow.Context, name string) (api.Plan, error) {
	return run[api.Plan](ctx, api.ActLookupPlan, control(), name)
}

// FindMachine finds a machine under protection by its name or id.
func FindMachine(ctx workflow.Context, nameOrID string) (api.VaultMember, error) {
	return run[api.VaultMember](ctx, api.ActFindMachine, control(), nameOrID)
}

// VaultStatus reads the vault.
func VaultStatus(ctx workflow.Context) (api.VaultStatus, error) {
	var out api.VaultStatus
	ctx = workflow.WithActivityOptions(ctx, control())
	err := workflow.ExecuteActivity(ctx, api.ActVaultStatus).Get(ctx, &out)
	return out, err
}

// VaultJoin enters a machine in the vault.
func VaultJoin(ctx workflow.Context, m api.VaultMember) error {
	return do(ctx, api.ActVaultJoin, vault(), m)
}

// VaultLeave takes a machine out of the vault.
func VaultLeave(ctx workflow.Context, machine ident.MachineID) error {
	return do(ctx, api.ActVaultLeave, vault(), machine)
}

// vault: an update of the vault, which all machines may want at the same time.
func vault() workflow.ActivityOptions {
	o := control()
	o.StartToCloseTimeout = vaultTurn
	return o
}

// MachineAction runs an action of a machine's entity and waits for its end. Only
// the waiting is repeated, never the action: the request id makes sure, and any
// answer of the machine, whatever its code, is final.
func MachineAction(ctx workflow.Context, in api.MachineActionInput) (api.ActionResult, error) {
	o := control()
	o.StartToCloseTimeout = actionOfMachine
	o.HeartbeatTimeout = controlBeat
	o.RetryPolicy = retry(backOffMost, actionReconnects)
	o.RetryPolicy.NonRetryableErrorTypes = api.Codes()
	return run[api.ActionResult](ctx, api.ActMachineAction, o, in)
}

// ResyncWork says what there is to do in a policy's resync window.
func ResyncWork(ctx workflow.Context, in api.ResyncWorkInput) (api.ResyncWork, error) {
	o := control()
	o.StartToCloseTimeout, o.HeartbeatTimeout = resyncLook, controlBeat
	return run[api.ResyncWork](ctx, api.ActResyncWork, o, in)
}

// DoneBefore asks whether a machine is already what the action would make of it.
func DoneBefore(ctx workflow.Context, in api.MachineActionInput) (api.DoneBefore, error) {
	return run[api.DoneBefore](ctx, api.ActDoneBefore, control(), in)
}

// AwaitAgent waits, at most for the limit, until the machine's agent was heard
// of. The activity heartbeats and can be cancelled at any time.
func AwaitAgent(ctx workflow.Context, in api.AwaitAgentInput, limit time.Duration) (api.AgentInfo, error) {
	o := control()
	o.StartToCloseTimeout = limit
	o.ScheduleToCloseTimeout = limit
	o.HeartbeatTimeout = controlBeat
	o.WaitForCancellation = false // it only looks
	o.RetryPolicy = retry(backOffMost, actionReconnects)
	return run[api.AgentInfo](ctx, api.ActAwaitAgent, o, in)
}

// ListAgents gives what the machines' agents said last.
func ListAgents(ctx workflow.Context, in api.ListAgentsInput) (api.ListAgentsResult, error) {
	return run[api.ListAgentsResult](ctx, api.ActListAgents, control(), in)
}

// CheckActions says which actions of a plan could not be run here, and why.
func CheckActions(ctx workflow.Context, actions []api.LocatedAction) ([]api.FieldError, error) {
	return run[[]api.FieldError](ctx, api.ActCheckActions, control(), actions)
}

// Script runs a plan's script. A try that ran out of time is tried again only
// when the plan says so.
func Script(ctx workflow.Context, in api.ScriptInput, timeout time.Duration, retries int) (api.ActionOutput, error) {
	return run[api.ActionOutput](ctx, api.ActScript, planAction(timeout, retries), in)
}

// Webhook posts to a plan's webhook, under the same rules as Script.
func Webhook(ctx workflow.Context, in api.WebhookInput, timeout time.Duration, retries int) (api.ActionOutput, error) {
	return run[api.ActionOutput](ctx, api.ActWebhook, planAction(timeout, retries), in)
}

// Runbook runs a plan's runbook, under the same rules.
func Runbook(ctx workflow.Context, in api.RunbookInput, timeout time.Duration, retries int) (api.ActionOutput, error) {
	return run[api.ActionOutput](ctx, api.ActRunbook, planAction(timeout, retries), in)
}

func planAction(timeout time.Duration, retries int) workflow.ActivityOptions {
	o := control()
	o.StartToCloseTimeout = timeout
	o.HeartbeatTimeout = controlBeat
	o.RetryPolicy = retry(backOffMost, int32(retries)+1)
	return o
}

// Notify tells people about a problem. It is no trouble of the machine's when
// they cannot be reached.
func Notify(ctx workflow.Context, n api.Notification) error {
	return do(ctx, api.ActNotify, control(), n)
}
