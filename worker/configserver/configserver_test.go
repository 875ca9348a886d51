package configserver_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/tests/ports"
	"drover/worker/config"
	"drover/worker/configserver"
	"drover/worker/controlserver/admin"
	"drover/worker/processserver"
)

const patience = 20 * time.Second

func free(t *testing.T) string {
	t.Helper()
	a, err := ports.Free()
	require.NoError(t, err)
	return a
}

// start runs a server until the returned function stops it.
func start(t *testing.T, run func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return context.DeadlineExceeded
		}
	}
}

// TestWithoutTemporal: agents and servers are served before Temporal ever answers,
// and a process server that is enrolled starts without the configuration server.
func TestWithoutTemporal(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	in := func(name string) string { return filepath.Join(dir, name) }
	temporal := config.Temporal{Address: free(t), Namespace: "default"}
	cs := &config.ConfigServer{
		Name: "cs-1", State: in("cs"), Listen: free(t), Advertise: []string{"127.0.0.1"}, Metrics: free(t), Temporal: temporal,
		Store: config.Store{File: in("seed")}, Cache: config.Cache{Directory: in("cache")},
		Target:  config.Target{Local: config.LocalTarget{Directory: in("target")}},
		Scripts: in("scripts"), Secrets: in("secrets"), CertificateLife: config.Duration(config.DefaultCertificateLife),
	}
	ps := &config.ProcessServer{
		Name: "ps-1", Role: ident.RoleProcessServer, State: in("ps"), Listen: free(t), Metrics: free(t), Temporal: temporal,
		Advertise: "127.0.0.1:9443", ConfigServer: "https://" + cs.Listen, TokenFile: in("token"),
		Store: cs.Store, Cache: cs.Cache, Spool: config.Spool{Limit: config.DefaultSpoolLimit},
	}
	stopCS := start(t, func(ctx context.Context) error { return configserver.Run(ctx, cs, log) })
	operator := admin.NewClient(cs.State)
	require.Eventually(t, func() bool { _, err := operator.Status(t.Context()); return err == nil }, patience, 10*time.Millisecond)
	require.Eventually(t, func() bool { return health(cs.Metrics) == http.StatusServiceUnavailable }, patience, 10*time.Millisecond, "the worker does not run")

	token, err := operator.Token(t.Context(), admin.TokenRequest{Role: ps.Role, Name: ps.Name})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(ps.TokenFile, []byte(token+"\n"), 0o600))
	stopPS := start(t, func(ctx context.Context) error { return processserver.Run(ctx, ps, log) })
	require.Eventually(t, func() bool { return health(ps.Metrics) == http.StatusOK }, patience, 10*time.Millisecond)
	status, err := operator.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status.Peers, 1)
	require.Equal(t, "127.0.0.1:9443", status.Peers[0].DataAddress)
	require.NotEmpty(t, status.Peers[0].Heard)
	require.NoError(t, stopPS())
	require.NoError(t, stopCS())

	require.NoError(t, os.Remove(ps.TokenFile))
	stopPS = start(t, func(ctx context.Context) error { return processserver.Run(ctx, ps, log) })
	require.Eventually(t, func() bool { return health(ps.Metrics) == http.StatusOK }, patience, 10*time.Millisecond)
	conn, err := net.DialTimeout("tcp", ps.Listen, patience)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, stopPS())

	ps.Name = "ps-2"
	require.ErrorContains(t, processserver.Run(t.Context(), ps, log), "the configuration says process-server/ps-2")
}

func health(address string) int {
	resp, err := http.Get("http://" + address + "/healthz")
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}
