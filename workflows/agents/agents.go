// Package agents has the workflow that lists what machines' agents say of their guests,
// protected or not, so that it can be asked for through Temporal like everything else, and
// the one that installs agents.
package agents

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
)

// List gives the newest report of each machine that has an agent.
func List(ctx workflow.Context, in api.ListAgentsInput) (api.ListAgentsResult, error) {
	return call.ListAgents(ctx, in)
}
