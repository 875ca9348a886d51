package control

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// AwaitAgent waits until an agent of the machine was heard of after Since, on the
// instance asked for. How long it may take is the activity's timeout.
func (c *Control) AwaitAgent(ctx context.Context, in api.AwaitAgentInput) (api.AgentInfo, error) {
	ctx, stop := c.waiting(ctx, "waiting for the agent")
	defer stop()
	ticker := time.NewTicker(c.agentPoll)
	defer ticker.Stop()
	for {
		agents, err := c.Agents(in.Machine)
		if err != nil {
			return api.AgentInfo{}, activityerr.Of(err, "look for the agent of machine %s", in.Machine)
		}
		if a, ok := heardOf(agents, in); ok {
			return api.AgentInfo{Instance: a.Instance, Version: a.Version, LastSeen: a.LastSeen, Report: &a}, nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, errStopping) {
				return api.AgentInfo{}, cause
			}
			return api.AgentInfo{}, ctx.Err()
		case <-ticker.C:
		}
	}
}

// heardOf finds the agent heard of last that fits.
func heardOf(agents []api.AgentReport, in api.AwaitAgentInput) (best api.AgentReport, ok bool) {
	for _, a := range agents {
		fits := in.Instance == "" || strings.EqualFold(a.Instance, in.Instance)
		if fits && !a.LastSeen.IsZero() && !a.LastSeen.Before(in.Since) && (!ok || a.LastSeen.After(best.LastSeen)) {
			best, ok = a, true
		}
	}
	return best, ok
}

// maxReports bounds an answer's reports, in bytes; Temporal takes 2 MiB.
const maxReports = 1 << 20

// ListAgents gives what the agent of each machine said last, as far as it fits into one
// answer.
func (c *Control) ListAgents(_ context.Context, in api.ListAgentsInput) (out api.ListAgentsResult, err error) {
	if len(in.Machines) > api.MaxAgentsAsked {
		return out, activityerr.New(api.CodeInvalid, "the agents of %d machines, at most %d at once", len(in.Machines), api.MaxAgentsAsked)
	}
	room := maxReports
	for _, machine := range in.Machines {
		agents, err := c.Agents(machine)
		if err != nil {
			return out, activityerr.Of(err, "look for the agent of machine %s", machine)
		}
		if a, ok := heardOf(agents, api.AwaitAgentInput{}); ok {
			b, err := json.Marshal(a)
			if err != nil {
				return out, activityerr.Of(err, "encode the report of the agent of machine %s", machine)
			}
			if room -= len(b); room < 0 && len(out.Reports) > 0 {
				return out, nil
			}
			out.Reports = append(out.Reports, a)
		}
		out.Looked++
	}
	return out, nil
}
