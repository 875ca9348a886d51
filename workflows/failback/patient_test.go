package failback

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// way runs a reprotect under a parent that keeps what it is told. Each activity is
// answered by the test.
type way struct {
	*testsuite.TestWorkflowEnvironment
	called []string
	notes  []string
}

func newWay(answer func(name string) error) *way {
	w := &way{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()}
	w.SetTestTimeout(30 * time.Second)
	for _, name := range []string{api.ActShutdownVM, api.ActChooseServer, api.ActAttachDisks, api.ActDetachDisks, api.ActAwaitAgent,
		api.ActGrant, api.ActRevoke, api.ActAssign, api.ActUnassign, api.ActBase} {
		w.RegisterActivityWithOptions(func(context.Context, any) (api.Assignment, error) {
			w.called = append(w.called, name)
			return api.Assignment{Server: "mt-1"}, answer(name)
		}, activity.RegisterOptions{Name: name})
	}
	w.RegisterWorkflowWithOptions(Reprotect, workflow.RegisterOptions{Name: api.WorkflowReprotect})
	w.RegisterWorkflowWithOptions(func(ctx workflow.Context, p ReprotectParams) error {
		steps := workflow.GetSignalChannel(ctx, api.SignalStep)
		workflow.Go(ctx, func(ctx workflow.Context) {
			for {
				var s api.StepProgress
				steps.Receive(ctx, &s)
				w.notes = append(w.notes, s.Step)
			}
		})
		return workflow.ExecuteChildWorkflow(ctx, api.WorkflowReprotect, p).Get(ctx, nil)
	}, workflow.RegisterOptions{Name: "parent"})
	return w
}

func (w *way) run() {
	m := ident.NewMachineID("v", "db-1")
	w.ExecuteWorkflow("parent", ReprotectParams{
		VM:     api.VM{Machine: m, Name: "db-1", VCenter: "vc-1", InstanceUUID: "i-1"},
		Disks:  []api.VMDisk{{ID: ident.NewDiskID(m, "d"), BackingUUID: "d", Size: 1 << 20}},
		Target: api.TargetMachine{Name: "db-1", Instance: "cloud-1"}, NewEpoch: 3,
	})
}

// TestVCenterAwayOnTheWayBack: it waits, with the reason in sight, and goes on; nothing is
// put back.
func TestVCenterAwayOnTheWayBack(t *testing.T) {
	var w *way
	var back time.Time
	w = newWay(func(name string) error {
		if name == api.ActAttachDisks && w.Now().Before(back) {
			return temporal.NewApplicationError("connect to vCenter vc-1: connection refused", api.CodeVCenterAway)
		}
		return nil
	})
	back = w.Now().Add(time.Hour)
	w.run()
	require.NoError(t, w.GetWorkflowError())
	require.False(t, w.Now().Before(back))
	text := strings.Join(w.notes, "\n")
	require.Contains(t, text, "waiting for vCenter since")
	require.Contains(t, text, "connection refused")
	require.Contains(t, text, "vCenter answers again")
	require.NotContains(t, w.called, api.ActDetachDisks)
	require.Equal(t, api.ActBase, w.called[len(w.called)-1])
}

// TestVCenterAwayWhilePuttingBack: what was attached is detached when it is back.
func TestVCenterAwayWhilePuttingBack(t *testing.T) {
	var w *way
	var back time.Time
	w = newWay(func(name string) error {
		switch {
		case name == api.ActGrant:
			return temporal.NewApplicationError("the disks are not there", api.CodeInvalid)
		case name == api.ActDetachDisks && w.Now().Before(back):
			return temporal.NewApplicationError("connect to vCenter vc-1: connection refused", api.CodeVCenterAway)
		}
		return nil
	})
	back = w.Now().Add(time.Hour)
	w.run()
	require.ErrorContains(t, w.GetWorkflowError(), "the disks are not there")
	require.NotContains(t, w.GetWorkflowError().Error(), "could not put back")
	require.Equal(t, []string{api.ActDetachDisks, api.ActUnassign}, w.called[len(w.called)-2:])
	require.False(t, w.Now().Before(back))
}

// TestVCenterRefusesOnTheWayBack: what is not away is not waited for.
func TestVCenterRefusesOnTheWayBack(t *testing.T) {
	w := newWay(func(name string) error {
		if name == api.ActAttachDisks {
			return temporal.NewApplicationError("the user lacks a privilege", api.CodeVCenterDenied)
		}
		return nil
	})
	w.run()
	require.ErrorContains(t, w.GetWorkflowError(), "lacks a privilege")
	require.NotContains(t, strings.Join(w.notes, "\n"), "waiting")
}
