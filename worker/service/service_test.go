package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/worker"

	"drover/tests/ports"
)

func TestGroupStopsWithItsFirstError(t *testing.T) {
	bad := errors.New("bad")
	g := NewGroup(t.Context())
	g.Go(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	g.Go(func(context.Context) error { return bad })
	require.Equal(t, bad.Error(), g.Wait().Error(), "the end of the others is no error")

	ctx, cancel := context.WithCancel(t.Context())
	g = NewGroup(ctx)
	g.Go(func(ctx context.Context) error { <-ctx.Done(); return nil })
	cancel()
	require.NoError(t, g.Wait())
}

func free(t *testing.T) string {
	t.Helper()
	a, err := ports.Free()
	require.NoError(t, err)
	return a
}

func get(url string) (int, string) {
	resp, err := http.Get(url) //nolint:gosec // our own address
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestMetricsAndHealth(t *testing.T) {
	address := free(t)
	var healthy atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ServeMetrics(ctx, address, Registry(), func() error {
			if healthy.Load() {
				return nil
			}
			return errors.New("not yet")
		})
	}()
	require.Eventually(t, func() bool { c, _ := get("http://" + address + "/healthz"); return c == http.StatusServiceUnavailable }, 10*time.Second, 5*time.Millisecond)
	healthy.Store(true)
	code, body := get("http://" + address + "/healthz")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "ok\n", body)
	code, body = get("http://" + address + "/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "go_goroutines")
	cancel()
	require.NoError(t, <-done)
	require.Error(t, ServeMetrics(t.Context(), "256.0.0.1:1", Registry(), nil))
}

func TestTemporalIsWaitedFor(t *testing.T) {
	registry := Registry()
	tp, err := NewTemporal(TemporalConfig{
		Address: free(t), Namespace: "default", Queue: "q", Identity: "me",
		Register: func(worker.Registry) {}, Logger: slog.New(slog.DiscardHandler), Metrics: registry,
	})
	require.NoError(t, err)
	require.ErrorContains(t, tp.Healthy(), "does not run yet")
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	require.NoError(t, tp.Run(ctx), "it goes on trying until it is asked to stop")
	require.False(t, tp.Running())
}
