package proxy

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen answers every connection with serve, until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestTunnelCarriesBothWays(t *testing.T) {
	var target, authorization string
	address := listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		target, authorization = req.Method+" "+req.Host, req.Header.Get("Proxy-Authorization")
		// The far side's first word comes in the same packet as the answer.
		_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\nhello ")
		_, _ = io.Copy(c, io.LimitReader(r, 5))
	})
	dial, err := Dialer("http://user:secret@" + address)
	require.NoError(t, err)
	conn, err := dial(t.Context(), "tcp", "example.test:443")
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "world")
	require.NoError(t, err)
	b, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "hello world", string(b))
	require.Equal(t, "CONNECT example.test:443", target)
	require.Equal(t, "Basic dXNlcjpzZWNyZXQ=", authorization)
}

func TestRefusalsAreClear(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"refused":  {"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "the proxy refuses: 403 Forbidden"},
		"endless":  {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxResponse), "longer than 8192 bytes"},
		"not HTTP": {"SSH-2.0-OpenSSH\r\n", "read the answer"},
		"nothing":  {"", "read the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			address := listen(t, func(conn net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, c.answer)
				}
			})
			dial, err := Dialer("http://" + address)
			require.NoError(t, err)
			_, err = dial(t.Context(), "tcp", "example.test:443")
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "example.test:443")
		})
	}
}

func TestSilentProxyEndsWithTheContext(t *testing.T) {
	address := listen(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	dial, err := Dialer("http://" + address)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = dial(ctx, "tcp", "example.test:443")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestDialerChecksTheURL(t *testing.T) {
	dial, err := Dialer("")
	require.NoError(t, err)
	require.Nil(t, dial)
	for _, u := range []string{"https://h:1", "socks5://h:1", "h:1", "http://", "http://h:1/path", "http://u:hunter2@h:1/?q", "http://u:hunter2@h:x"} {
		_, err := Dialer(u)
		require.ErrorContains(t, err, "want http://host:port", u)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
