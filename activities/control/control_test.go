package control

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/workflows/api"
)

var machine = ident.NewMachineID("vc", "vm-1")

func env(t *testing.T, c *Control) *testsuite.TestActivityEnvironment {
	t.Helper()
	c.heartbeatEvery, c.agentPoll = time.Millisecond, time.Millisecond
	var suite testsuite.WorkflowTestSuite
	e := suite.NewTestActivityEnvironment()
	for name, f := range c.Activities() {
		e.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	return e
}

func run[Out any](t *testing.T, e *testsuite.TestActivityEnvironment, name string, in ...any) (out Out, err error) {
	t.Helper()
	value, err := e.ExecuteActivity(name, in...)
	if err == nil && value != nil && value.HasValue() {
		require.NoError(t, value.Get(&out))
	}
	return out, err
}

func application(t *testing.T, err error) *temporal.ApplicationError {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	return app
}

// answered is a query's value.
type answered struct{ vault api.VaultStatus }

func (answered) HasValue() bool { return true }
func (a answered) Get(into any) error {
	*into.(*api.VaultStatus) = a.vault
	return nil
}

func withVault(vault api.VaultStatus) *Control {
	m := &mocks.Client{}
	m.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(answered{vault}, nil)
	return New(Config{Client: m})
}

func TestFindMachine(t *testing.T) {
	other, third := ident.NewMachineID("vc", "vm-2"), ident.NewMachineID("vc", "vm-3")
	e := env(t, withVault(api.VaultStatus{Machines: []api.VaultMember{
		{Machine: machine, Name: "app-1", Policy: "gold"}, {Machine: other, Name: "db"}, {Machine: third, Name: "db"},
	}, Policies: []api.StoredPolicy{{Policy: api.Policy{Name: "gold", RPOThreshold: api.Duration(time.Minute)}}}}))
	got, err := run[api.VaultMember](t, e, api.ActFindMachine, "app-1")
	require.NoError(t, err)
	require.Equal(t, api.VaultMember{Machine: machine, Name: "app-1", Policy: "gold", RPOThreshold: api.Duration(time.Minute)}, got)
	got, err = run[api.VaultMember](t, e, api.ActFindMachine, third.String())
	require.NoError(t, err)
	require.Equal(t, third, got.Machine)
	_, err = run[api.VaultMember](t, e, api.ActFindMachine, "db")
	require.Equal(t, api.CodeInvalid, application(t, err).Type())
	require.ErrorContains(t, err, other.String())
	_, err = run[api.VaultMember](t, e, api.ActFindMachine, "web")
	require.Equal(t, api.CodeNotFound, application(t, err).Type())
	require.True(t, application(t, err).NonRetryable())
}

func TestLookupPlan(t *testing.T) {
	e := env(t, withVault(api.VaultStatus{Plans: []api.StoredPlan{{Plan: api.Plan{Name: "shop"}}}}))
	got, err := run[api.Plan](t, e, api.ActLookupPlan, "shop")
	require.NoError(t, err)
	require.Equal(t, "shop", got.Name)
	_, err = run[api.Plan](t, e, api.ActLookupPlan, "nope")
	require.Equal(t, api.CodeNotFound, application(t, err).Type())
}

func TestVaultNotStarted(t *testing.T) {
	m := &mocks.Client{}
	m.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(nil, serviceerror.NewNotFound("no vault"))
	got, err := run[api.VaultStatus](t, env(t, New(Config{Client: m})), api.ActVaultStatus)
	require.NoError(t, err)
	require.Empty(t, got.Machines)
}

// handle answers an update: result, or error, or neither until its context ends.
type handle struct {
	client.WorkflowUpdateHandle
	result *api.ActionResult
	err    error
}

func (h handle) Get(ctx context.Context, into any) error {
	if h.err == nil && h.result == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if h.err == nil && into != nil {
		*into.(*api.ActionResult) = *h.result
	}
	return h.err
}

func TestVaultJoinStartsTheVault(t *testing.T) {
	m := &mocks.Client{}
	m.On("UpdateWorkflow", mock.Anything, mock.Anything).Return(nil, serviceerror.NewNotFound("no vault"))
	m.On("NewWithStartWorkflowOperation", mock.MatchedBy(func(o client.StartWorkflowOptions) bool {
		return o.ID == api.VaultID && o.TaskQueue == api.ControlQueue
	}), api.WorkflowVault, api.VaultInput{}).Return(nil)
	member := api.VaultMember{Machine: machine, Name: "app-1"}
	var ids []string
	m.On("UpdateWithStartWorkflow", mock.Anything, mock.MatchedBy(func(o client.UpdateWithStartWorkflowOptions) bool {
		ids = append(ids, o.UpdateOptions.UpdateID)
		return o.UpdateOptions.UpdateName == api.VaultJoin && o.UpdateOptions.Args[0] == any(member)
	})).Return(handle{result: &api.ActionResult{}}, nil).Once()
	e := env(t, New(Config{Client: m}))
	_, err := run[any](t, e, api.ActVaultJoin, member)
	require.NoError(t, err)
	require.NotEmpty(t, ids[0])

	m.On("UpdateWithStartWorkflow", mock.Anything, mock.Anything).Return(nil, temporal.NewApplicationError("no", api.CodeInvalid))
	_, err = run[any](t, e, api.ActVaultLeave, machine)
	require.Equal(t, api.CodeInvalid, application(t, err).Type())
}

func action() api.MachineActionInput {
	return api.MachineActionInput{Machine: machine, Action: api.ActionResync, Request: api.ActionRequest{RequestID: "r-1"}}
}

func updating(h client.WorkflowUpdateHandle, err error) (*mocks.Client, *Control) {
	m := &mocks.Client{}
	m.On("UpdateWorkflow", mock.Anything, mock.MatchedBy(func(o client.UpdateWorkflowOptions) bool {
		return o.UpdateID == "r-1" && o.WorkflowID == api.MachineWorkflowID(machine) && o.UpdateName == api.ActionResync &&
			o.Args[0].(api.ActionRequest).RequestID == "r-1"
	})).Return(h, err)
	return m, New(Config{Client: m})
}

func TestMachineAction(t *testing.T) {
	m, c := updating(handle{result: &api.ActionResult{Name: "app-1", State: api.StateProtected}}, nil)
	got, err := run[api.ActionResult](t, env(t, c), api.ActMachineAction, action())
	require.NoError(t, err)
	require.Equal(t, api.StateProtected, got.State)
	m.AssertNumberOfCalls(t, "UpdateWorkflow", 1)

	in := action()
	in.Request.RequestID = ""
	_, err = run[api.ActionResult](t, env(t, c), api.ActMachineAction, in)
	require.Equal(t, api.CodeInvalid, application(t, err).Type())
}

func TestMachineActionErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		update, get error
		want        string
		final       bool
	}{
		"refused by the validator": {update: temporal.NewNonRetryableApplicationError("busy", api.CodeBusy, nil), want: api.CodeBusy, final: true},
		"failed":                   {get: temporal.NewNonRetryableApplicationError("t", api.CodeNoPoint, nil), want: api.CodeNoPoint, final: true},
		"failed, worth a retry":    {get: temporal.NewApplicationError("t", api.CodeTarget), want: api.CodeTarget},
		"unknown failure":          {get: temporal.NewApplicationError("panic", "PanicError"), want: api.CodeInternal},
		"not protected":            {update: serviceerror.NewNotFound("no such workflow"), want: api.CodeNotFound, final: true},
		"continued as new":         {get: temporal.NewNonRetryableApplicationError("", lostUpdate, nil), want: reattach},
		"Temporal away":            {update: serviceerror.NewUnavailable("away"), want: reattach},
	} {
		t.Run(name, func(t *testing.T) {
			var h client.WorkflowUpdateHandle = handle{err: tc.get}
			if tc.update != nil {
				h = nil
			}
			_, c := updating(h, tc.update)
			_, err := run[api.ActionResult](t, env(t, c), api.ActMachineAction, action())
			app := application(t, err)
			require.Equal(t, tc.want, app.Type())
			require.Equal(t, tc.final, app.NonRetryable())
		})
	}
}

