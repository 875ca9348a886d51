// Package servers has the workflow that lists the process servers and master
// targets, so that they can be asked for through Temporal like everything else.
package servers

import (
	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
	"drover/workflows/call"
)

// List gives the servers with their health, by role and name.
func List(ctx workflow.Context) ([]api.ServerStatus, error) { return call.ListServers(ctx) }
