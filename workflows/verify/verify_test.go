package verify

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/workflows/api"
	"drover/workflows/fault"
)

var input = api.VerifyInput{Machine: ident.NewMachineID("vc", "vm"), Name: "db-1", Epoch: 3, Server: "ps-1", Deep: true, Rate: 50 << 20, By: "anna"}

func environment(f func(context.Context, api.VerifyInput) (stream.SignedRecord, error)) *testsuite.TestWorkflowEnvironment {
	e := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	e.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: api.ActVerify})
	return e
}

func TestRecord(t *testing.T) {
	signed := stream.SignedRecord{Record: json.RawMessage(`{"name":"a\u0026b"}`), Chain: [][]byte{{1}}, Signature: []byte{2}}
	tries := 0
	e := environment(func(ctx context.Context, in api.VerifyInput) (stream.SignedRecord, error) {
		require.Equal(t, input, in)
		require.Equal(t, api.HostQueue("ps-1"), activity.GetInfo(ctx).TaskQueue)
		if tries++; tries < 3 {
			return stream.SignedRecord{}, fault.New(api.CodeServerLost, "stopping")
		}
		return signed, nil
	})
	e.RegisterDelayedCallback(func() {
		value, err := e.QueryWorkflow(api.QueryStatus)
		require.NoError(t, err)
		var got api.VerifyInput
		require.NoError(t, value.Get(&got))
		require.Equal(t, input, got)
	}, time.Millisecond)
	e.ExecuteWorkflow(Workflow, input)
	require.NoError(t, e.GetWorkflowError())
	var got stream.SignedRecord
	require.NoError(t, e.GetWorkflowResult(&got))
	require.Equal(t, signed, got, "byte for byte: it is signed")
}

func TestFinalAnswersAreNotTriedAgain(t *testing.T) {
	for _, code := range []string{api.CodeNotCompared, api.CodeFenced, api.CodeBusy, api.CodeNotInState} {
		tries := 0
		e := environment(func(context.Context, api.VerifyInput) (stream.SignedRecord, error) {
			tries++
			return stream.SignedRecord{}, fault.New(code, "no")
		})
		e.ExecuteWorkflow(Workflow, input)
		require.Equal(t, code, fault.Code(e.GetWorkflowError()))
		require.Equal(t, 1, tries)
	}
}

// TestCancel: cancelling the workflow cancels the activity; tests/e2e has the real one.
func TestCancel(t *testing.T) {
	release := make(chan struct{})
	e := environment(func(context.Context, api.VerifyInput) (stream.SignedRecord, error) {
		<-release
		return stream.SignedRecord{}, temporal.NewCanceledError()
	})
	e.SetOnActivityCanceledListener(func(*activity.Info) { close(release) })
	e.RegisterDelayedCallback(e.CancelWorkflow, time.Second)
	e.ExecuteWorkflow(Workflow, input)
	require.True(t, fault.Cancelled(e.GetWorkflowError()))
	<-release
}

func TestWrongInput(t *testing.T) {
	for _, change := range []func(*api.VerifyInput){
		func(in *api.VerifyInput) { in.Machine = ident.MachineID{} }, func(in *api.VerifyInput) { in.Server = "" },
		func(in *api.VerifyInput) { in.Epoch = 0 }, func(in *api.VerifyInput) { in.Rate = 1 }, func(in *api.VerifyInput) { in.Rate = -1 },
	} {
		in := input
		change(&in)
		e := environment(func(context.Context, api.VerifyInput) (stream.SignedRecord, error) { panic("not called") })
		e.ExecuteWorkflow(Workflow, in)
		require.Equal(t, api.CodeInvalid, fault.Code(e.GetWorkflowError()))
	}
}
