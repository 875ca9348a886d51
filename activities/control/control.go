// Package control has the activities that ask Temporal itself and the
// configuration server's registry: the vault, other machines' entities, agents.
package control

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"golang.org/x/sync/semaphore"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// Bounds of the waiting.
const (
	heartbeatEvery = 5 * time.Second  // the heartbeat timeout on the control queue is 20 s
	agentPoll      = time.Second      // how often the registry is asked for an agent
	vaultAtOnce    = 4                // updates of the vault; two configuration servers stay below Temporal's ten
	askMachine     = 15 * time.Second // one query of a machine's entity
)

// Config of the activities.
type Config struct {
	Client client.Client
	// Agents lists what the agents of a machine said last, the one heard of last first;
	// none is no error.
	Agents func(ident.MachineID) ([]api.AgentReport, error)
}

// Control has the activities.
type Control struct {
	Config
	heartbeatEvery, agentPoll time.Duration
	now                       func() time.Time
	vaultTurns                *semaphore.Weighted
}

// New makes the activities.
func New(c Config) *Control {
	return &Control{Config: c, heartbeatEvery: heartbeatEvery, agentPoll: agentPoll, now: time.Now, vaultTurns: semaphore.NewWeighted(vaultAtOnce)}
}

// Activities gives the functions by their activity type.
func (c *Control) Activities() map[string]any {
	return map[string]any{
		api.ActLookupPlan:    c.LookupPlan,
		api.ActFindMachine:   c.FindMachine,
		api.ActVaultJoin:     c.VaultJoin,
		api.ActVaultLeave:    c.VaultLeave,
		api.ActVaultStatus:   c.VaultStatus,
		api.ActTargetOf:      c.TargetOf,
		api.ActDoneBefore:    c.DoneBefore,
		api.ActReturnOf:      c.ReturnOf,
		api.ActMachineAction: c.MachineAction,
		api.ActAwaitAgent:    c.AwaitAgent,
		api.ActListAgents:    c.ListAgents,
		api.ActResyncWork:    c.ResyncWork,
	}
}

// query asks a workflow; false when there is none of that id.
func query[Out any](ctx context.Context, c client.Client, workflow, name string) (out Out, ok bool, err error) {
	value, err := c.QueryWorkflow(ctx, workflow, "", name)
	var missing *serviceerror.NotFound
	if errors.As(err, &missing) {
		return out, false, nil
	}
	if err == nil {
		err = value.Get(&out)
	}
	return out, err == nil, err
}
