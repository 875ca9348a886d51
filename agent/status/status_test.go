package status

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// short gives a socket's path; test folders' names are too long for one.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "st")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run", "s")
}

func serve(t *testing.T, socket, word string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, socket, func() Status { return Status{State: word} }) }()
	require.Eventually(t, func() bool { st, err := Get(t.Context(), socket); return err == nil && st.State == word }, 10*time.Second, time.Millisecond)
	return func() { cancel(); require.NoError(t, <-done) }
}

func TestServeAndGet(t *testing.T) {
	socket := short(t)
	_, err := Get(t.Context(), socket)
	require.ErrorIs(t, err, ErrNotRunning)
	stop := serve(t, socket, "streaming")
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, want, info.Mode().Perm(), "root alone may ask")
	}
	require.ErrorContains(t, Serve(t.Context(), socket, nil), "another agent serves it")
	stop()
	_, err = os.Stat(socket)
	require.ErrorIs(t, err, os.ErrNotExist)

	// What a killed agent left is replaced.
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	serve(t, socket, "again")()
}

func TestManyWhoAskAndSayNothing(t *testing.T) {
	socket := short(t)
	defer serve(t, socket, "x")()
	var d net.Dialer
	var conns []net.Conn
	for range 3 * maxConns {
		c, err := d.DialContext(t.Context(), "unix", socket)
		require.NoError(t, err)
		defer func() { _ = c.Close() }()
		conns = append(conns, c)
	}
	held := 0
	for _, c := range conns {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			held++
		}
	}
	require.LessOrEqual(t, held, maxConns)
	require.Eventually(t, func() bool { _, err := Get(t.Context(), socket); return err == nil }, 4*timeout, 50*time.Millisecond, "they are dropped in time")
}

func TestOnlyReading(t *testing.T) {
	socket := short(t)
	defer serve(t, socket, "x")()
	var d net.Dialer
	for request, want := range map[string]string{"POST /v1/status": "405", "GET /v1/other": "404"} {
		c, err := d.DialContext(t.Context(), "unix", socket)
		require.NoError(t, err)
		_, err = c.Write([]byte(request + " HTTP/1.0\r\n\r\n"))
		require.NoError(t, err)
		answer := make([]byte, 12)
		_, err = c.Read(answer)
		require.NoError(t, err)
		require.Contains(t, string(answer), want, request)
		require.NoError(t, c.Close())
	}
}
