package control

import (
	"testing"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/mocks"

	"drover/datapath/ident"
	"drover/workflows/api"
)

func TestTargetOfAndDoneBefore(t *testing.T) {
	machine, gone := ident.NewMachineID("v", "db-1"), ident.NewMachineID("v", "gone")
	m := &mocks.Client{}
	s := api.MachineStatus{Name: "db-1", VM: api.VM{Name: "db-1", CPUs: 4}, State: api.StateFailedOver,
		TargetSpec: api.Target{Network: "prod", TestNetwork: "sandbox", Size: "big"}, Target: &api.TargetMachine{Name: "db-1"}}
	m.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(machine), "", api.QueryStatus).Return(status{s}, nil)
	m.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(gone), "", api.QueryStatus).Return(nil, serviceerror.NewNotFound("gone"))
	e := env(t, New(Config{Client: m}))
	got, err := run[api.CheckNetworkInput](t, e, api.ActTargetOf, api.PrecheckInput{Machine: machine, Kind: api.PlanPlanned})
	require.NoError(t, err)
	require.Equal(t, "prod", got.Network)
	require.False(t, got.Isolated)
	require.Equal(t, "big", got.For.Target.Size)
	got, err = run[api.CheckNetworkInput](t, e, api.ActTargetOf, api.PrecheckInput{Machine: machine, Kind: api.PlanTest, Network: "other"})
	require.NoError(t, err)
	require.Equal(t, "other", got.Network)
	require.True(t, got.Isolated)
	require.Equal(t, "db-1-test", got.For.Name)
	_, err = run[api.CheckNetworkInput](t, e, api.ActTargetOf, api.PrecheckInput{Machine: gone, Kind: api.PlanTest})
	require.ErrorContains(t, err, "not under protection")

	at := &api.Location{Datastore: "ssd"}
	way, err := run[api.MakeVMInput](t, e, api.ActReturnOf, api.PrecheckInput{Machine: machine, Kind: api.PlanReprotect, Location: at})
	require.NoError(t, err)
	require.Equal(t, s.VM.CPUs, way.VM.CPUs)
	require.True(t, at.Equal(way.At))
	_, err = run[api.MakeVMInput](t, e, api.ActReturnOf, api.PrecheckInput{Machine: gone, Kind: api.PlanReprotect})
	require.ErrorContains(t, err, "not under protection")

	for action, want := range map[string]bool{api.ActionFailover: true, api.ActionCleanup: true, api.ActionCommit: false, api.ActionTestFailover: false, api.ActionReenable: false} {
		done, err := run[api.DoneBefore](t, e, api.ActDoneBefore, api.MachineActionInput{Machine: machine, Action: action})
		require.NoError(t, err)
		require.Equal(t, want, done.Done, action)
	}
}
