package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"drover/activities/activityerr"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// VaultStatus reads the vault; a vault not yet started is an empty one.
func (c *Control) VaultStatus(ctx context.Context) (api.VaultStatus, error) {
	out, _, err := query[api.VaultStatus](ctx, c.Client, api.VaultID, api.QueryStatus)
	if err != nil {
		return out, activityerr.Wrap(api.CodeInternal, err, "ask the vault for its status: %v", err)
	}
	return out, nil
}

// LookupPlan reads a plan kept in the vault.
func (c *Control) LookupPlan(ctx context.Context, name string) (api.Plan, error) {
	vault, err := c.VaultStatus(ctx)
	if err != nil {
		return api.Plan{}, err
	}
	for _, p := range vault.Plans {
		if p.Plan.Name == name {
			return p.Plan, nil
		}
	}
	return api.Plan{}, activityerr.New(api.CodeNotFound, "plan %q is not in the vault; list the plans, or apply its file first", name)
}

// FindMachine finds a machine under protection by its id or its name. A name
// that several machines have is refused: it must be clear which one is meant. The
// answer has the threshold of its policy as it is now.
func (c *Control) FindMachine(ctx context.Context, nameOrID string) (api.VaultMember, error) {
	vault, err := c.VaultStatus(ctx)
	if err != nil {
		return api.VaultMember{}, err
	}
	m, err := findMachine(vault, nameOrID)
	for _, p := range vault.Policies {
		if p.Policy.Name == m.Policy {
			m.RPOThreshold = p.Policy.RPOThreshold
		}
	}
	return m, err
}

func findMachine(vault api.VaultStatus, nameOrID string) (api.VaultMember, error) {
	var found []api.VaultMember
	for _, m := range vault.Machines {
		if m.Machine.String() == nameOrID {
			return m, nil
		}
		if m.Name == nameOrID {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.VaultMember{}, activityerr.New(api.CodeNotFound, "machine %q is not under protection; protect it first, or check its name", nameOrID)
	}
	ids := make([]string, len(found))
	for i, m := range found {
		ids[i] = m.Machine.String()
	}
	return api.VaultMember{}, activityerr.New(api.CodeInvalid, "%d machines are named %q; use one of their ids: %s", len(found), nameOrID, strings.Join(ids, ", "))
}

// VaultJoin enters a machine in the vault, starting the vault when it is absent.
func (c *Control) VaultJoin(ctx context.Context, m api.VaultMember) error {
	return c.updateVault(ctx, api.VaultJoin, m)
}

// VaultLeave takes a machine out of the vault; one that is not in it is no error.
func (c *Control) VaultLeave(ctx context.Context, machine ident.MachineID) error {
	return c.updateVault(ctx, api.VaultLeave, machine)
}

// updateVault runs an update of the vault, starting the vault when it is absent. The
// update's id is that of the activity, so that a second try takes up the first one's
// answer. Updates take turns: Temporal lets a workflow have ten under way, and refuses
// the others with ever longer pauses, so that a thousand machines at once would hardly
// move.
func (c *Control) updateVault(ctx context.Context, name string, arg any) error {
	if err := c.vaultTurns.Acquire(ctx, 1); err != nil {
		return err
	}
	defer c.vaultTurns.Release(1)
	info := activity.GetInfo(ctx)
	options := client.UpdateWorkflowOptions{
		UpdateID:     fmt.Sprintf("%s-%s-%s", name, info.WorkflowExecution.RunID, info.ActivityID),
		WorkflowID:   api.VaultID,
		UpdateName:   name,
		Args:         []any{arg},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	}
	handle, err := c.Client.UpdateWorkflow(ctx, options)
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		handle, err = c.Client.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
			StartWorkflowOperation: c.Client.NewWithStartWorkflowOperation(VaultStart(), api.WorkflowVault, api.VaultInput{}),
			UpdateOptions:          options,
		})
	}
	if err == nil {
		err = handle.Get(ctx, nil)
	}
	var app *temporal.ApplicationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &app) && isCode(app.Type()):
		return app
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return activityerr.Wrap(api.CodeInternal, err, "update the vault (%s): %v", name, err)
}

// VaultStart says how the vault's workflow is started, at most once.
func VaultStart() client.StartWorkflowOptions {
	return client.StartWorkflowOptions{
		ID:                       api.VaultID,
		TaskQueue:                api.ControlQueue,
		WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
	}
}

func isCode(t string) bool {
	for _, code := range api.Codes() {
		if code == t {
			return true
		}
	}
	return false
}
