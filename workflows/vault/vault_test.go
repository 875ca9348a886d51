package vault

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// reply notes what became of an update.
type reply struct {
	accepted bool
	result   api.ApplyResult
	err      error
}

func (r *reply) Accept()          { r.accepted = true }
func (r *reply) Reject(err error) { r.err = err }
func (r *reply) Complete(v any, err error) {
	r.err = err
	if a, ok := v.(api.ApplyResult); ok {
		r.result = a
	}
}

func gold() api.Policy {
	return api.Policy{Name: "gold", CutInterval: api.Duration(30 * time.Second), Retention: replica.DefaultRetention()}
}

func shop() api.Plan {
	return api.Plan{Name: "shop", Groups: []api.PlanGroup{{Name: "db", Machines: []api.PlanMachine{{Name: "db-1"}}}}}
}

// call is an update to send.
type call struct {
	name string
	arg  any
}

func play(t *testing.T, carry *api.VaultStatus, calls ...call) ([]*reply, api.VaultStatus) {
	t.Helper()
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	replies := make([]*reply, len(calls))
	for i, c := range calls {
		replies[i] = &reply{}
		env.RegisterDelayedCallback(func() { env.UpdateWorkflow(c.name, "", replies[i], c.arg) }, time.Duration(i+1)*time.Second)
	}
	var status api.VaultStatus
	env.RegisterDelayedCallback(func() {
		v, err := env.QueryWorkflow(api.QueryStatus)
		require.NoError(t, err)
		require.NoError(t, v.Get(&status))
		env.SetContinueAsNewSuggested(true)
		env.UpdateWorkflow(api.VaultLeave, "", &reply{}, ident.NewMachineID("none", "none"))
	}, time.Duration(len(calls)+1)*time.Second)
	env.ExecuteWorkflow(Workflow, api.VaultInput{Carry: carry})
	require.True(t, env.IsWorkflowCompleted())
	var again *workflow.ContinueAsNewError
	require.ErrorAs(t, env.GetWorkflowError(), &again)
	return replies, status
}

func TestPoliciesAndPlans(t *testing.T) {
	changed := gold()
	changed.CutInterval *= 2
	bad := gold()
	bad.CutInterval = 1
	empty := shop()
	empty.Groups[0].Machines = nil
	m := api.VaultMember{Machine: ident.NewMachineID("v", "1"), Name: "db-1", Policy: "gold"}
	r, status := play(t, nil,
		call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: gold(), By: "anna"}},
		call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: gold()}},
		call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: changed}},
		call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: bad}},
		call{api.VaultApplyPlan, api.ApplyPlan{Plan: shop()}},
		call{api.VaultApplyPlan, api.ApplyPlan{Plan: empty}},
		call{api.VaultJoin, m},
		call{api.VaultJoin, m},
		call{api.VaultDeletePolicy, "gold"},
		call{api.VaultLeave, m.Machine},
		call{api.VaultLeave, m.Machine},
		call{api.VaultDeletePolicy, "gold"},
		call{api.VaultDeletePlan, "nothing"},
	)
	require.True(t, r[0].result.Changed)
	require.False(t, r[1].result.Changed)
	require.Equal(t, r[0].result.Hash, r[1].result.Hash)
	require.True(t, r[2].result.Changed)
	require.NotEqual(t, r[0].result.Hash, r[2].result.Hash)
	require.False(t, r[3].accepted, "refused before it enters the history")
	require.Equal(t, api.CodeInvalid, fault.Code(r[3].err))
	require.True(t, r[4].result.Changed)
	require.Equal(t, api.CodeInvalid, fault.Code(r[5].err))
	require.True(t, r[6].result.Changed)
	require.False(t, r[7].result.Changed)
	require.Equal(t, api.CodeNotInState, fault.Code(r[8].err), "a policy in use stays")
	require.True(t, r[9].result.Changed)
	require.False(t, r[10].result.Changed)
	require.NoError(t, r[11].err)
	require.Equal(t, api.CodeNotFound, fault.Code(r[12].err))
	require.Empty(t, status.Policies)
	require.Len(t, status.Plans, 1)
	require.Empty(t, status.Machines)
}

func TestStateIsCarried(t *testing.T) {
	m := api.VaultMember{Machine: ident.NewMachineID("v", "1"), Name: "db-1", Policy: "gold"}
	_, status := play(t, &api.VaultStatus{Machines: []api.VaultMember{m}})
	require.Equal(t, []api.VaultMember{m}, status.Machines)
}

// TestFailbackPolicyIsMade with the policy: like it, or as it was given.
func TestFailbackPolicyIsMade(t *testing.T) {
	own := gold()
	own.Name, own.Failback = "silver", &api.Policy{Name: "slow", CutInterval: api.Duration(5 * time.Minute)}
	r, s := play(t, nil, call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: gold()}}, call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: gold()}},
		call{api.VaultApplyPolicy, api.ApplyPolicy{Policy: own}})
	require.Equal(t, "unchanged", r[1].result.Message)
	back := s.Policies[0].Policy.Failback
	require.Equal(t, "gold-failback", back.Name)
	require.Equal(t, gold().CutInterval, back.CutInterval)
	require.Equal(t, gold().Retention, back.Retention)
	require.Equal(t, "slow", s.Policies[1].Policy.Failback.Name)
}
