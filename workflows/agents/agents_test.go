package agents

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/workflows/api"
)

func TestList(t *testing.T) {
	in := api.ListAgentsInput{Machines: []ident.MachineID{ident.NewMachineID("v", "1"), ident.NewMachineID("v", "2")}}
	want := api.ListAgentsResult{Looked: 2, Reports: []api.AgentReport{{Machine: in.Machines[1], Version: "1.2", Tracker: "ebpf"}}}
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	env.RegisterActivityWithOptions(func(_ context.Context, got api.ListAgentsInput) (api.ListAgentsResult, error) {
		require.Equal(t, in, got)
		return want, nil
	}, activity.RegisterOptions{Name: api.ActListAgents})
	env.ExecuteWorkflow(List, in)
	require.NoError(t, env.GetWorkflowError())
	var got api.ListAgentsResult
	require.NoError(t, env.GetWorkflowResult(&got))
	require.Equal(t, want, got)
}
