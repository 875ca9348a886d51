package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/api/workflowservice/v1"

	"drover/activities/activityerr"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// ResyncWork says what there is to do in a policy's resync window: whether it is open
// and until when, which machines wait for a resync, and what runs on the servers.
func (c *Control) ResyncWork(ctx context.Context, in api.ResyncWorkInput) (out api.ResyncWork, err error) {
	vault, err := c.VaultStatus(ctx)
	if err != nil {
		return out, err
	}
	i := slices.IndexFunc(vault.Policies, func(p api.StoredPolicy) bool { return p.Policy.Name == in.Policy })
	if i < 0 {
		return out, activityerr.New(api.CodeNotFound, "resync window: the vault has no policy %s; apply it first", in.Policy)
	}
	if out, err = openAt(vault.Policies[i].Policy, in.Now, c.now()); err != nil || !out.Open {
		return out, err
	}
	ctx, stop := c.waiting(ctx, "looking for machines to resynchronise")
	defer stop()
	marked, err := c.executions(ctx, fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running' AND %s = '%s' AND %s = '%s'",
		api.WorkflowMachine, api.SearchPolicy, in.Policy, api.SearchState, api.StateResyncRequired))
	if err != nil {
		return out, err
	}
	running, err := c.executions(ctx, fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running'", api.WorkflowResync))
	if err != nil {
		return out, err
	}
	for _, id := range marked {
		s, ok, err := c.machineStatus(ctx, id)
		if err != nil {
			return out, err
		}
		if ok && s.Policy == in.Policy && s.State == api.StateResyncRequired && !s.ResyncHeld {
			out.Marked = append(out.Marked, api.ResyncCandidate{Member: api.VaultMember{Machine: s.Machine, Name: s.Name, Policy: s.Policy}, Server: s.Assignment.Server})
		}
	}
	for _, id := range running {
		s, ok, err := c.machineStatus(ctx, id)
		if err != nil {
			return out, err
		}
		if ok && !slices.Contains(in.Mine, s.Machine) && s.State == api.StateResyncing {
			out.Others = append(out.Others, s.Assignment.Server)
		}
	}
	return out, nil
}

// openAt reports whether the policy's machines may be resynchronised at a time.
func openAt(p api.Policy, now bool, t time.Time) (api.ResyncWork, error) {
	out := api.ResyncWork{AtOnce: p.Resync.Limit(), Open: true}
	switch {
	case now:
		return out, nil
	case !p.Resync.Automatic:
		return api.ResyncWork{Reason: "the policy resynchronises by hand only"}, nil
	case p.Resync.Window.Start == "":
		return out, nil
	}
	end, open, err := p.Resync.Window.Until(t)
	if err != nil {
		return out, activityerr.Wrap(api.CodeInvalid, err, "resync window of policy %s: %v", p.Name, err)
	}
	out.Open, out.Ends = open, end
	if !open {
		out.Reason = "outside the window"
	}
	return out, nil
}

// executions lists the machines whose workflows, or children of them, a visibility
// query finds; at most api.MaxResyncWork.
func (c *Control) executions(ctx context.Context, query string) (out []ident.MachineID, err error) {
	request := &workflowservice.ListWorkflowExecutionsRequest{Query: query, PageSize: 100}
	for len(out) < api.MaxResyncWork {
		page, err := c.Client.ListWorkflow(ctx, request)
		if err != nil {
			return nil, activityerr.Wrap(api.CodeInternal, err, "list workflows (%s): %v", query, err)
		}
		for _, e := range page.GetExecutions() {
			id := strings.TrimPrefix(e.GetExecution().GetWorkflowId(), api.MachineWorkflowPrefix)
			id, _, _ = strings.Cut(id, "-resync-")
			if machine, err := ident.ParseMachineID(id); err == nil && len(out) < api.MaxResyncWork {
				out = append(out, machine)
			}
		}
		if request.NextPageToken = page.GetNextPageToken(); len(request.NextPageToken) == 0 {
			break
		}
	}
	return out, nil
}

// machineStatus asks a machine's entity; false when it is gone.
func (c *Control) machineStatus(ctx context.Context, machine ident.MachineID) (s api.MachineStatus, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askMachine)
	defer cancel()
	if s, ok, err = query[api.MachineStatus](ctx, c.Client, api.MachineWorkflowID(machine), api.QueryStatus); err != nil {
		err = activityerr.Wrap(api.CodeInternal, err, "ask machine %s for its status: %v", machine, err)
	}
	return s, ok, err
}
