package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/common/v1"
	enums "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/workflows/api"
)

var verified = ident.NewMachineID("v", "1")

func verifyRecord(v stream.Verdict) stream.Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return stream.Record{Version: 1, Machine: verified, Name: "db-1", Point: 41, PointTime: at, Consistency: ident.CrashConsistent, Deep: true, Started: at, Finished: at.Add(90 * time.Second),
		Verdict: v, Disks: []stream.VerifiedDisk{{Name: "Hard disk 1", Size: 1 << 30, Digest: ident.Digest{0xab}, Differed: 8192, Mended: 4096, First: []int64{4096, 81920}}}}
}

// verifying is a vault with one machine in a state, whose comparison comes to a verdict.
func verifying(t *testing.T, state api.State, runs api.VerifyInput, v stream.Verdict) (*app, *mocks.Client, *bytes.Buffer) {
	t.Helper()
	c := &mocks.Client{}
	c.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(value{func(p any) {
		p.(*api.VaultStatus).Machines = []api.VaultMember{{Machine: verified, Name: "db-1"}}
	}}, nil)
	c.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(verified), "", api.QueryStatus).Return(value{func(p any) {
		*p.(*api.MachineStatus) = api.MachineStatus{Name: "db-1", State: state, Assignment: api.Assignment{Epoch: 3, Server: "ps-1"}}
	}}, nil)
	c.On("QueryWorkflow", mock.Anything, "verify-"+verified.String(), "", api.QueryStatus).Return(value{func(p any) { *p.(*api.VerifyInput) = runs }}, nil)
	c.On("DescribeWorkflowExecution", mock.Anything, mock.Anything, "").Return(nil, serviceerror.NewNotFound("x"))
	run := &mocks.WorkflowRun{}
	run.On("GetID").Return("verify-" + verified.String())
	run.On("Get", mock.Anything, mock.Anything).Run(func(args mock.Arguments) {
		text, err := json.Marshal(verifyRecord(v))
		require.NoError(t, err)
		*args.Get(1).(*stream.SignedRecord) = stream.SignedRecord{Record: text, Signature: []byte{1}}
	}).Return(nil)
	c.On("ExecuteWorkflow", mock.Anything, mock.MatchedBy(func(o client.StartWorkflowOptions) bool {
		return o.ID == "verify-"+verified.String() && o.TaskQueue == api.ControlQueue
	}), api.WorkflowVerify, mock.MatchedBy(func(in api.VerifyInput) bool {
		return in.Epoch == 3 && in.Server == "ps-1" && in.Deep && in.Rate == 50<<20 && in.Name == "db-1"
	})).Return(run, nil)
	var out bytes.Buffer
	return &app{client: c, out: &out, err: &out}, c, &out
}

func TestVerifyVerdicts(t *testing.T) {
	for v, code := range map[stream.Verdict]int{
		stream.VerdictEqual: exitOK, stream.VerdictMended: exitOK, stream.VerdictUnsettled: exitOK, stream.VerdictDifferent: exitDiffers, "later": exitDiffers,
	} {
		a, _, out := verifying(t, api.StateProtected, api.VerifyInput{Deep: true}, v)
		file := filepath.Join(t.TempDir(), "record.json")
		err := a.verify(t.Context(), "db-1", verifyFlags{deep: true, record: file}, 50<<20)
		if code == exitOK {
			require.NoError(t, err)
		} else {
			require.Equal(t, code, exitCode(err))
			require.ErrorContains(t, err, "drover resync db-1")
		}
		for _, want := range []string{"db-1: " + string(v) + ", as of recovery point 41", "by the stored bytes, in 1m30s", "8.0 KiB", "81920", "ab00"} {
			require.Contains(t, out.String(), want)
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var signed stream.SignedRecord
		require.NoError(t, json.Unmarshal(text, &signed))
		require.Equal(t, []byte{1}, signed.Signature)
		left, err := os.ReadDir(filepath.Dir(file))
		require.NoError(t, err)
		require.Len(t, left, 1)
	}
}

func TestVerifyRefusals(t *testing.T) {
	a, c, _ := verifying(t, api.StateResyncing, api.VerifyInput{Deep: true}, stream.VerdictEqual)
	err := a.verify(t.Context(), "db-1", verifyFlags{deep: true}, 50<<20)
	require.Equal(t, exitNotNow, exitCode(err))
	require.ErrorContains(t, err, "db-1 is Resyncing")
	c.AssertNotCalled(t, "ExecuteWorkflow", mock.Anything, mock.Anything, mock.Anything, mock.Anything)
	a, _, _ = verifying(t, api.StateProtectedReverse, api.VerifyInput{By: "anna"}, stream.VerdictEqual)
	err = a.verify(t.Context(), "db-1", verifyFlags{deep: true}, 50<<20)
	require.Equal(t, exitNotNow, exitCode(err))
	require.ErrorContains(t, err, "asked for by anna")
	a, _, _ = verifying(t, api.StateProtected, api.VerifyInput{Deep: true}, stream.VerdictEqual)
	err = a.verify(t.Context(), "db-1", verifyFlags{deep: true, record: "/nowhere/at/all"}, 50<<20)
	require.ErrorContains(t, err, "write the record")
	require.Equal(t, exitNotFound, exitCode(a.verify(t.Context(), "db-9", verifyFlags{}, 0)))
}

func TestVerifyCancel(t *testing.T) {
	a, c, out := verifying(t, api.StateProtected, api.VerifyInput{}, stream.VerdictEqual)
	require.Equal(t, exitNotFound, exitCode(a.cancelVerify(t.Context(), "db-1")), "there was never one")
	for status, code := range map[enums.WorkflowExecutionStatus]int{enums.WORKFLOW_EXECUTION_STATUS_RUNNING: exitOK, enums.WORKFLOW_EXECUTION_STATUS_COMPLETED: exitNotFound} {
		c.ExpectedCalls = slices.DeleteFunc(c.ExpectedCalls, func(call *mock.Call) bool { return call.Method == "DescribeWorkflowExecution" })
		c.On("DescribeWorkflowExecution", mock.Anything, "verify-"+verified.String(), "").Return(&workflowservice.DescribeWorkflowExecutionResponse{
			WorkflowExecutionInfo: &workflow.WorkflowExecutionInfo{Status: status, Execution: &common.WorkflowExecution{RunId: "r"}}}, nil)
		c.On("CancelWorkflow", mock.Anything, "verify-"+verified.String(), "r").Return(nil)
		err := a.cancelVerify(t.Context(), "db-1")
		if code != exitOK {
			require.Equal(t, code, exitCode(err))
			continue
		}
		require.NoError(t, err)
		require.Contains(t, out.String(), "the comparison of db-1 ends")
	}
	c.AssertNumberOfCalls(t, "CancelWorkflow", 1)
}

func TestStatusShowsComparisons(t *testing.T) {
	var out bytes.Buffer
	r := verifyRecord(stream.VerdictMended).Short()
	printDetails(&out, machineLine{Stream: &stream.Status{Verify: &stream.VerifyProgress{Done: 1 << 20, Total: 1 << 30, Waits: "the agent"}, Verified: &r}})
	require.Regexp(t, `is compared with its replica since .*: 1.0 MiB of 1.0 GiB, waits for the agent\n`, out.String())
	require.Regexp(t, `compared with its replica at .*, deep: mended, as of recovery point 41 of .*; 8.0 KiB differed\n`, out.String())
}
