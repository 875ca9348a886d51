package processserver

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/worker/config"
)

func agent(m ident.MachineID) ident.Peer { return ident.Peer{Role: ident.RoleAgent, Name: m.String()} }

func TestDenyListSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	m := ident.NewMachineID("vc", "vm")
	d, err := openDenyList(dir)
	require.NoError(t, err)
	require.False(t, d.Denied(agent(m)))
	require.NoError(t, d.set([]string{m.String()}))
	require.True(t, d.Denied(agent(m)))
	require.False(t, d.Denied(ident.Peer{Role: ident.RoleProcessServer, Name: m.String()}))

	d, err = openDenyList(dir)
	require.NoError(t, err)
	require.True(t, d.Denied(agent(m)))
	require.NoError(t, d.set(nil))
	require.False(t, d.Denied(agent(m)))

	require.NoError(t, os.WriteFile(filepath.Join(dir, deniedFile), []byte("{"), 0o600))
	_, err = openDenyList(dir)
	require.ErrorContains(t, err, deniedFile)
}

// taker takes heartbeats; it fails the first ones.
type taker struct {
	fail   int64
	calls  atomic.Int64
	denied []string
	last   atomic.Pointer[controlapi.Heartbeat]
}

func (k *taker) Heartbeat(_ context.Context, hb controlapi.Heartbeat) (controlapi.HeartbeatResponse, error) {
	if k.calls.Add(1) <= k.fail {
		return controlapi.HeartbeatResponse{}, errors.New("away")
	}
	k.last.Store(&hb)
	return controlapi.HeartbeatResponse{Denied: k.denied}, nil
}

func TestHeartbeats(t *testing.T) {
	m := ident.NewMachineID("vc", "vm")
	d, err := openDenyList(t.TempDir())
	require.NoError(t, err)
	k := &taker{fail: 2, denied: []string{m.String()}}
	h := &heartbeats{
		client: k, denied: d, every: time.Millisecond, health: func() health.Report { return health.Report{Status: health.Warning} }, log: slog.New(slog.DiscardHandler),
		beat: controlapi.Heartbeat{DataAddress: "ps:9443"},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	require.Eventually(t, func() bool { return d.Denied(agent(m)) }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	require.True(t, h.heard.Load())
	require.Equal(t, "ps:9443", k.last.Load().DataAddress)
	require.Equal(t, health.Warning, k.last.Load().Health.Status)
	require.False(t, k.last.Load().Time.IsZero())
}

func TestNoTokenNoIdentity(t *testing.T) {
	c := &config.ProcessServer{Name: "ps-1", Role: ident.RoleProcessServer, State: t.TempDir()}
	_, err := identity(t.Context(), c, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "names no tokenFile")
	c.TokenFile = filepath.Join(c.State, "none")
	_, err = identity(t.Context(), c, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "drover-config-server token --role process-server --name ps-1")
}
