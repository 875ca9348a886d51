package control

import (
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/mocks"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// status answers a query with a machine's status.
type status struct{ api.MachineStatus }

func (status) HasValue() bool { return true }
func (s status) Get(into any) error {
	*into.(*api.MachineStatus) = s.MachineStatus
	return nil
}

func page(ids ...string) *workflowservice.ListWorkflowExecutionsResponse {
	var out workflowservice.ListWorkflowExecutionsResponse
	for _, id := range ids {
		out.Executions = append(out.Executions, &workflowpb.WorkflowExecutionInfo{Execution: &commonpb.WorkflowExecution{WorkflowId: id}})
	}
	return &out
}

// TestResyncWork: visibility is a moment late, so every machine it names is asked.
func TestResyncWork(t *testing.T) {
	window := api.Window{TimeZone: "Europe/Berlin", Start: "22:00", End: "06:00"}
	m := &mocks.Client{}
	m.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(answered{api.VaultStatus{Policies: []api.StoredPolicy{
		{Policy: api.Policy{Name: "gold", Resync: api.ResyncPolicy{Automatic: true, Window: window, AtOnce: 3}}},
		{Policy: api.Policy{Name: "hand"}},
	}}}, nil)
	ids := map[string]ident.MachineID{}
	for name, s := range map[string]api.MachineStatus{
		"marked": {Policy: "gold", State: api.StateResyncRequired, Assignment: api.Assignment{Server: "ps-1"}},
		"held":   {Policy: "gold", State: api.StateResyncRequired, ResyncHeld: true},
		"moved":  {Policy: "silver", State: api.StateResyncRequired},
		"mended": {Policy: "gold", State: api.StateProtected},
		"mine":   {Policy: "gold", State: api.StateResyncing, Assignment: api.Assignment{Server: "ps-1"}},
		"other":  {Policy: "silver", State: api.StateResyncing, Assignment: api.Assignment{Server: "ps-2"}},
	} {
		ids[name] = ident.NewMachineID("v", name)
		s.Machine, s.Name = ids[name], name
		m.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(ids[name]), "", api.QueryStatus).Return(status{s}, nil)
	}
	gone := ident.NewMachineID("v", "gone")
	m.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(gone), "", api.QueryStatus).Return(nil, serviceerror.NewNotFound("gone"))
	m.On("ListWorkflow", mock.Anything, mock.MatchedBy(func(r *workflowservice.ListWorkflowExecutionsRequest) bool {
		return r.GetQuery() == "WorkflowType = 'ProtectedMachine' AND ExecutionStatus = 'Running' AND DroverPolicy = 'gold' AND DroverState = 'ResyncRequired'"
	})).Return(page(api.MachineWorkflowID(ids["marked"]), api.MachineWorkflowID(ids["held"]), api.MachineWorkflowID(ids["moved"]),
		api.MachineWorkflowID(ids["mended"]), api.MachineWorkflowID(gone), "vault"), nil)
	m.On("ListWorkflow", mock.Anything, mock.Anything).Return(page(api.MachineWorkflowID(ids["mine"])+"-resync-4", api.MachineWorkflowID(ids["other"])+"-resync-17"), nil)

	c := New(Config{Client: m})
	c.now = func() time.Time { return time.Date(2026, 3, 28, 23, 0, 0, 0, time.UTC) }
	e := env(t, c)
	got, err := run[api.ResyncWork](t, e, api.ActResyncWork, api.ResyncWorkInput{Policy: "gold", Mine: []ident.MachineID{ids["mine"]}})
	require.NoError(t, err)
	require.Equal(t, api.ResyncWork{
		Open: true, AtOnce: 3, Ends: time.Date(2026, 3, 29, 4, 0, 0, 0, time.UTC), Others: []string{"ps-2"},
		Marked: []api.ResyncCandidate{{Member: api.VaultMember{Machine: ids["marked"], Name: "marked", Policy: "gold"}, Server: "ps-1"}},
	}, got)

	c.now = func() time.Time { return time.Date(2026, 3, 29, 12, 0, 0, 0, time.UTC) }
	got, err = run[api.ResyncWork](t, e, api.ActResyncWork, api.ResyncWorkInput{Policy: "gold"})
	require.NoError(t, err)
	require.False(t, got.Open)
	require.Equal(t, "outside the window", got.Reason)
	got, err = run[api.ResyncWork](t, e, api.ActResyncWork, api.ResyncWorkInput{Policy: "gold", Now: true})
	require.NoError(t, err)
	require.True(t, got.Open, "by hand at any time")
	require.True(t, got.Ends.IsZero())
	require.Len(t, got.Marked, 1)
	got, err = run[api.ResyncWork](t, e, api.ActResyncWork, api.ResyncWorkInput{Policy: "hand"})
	require.NoError(t, err)
	require.False(t, got.Open)
	_, err = run[api.ResyncWork](t, e, api.ActResyncWork, api.ResyncWorkInput{Policy: "nope"})
	require.Equal(t, api.CodeNotFound, application(t, err).Type())
}
