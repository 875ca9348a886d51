package servers

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/workflows/api"
)

func TestList(t *testing.T) {
	want := []api.ServerStatus{{Name: "ps-1", Role: ident.RoleProcessServer, LastSeen: time.Unix(5, 0).UTC(), Assigned: 2,
		Health: health.Evaluate(health.Sample{CPU: 90, Memory: -1, DiskFree: -1})}}
	require.Equal(t, health.Warning, want[0].Health.Status)
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	env.RegisterActivityWithOptions(func(context.Context) ([]api.ServerStatus, error) { return want, nil }, activity.RegisterOptions{Name: api.ActListServers})
	env.ExecuteWorkflow(List)
	require.NoError(t, env.GetWorkflowError())
	var got []api.ServerStatus
	require.NoError(t, env.GetWorkflowResult(&got))
	require.Equal(t, want, got)
}
