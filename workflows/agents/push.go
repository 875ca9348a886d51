package agents

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
)

// Push installs, upgrades or removes the agent in a guest.
func Push(ctx workflow.Context, in api.PushInput) (api.PushResult, error) {
	return call.Push(ctx, in)
}