func TestMachineActionIsTakenUpAgainAfterAStop(t *testing.T) {
	_, c := updating(handle{}, nil)
	e := env(t, c)
	stop := make(chan struct{})
	close(stop)
	e.SetWorkerStopChannel(stop)
	_, err := run[api.ActionResult](t, e, api.ActMachineAction, action())
	require.Equal(t, reattach, application(t, err).Type())
	require.NotContains(t, api.Codes(), reattach, "the codes are final answers")
}

func TestAwaitAgent(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var calls atomic.Int64
	c := New(Config{Agents: func(ident.MachineID) ([]api.AgentReport, error) {
		agents := []api.AgentReport{{Instance: "other", LastSeen: since.Add(time.Hour)}, {Instance: "i-1", LastSeen: since.Add(-time.Second), Disks: []api.AgentDisk{{Path: "sda"}}}}
		if calls.Add(1) > 3 {
			agents[1].LastSeen = since.Add(time.Second)
		}
		return agents, nil
	}})
	got, err := run[api.AgentInfo](t, env(t, c), api.ActAwaitAgent, api.AwaitAgentInput{Machine: machine, Instance: "I-1", Since: since})
	require.NoError(t, err)
	require.Equal(t, "i-1", got.Instance)
	require.Equal(t, "sda", got.Report.Disks[0].Path)
	require.GreaterOrEqual(t, calls.Load(), int64(4))

	got, err = run[api.AgentInfo](t, env(t, c), api.ActAwaitAgent, api.AwaitAgentInput{Machine: machine})
	require.NoError(t, err)
	require.Equal(t, "other", got.Instance, "the one heard of last")

	c = New(Config{Agents: func(ident.MachineID) ([]api.AgentReport, error) { return nil, errors.New("disk") }})
	_, err = run[api.AgentInfo](t, env(t, c), api.ActAwaitAgent, api.AwaitAgentInput{Machine: machine})
	require.Equal(t, api.CodeInternal, application(t, err).Type())
}

