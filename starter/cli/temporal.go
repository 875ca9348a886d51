package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"

	"drover/workflows/api"
)

// Bounds of what the command line waits for.
const (
	connectTimeout = 5 * time.Second
	queryTimeout   = 15 * time.Second
	updateTimeout  = time.Minute // updates that only change a record
	maxListed      = 10_000
)

// connect opens the connection to Temporal, once.
func (a *app) connect(ctx context.Context) error {
	if a.client != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{
		HostPort: a.address, Namespace: a.namespace, Identity: "drover-cli:" + by(),
		Logger: sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		return &noTemporalError{a.address, err}
	}
	a.client = c
	return nil
}

// query asks a workflow for its status.
func query[T any](ctx context.Context, a *app, id string) (T, error) {
	var out T
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	value, err := a.client.QueryWorkflow(ctx, id, "", api.QueryStatus)
	if err != nil {
		return out, err
	}
	return out, value.Get(&out)
}

// vault reads the vault; before anything was set up it is empty.
func (a *app) vault(ctx context.Context) (api.VaultStatus, error) {
	if err := a.connect(ctx); err != nil {
		return api.VaultStatus{}, err
	}
	v, err := query[api.VaultStatus](ctx, a, api.VaultID)
	var absent *serviceerror.NotFound
	if errors.As(err, &absent) {
		return api.VaultStatus{}, nil
	}
	return v, err
}

// member finds a machine under protection by its name or id.
func (a *app) member(ctx context.Context, name string) (api.VaultMember, error) {
	v, err := a.vault(ctx)
	if err != nil {
		return api.VaultMember{}, err
	}
	return memberOf(v, name)
}

func memberOf(v api.VaultStatus, name string) (api.VaultMember, error) {
	var found []api.VaultMember
	for _, m := range v.Machines {
		if m.Name == name || m.Machine.String() == name {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.VaultMember{}, &notFoundError{fmt.Errorf("no protected machine %q; `drover status` lists them", name)}
	}
	ids := make([]string, len(found))
	for i, m := range found {
		ids[i] = m.Machine.String()
	}
	return api.VaultMember{}, &usageError{fmt.Errorf("%d machines are named %s; name one by its id: %s", len(found), name, strings.Join(ids, ", "))}
}

// update sends an update that only changes a record, and reads its result.
func update[T any](ctx context.Context, a *app, id, name string, arg any) (T, error) {
	var out T
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	handle, err := a.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: name, Args: []any{arg}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err != nil {
		return out, err
	}
	return out, handle.Get(ctx, &out)
}

// ids lists the workflows that a visibility query finds, newest first.
func (a *app) ids(ctx context.Context, visibility string, limit int) ([]string, error) {
	var out []string
	var page []byte
	for len(out) < limit {
		ctx, cancel := context.WithTimeout(ctx, queryTimeout)
		resp, err := a.client.ListWorkflow(ctx, listRequest(a.namespace, visibility, page))
		cancel()
		if err != nil {
			return nil, err
		}
		for _, e := range resp.GetExecutions() {
			out = append(out, e.GetExecution().GetWorkflowId())
		}
		if page = resp.GetNextPageToken(); len(page) == 0 {
			break
		}
	}
	return out[:min(len(out), limit)], nil
}

// ask starts a short workflow of the control queue and waits for its result; both have so long.
func ask[Out any](ctx context.Context, a *app, limit time.Duration, o client.StartWorkflowOptions, workflow string, in ...any) (out Out, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o.TaskQueue, o.WorkflowExecutionTimeout = api.ControlQueue, limit
	run, err := a.client.ExecuteWorkflow(ctx, o, workflow, in...)
	if err != nil {
		return out, err
	}
	return out, run.Get(ctx, &out)
}
