package failback

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

// TestNoWayBack: the target machine does not reach the master target. The reprotect fails
// with what was seen, before any disk is attached, and the agent stands by as before.
func TestNoWayBack(t *testing.T) {
	w := newWay(func(name string) error {
		if name == api.ActAwaitAgent {
			return temporal.NewNonRetryableApplicationError("the machine does not reach mt-1: i/o timeout", api.CodeNoPath, nil)
		}
		return nil
	})
	w.run()
	err := w.GetWorkflowError()
	require.ErrorContains(t, err, "see that the target machine reaches the master target")
	require.ErrorContains(t, err, "does not reach mt-1: i/o timeout")
	require.ErrorContains(t, err, api.CodeNoPath)
	require.Equal(t, []string{api.ActShutdownVM, api.ActChooseServer, api.ActUnassign, api.ActAwaitAgent, api.ActUnassign}, w.called)
}

// TestWayBackIsTriedFirst: nothing is attached before the way has been tried.
func TestWayBackIsTriedFirst(t *testing.T) {
	w := newWay(func(string) error { return nil })
	w.run()
	require.NoError(t, w.GetWorkflowError())
	require.Equal(t, []string{api.ActShutdownVM, api.ActChooseServer, api.ActUnassign, api.ActAwaitAgent, api.ActAttachDisks}, w.called[:5])
}
