package discovery

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

type refreshed struct {
	t    *testing.T
	then func(api.DiscoveryStatus)
}

func (r *refreshed) Accept()          {}
func (r *refreshed) Reject(err error) { r.t.Errorf("refresh was refused: %v", err) }
func (r *refreshed) Complete(v any, err error) {
	require.NoError(r.t, err)
	r.then(v.(api.DiscoveryStatus))
}

// TestPassesAndChanges is of runs that began before vCenters were watched.
func TestPassesAndChanges(t *testing.T) {
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	env.OnGetVersion(changeWatch, workflow.DefaultVersion, workflow.Version(1)).Return(workflow.DefaultVersion)
	env.SetTestTimeout(30 * time.Second)
	one := api.VM{Machine: ident.NewMachineID("v", "1"), InstanceUUID: "1", Name: "db-1", PoweredOn: true}
	two := api.VM{Machine: ident.NewMachineID("v", "2"), InstanceUUID: "2", Name: "other"}
	passes := 0
	inventory := func(api.VCenter) (api.InventoryResult, error) {
		passes++
		switch passes {
		case 1:
			return api.InventoryResult{UUID: "v", VMs: []api.VM{one, two}}, nil
		case 2:
			return api.InventoryResult{}, errors.New("vCenter is away")
		}
		off, moved := one, two
		off.PoweredOn, moved.Name = false, "renamed"
		return api.InventoryResult{UUID: "v", VMs: []api.VM{off, moved}}, nil
	}
	env.RegisterActivityWithOptions(inventory, activityNamed(api.ActInventory))
	env.RegisterActivityWithOptions(func() (api.VaultStatus, error) {
		return api.VaultStatus{Machines: []api.VaultMember{{Machine: one.Machine, Name: "db-1"}}}, nil
	}, activityNamed(api.ActVaultStatus))
	var told []api.VM
	env.OnSignalExternalWorkflow(mock.Anything, api.MachineWorkflowID(one.Machine), "", api.SignalInventory, mock.Anything).
		Return(func(_, _, _, _ string, arg any) error { told = append(told, arg.(api.VM)); return nil })

	var answers []api.DiscoveryStatus
	ask := func() {
		env.UpdateWorkflow(api.DiscoveryRefresh, "", &refreshed{t, func(s api.DiscoveryStatus) { answers = append(answers, s) }})
	}
	env.RegisterDelayedCallback(ask, time.Minute)
	env.RegisterDelayedCallback(ask, 2*time.Minute)
	env.RegisterDelayedCallback(env.CancelWorkflow, 3*time.Minute)
	env.ExecuteWorkflow(Workflow, api.DiscoveryInput{VCenter: api.VCenter{Name: "vc-1", URL: "https://x/sdk"}})
	require.True(t, env.IsWorkflowCompleted())
	require.Len(t, answers, 2)
	require.Contains(t, answers[0].Error, "vCenter is away")
	require.Len(t, answers[0].VMs, 2, "what is known stays")
	require.Empty(t, answers[1].Error)
	require.Equal(t, 3, answers[1].Passes)
	require.Len(t, told, 1, "only the protected machine is told, once")
	require.False(t, told[0].PoweredOn)
}

func TestRefusesNothing(t *testing.T) {
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	env.ExecuteWorkflow(Workflow, api.DiscoveryInput{})
	require.Error(t, env.GetWorkflowError())
}
