package control

import (
	"context"
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
			return a, nil
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
func heardOf(agents []api.AgentInfo, in api.AwaitAgentInput) (best api.AgentInfo, ok bool) {
	for _, a := range agents {
		fits := in.Instance == "" || strings.EqualFold(a.Instance, in.Instance)
		if fits && !a.LastSeen.IsZero() && !a.LastSeen.Before(in.Since) && (!ok || a.LastSeen.After(best.LastSeen)) {
			best, ok = a, true
		}
	}
	return best, ok
}
