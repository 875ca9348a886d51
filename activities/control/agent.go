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

// Bounds of seeing whether an agent reaches a server.
const (
	reachLimit = 2 * time.Minute  // for it to be reached
	reachAgent = 30 * time.Second // an agent that says nothing of it for so long is too old to
)

// AwaitAgent waits until an agent of the machine was heard of after Since, on the
// instance asked for, and has reached the server that it was asked to. How long it may
// take is the activity's timeout.
func (c *Control) AwaitAgent(ctx context.Context, in api.AwaitAgentInput) (api.AgentInfo, error) {
	ctx, stop := c.waiting(ctx, "waiting for the agent")
	defer stop()
	ticker := time.NewTicker(c.agentPoll)
	defer ticker.Stop()
	began := c.now()
	for {
		agents, err := c.Agents(in.Machine)
		if err != nil {
			return api.AgentInfo{}, activityerr.Of(err, "look for the agent of machine %s", in.Machine)
		}
		a, ok := heardOf(agents, in)
		if ok && in.Reach != nil {
			ok, err = reached(a, *in.Reach, began, c.now())
		}
		if err != nil {
			return api.AgentInfo{}, err
		}
		if ok {
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

// reached reports whether the agent has told all it can tell of the server.
func reached(a api.AgentReport, want api.Assignment, began, now time.Time) (bool, error) {
	r := a.Reached
	switch {
	case r == nil || r.Address != want.Address || r.Via != want.Via:
		return a.LastSeen.After(began.Add(reachAgent)), nil
	case r.Error == "":
		return true, nil
	case now.Sub(began) < reachLimit:
		return false, nil
	}
	way := ""
	if want.Via != "" {
		way = " by way of " + want.Via
	}
	return false, activityerr.New(api.CodeNoPath, "the machine does not reach %s at %s%s: %s; check the private connection, its routes and what filters them",
		want.Server, want.Address, way, r.Error)
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
