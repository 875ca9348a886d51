package proxy

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// told is a connection whose other side says something and hangs up.
type told struct {
	net.Conn
	io.Reader
}

func (c told) Read(b []byte) (int, error) { return c.Reader.Read(b) }
func (told) Write(b []byte) (int, error)  { return len(b), nil }

// FuzzConnect takes anything for a proxy's answer. What comes after a good one
// reaches the tunnel as it is.
func FuzzConnect(f *testing.F) {
	for name, text := range map[string]string{
		"good": "HTTP/1.1 200 OK\r\n\r\nearly", "refused": "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno\n",
		"torn": "HTTP/1.1 200 OK\r\nA: ", "long-word": strings.Repeat("\x00", maxResponse-3) + "\r\n\r\n", "long-status": "HTTP/1.1 403 " + strings.Repeat("n", 4000) + "\r\n\r\n",
		"words": "SSH-2.0-OpenSSH\r\n", "long": "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxResponse),
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly", "length": "HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\nearly",
	} {
		fuzz.Seed(f, name, []byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzz.Alloc(t, 16*maxResponse, func() {
			conn, err := tunnel{address: "proxy.test:80"}.connect(told{Reader: bytes.NewReader(b)}, "cs.test:443")
			if err != nil {
				require.Less(t, len(err.Error()), 2*maxErrorText, "a stranger's words do not fill the log")
				return
			}
			rest := make([]byte, 64)
			n, _ := io.ReadFull(conn, rest)
			require.True(t, bytes.Contains(b, rest[:n]))
		})
	})
}
