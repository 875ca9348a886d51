package temporalserver_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"drover/standalone/temporalserver"
	"drover/tests/ports"
)

func address(t *testing.T) string {
	t.Helper()
	a, err := ports.Free()
	require.NoError(t, err)
	return a
}

func waits(ctx workflow.Context) (string, error) {
	var word string
	workflow.GetSignalChannel(ctx, "word").Receive(ctx, &word)
	return word, nil
}

// A workflow that waits goes on after the server was stopped and started on the
// same file.
func TestWorkflowSurvivesRestart(t *testing.T) {
	opts := temporalserver.Options{
		Dir: t.TempDir(), Listen: address(t), UI: address(t), Namespace: "default",
		SearchAttributes: map[string]enumspb.IndexedValueType{"DroverState": enumspb.INDEXED_VALUE_TYPE_KEYWORD},
		Logger:           slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	first, err := temporalserver.Start(ctx, opts)
	require.NoError(t, err)
	c, err := client.Dial(client.Options{HostPort: opts.Listen, Logger: opts.Logger})
	require.NoError(t, err)
	_, err = c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "w", TaskQueue: "q"}, waits)
	require.NoError(t, err)
	c.Close()
	require.FileExists(t, filepath.Join(opts.Dir, "temporal.sqlite-wal"), "it has a write-ahead log")
	require.NoError(t, first.Stop())

	second, err := temporalserver.Start(ctx, opts)
	require.NoError(t, err)
	defer func() { require.NoError(t, second.Stop()) }()
	c, err = client.Dial(client.Options{HostPort: opts.Listen, Logger: opts.Logger})
	require.NoError(t, err)
	defer c.Close()
	w := worker.New(c, "q", worker.Options{})
	w.RegisterWorkflow(waits)
	require.NoError(t, w.Start())
	defer w.Stop()
	require.NoError(t, c.SignalWorkflow(ctx, "w", "", "word", "hello"))
	var got string
	require.NoError(t, c.GetWorkflow(ctx, "w", "").Get(ctx, &got))
	require.Equal(t, "hello", got)
	requireUI(t, opts.UI)
}

func requireUI(t *testing.T, address string) {
	resp, err := http.Get("http://" + address + "/")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Contains(t, string(body), "<html")
}
