package relay

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves until the test ends.
func listen(t *testing.T, serve func(context.Context, net.Listener) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		require.NoError(t, <-done)
	})
	return l.Addr().String()
}

// echo answers each connection's bytes with the same.
func echo(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return nil //nolint:nilerr // the test has ended
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// TestPassesOn: an agent's way through the relay, byte for byte; the end of one side
// ends the other.
func TestPassesOn(t *testing.T) {
	to := listen(t, echo)
	relay := listen(t, New([]string{to}, slog.New(slog.DiscardHandler)).Serve)
	dial, err := proxy.Dialer("http://" + relay)
	require.NoError(t, err)
	c, err := dial(t.Context(), "tcp", to)
	require.NoError(t, err)
	for i := range 100 {
		text := fmt.Sprintf("message %d", i)
		_, err := io.WriteString(c, text)
		require.NoError(t, err)
		b := make([]byte, len(text))
		_, err = io.ReadFull(c, b)
		require.NoError(t, err)
		require.Equal(t, text, string(b))
	}
	require.NoError(t, c.Close())
}

// TestOnlyWhereItMay: no other address, no other method, nobody there.
func TestOnlyWhereItMay(t *testing.T) {
	to, other := listen(t, echo), listen(t, echo)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	away := l.Addr().String()
	require.NoError(t, l.Close())
	relay := listen(t, New([]string{to, away}, slog.New(slog.DiscardHandler)).Serve)
	dial, err := proxy.Dialer("http://" + relay)
	require.NoError(t, err)
	_, err = dial(t.Context(), "tcp", other)
	require.ErrorContains(t, err, "403")
	_, err = dial(t.Context(), "tcp", away)
	require.ErrorContains(t, err, "502")
	for _, text := range []string{"GET http://" + to + "/ HTTP/1.1\r\nHost: " + to + "\r\n\r\n", "nonsense\r\n\r\n"} {
		c, err := net.Dial("tcp", relay)
		require.NoError(t, err)
		_, err = io.WriteString(c, text)
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		b, err := io.ReadAll(c)
		require.NoError(t, err, "it is closed")
		require.NotContains(t, string(b), "200")
		require.NoError(t, c.Close())
	}
}

// TestEnds: connections that are open end with the relay.
func TestEnds(t *testing.T) {
	to := listen(t, echo)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New([]string{to}, slog.New(slog.DiscardHandler)).Serve(ctx, l) }()
	dial, err := proxy.Dialer("http://" + l.Addr().String())
	require.NoError(t, err)
	c, err := dial(t.Context(), "tcp", to)
	require.NoError(t, err)
	cancel()
	require.NoError(t, <-done)
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, c.Close())
}