// TestAgentReachesTheServer: it is waited for until it says so; one that does not, for two
// minutes, is told with what it saw; one that is too old to say anything is not waited for.
func TestAgentReachesTheServer(t *testing.T) {
	way := api.Assignment{Server: "mt-1", Address: "mt-1:9443", Via: "relay:9443"}
	to := func(failure string) *api.AgentReached {
		return &api.AgentReached{Address: way.Address, Via: way.Via, Error: failure}
	}
	for name, tc := range map[string]struct {
		says func(after time.Duration) *api.AgentReached
		want string
		code string
		at   time.Duration
	}{
		"at once": {says: func(time.Duration) *api.AgentReached { return to("") }},
		"after a while": {at: time.Minute, says: func(after time.Duration) *api.AgentReached {
			if after < time.Minute {
				return to("no route to host")
			}
			return to("")
		}},
		"never": {at: reachLimit, code: api.CodeNoPath, want: "does not reach mt-1 at mt-1:9443 by way of relay:9443: no route to host",
			says: func(time.Duration) *api.AgentReached { return to("no route to host") }},
		"another server was asked for before": {at: 40 * time.Second, says: func(after time.Duration) *api.AgentReached {
			if after < 40*time.Second {
				return &api.AgentReached{Address: "mt-0:9443"}
			}
			return to("")
		}},
		"too old": {at: reachAgent, says: func(time.Duration) *api.AgentReached { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			now := began
			c := New(Config{Agents: func(ident.MachineID) ([]api.AgentReport, error) {
				now = now.Add(10 * time.Second)
				seen := now
				if tc.want == "" && tc.code == "" && name != "too old" {
					seen = began.Add(time.Second) // it has not called again: what it does not say counts for nothing
				}
				return []api.AgentReport{{Instance: "i-1", LastSeen: seen, Reached: tc.says(now.Sub(began))}}, nil
			}})
			c.now = func() time.Time { return now }
			got, err := run[api.AgentInfo](t, env(t, c), api.ActAwaitAgent, api.AwaitAgentInput{Machine: machine, Since: began, Reach: &way})
			require.GreaterOrEqual(t, now.Sub(began), tc.at)
			require.LessOrEqual(t, now.Sub(began), tc.at+20*time.Second)
			if tc.code != "" {
				app := application(t, err)
				require.Equal(t, tc.code, app.Type())
				require.ErrorContains(t, app, tc.want)
				require.True(t, app.NonRetryable())
				return
			}
			require.NoError(t, err)
			require.Equal(t, name != "too old", got.Report.Reached != nil)
		})
	}
}

// TestListAgents: every machine is looked at, in answers that are not too large.
func TestListAgents(t *testing.T) {
	long := strings.Repeat("x", maxReports/3)
	machines := make([]ident.MachineID, 9)
	for i := range machines {
		machines[i] = ident.NewMachineID("v", strconv.Itoa(i))
	}
	c := New(Config{Agents: func(m ident.MachineID) ([]api.AgentReport, error) {
		if m == machines[4] {
			return nil, nil // it has none
		}
		seen := time.Unix(9, 0)
		return []api.AgentReport{{Machine: m, Instance: "new", LastSeen: seen, Tracker: long}, {Machine: m, Instance: "old", LastSeen: seen.Add(-time.Hour)}}, nil
	}})
	var found []ident.MachineID
	for left := machines; len(left) > 0; {
		got, err := run[api.ListAgentsResult](t, env(t, c), api.ActListAgents, api.ListAgentsInput{Machines: left})
		require.NoError(t, err)
		require.Positive(t, got.Looked)
		require.LessOrEqual(t, len(got.Reports), 2)
		for _, r := range got.Reports {
			require.Equal(t, "new", r.Instance)
			found = append(found, r.Machine)
		}
		left = left[got.Looked:]
	}
	require.Equal(t, slices.Delete(slices.Clone(machines), 4, 5), found)

	_, err := run[api.ListAgentsResult](t, env(t, c), api.ActListAgents, api.ListAgentsInput{Machines: make([]ident.MachineID, api.MaxAgentsAsked+1)})
	require.Equal(t, api.CodeInvalid, application(t, err).Type())
}
