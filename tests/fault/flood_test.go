package fault

import (
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/tests/rig"
)

// Bounds of datapath/server, gate.go.
const (
	maxStrangers        = 512
	maxStrangersPerAddr = 64
)

// watched is a rig with its agent, whose server's metrics can be read.
type watched struct {
	*rig.Rig
	metrics *prometheus.Registry
}

func newWatched(t *testing.T, denied func(ident.Peer) bool) *watched {
	t.Helper()
	w := &watched{rig.New(t, mib), prometheus.NewRegistry()}
	w.Configure = func(c *server.Config) {
		c.HandshakeTimeout, c.Metrics, c.Denied = handshake, w.metrics, denied
	}
	w.StartServer()
	w.Grant(1, cut)
	w.StartAgent(1)
	w.Await("complete", complete)
	w.goesOn()
	return w
}

// goesOn checks that the agent's session makes points.
func (w *watched) goesOn() {
	w.T.Helper()
	require.Equal(w.T, w.Digest(), w.DigestAt(w.AfterNow()))
}

// metric sums a metric over its labels, or those whose label has the value.
func (w *watched) metric(name, label string) (sum float64) {
	w.T.Helper()
	families, err := w.metrics.Gather()
	require.NoError(w.T, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// from connects from one of the loopback addresses.
func from(t *testing.T, local, address string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}, Timeout: soon}
	c, err := dialer.DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// flood connects so many times; it is all the same what becomes of the connections.
func flood(t *testing.T, n int, local func(i int) string, address string) {
	t.Helper()
	for i := range n {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local(i))}, Timeout: soon}
		if c, err := dialer.DialContext(t.Context(), "tcp", address); err == nil {
			t.Cleanup(func() { _ = c.Close() })
		} else {
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}
	}
}

// TestCase31Flood: two thousand connections that say nothing, from one address and from
// many. The session there is goes on, and those that come get in.
func TestCase31Flood(t *testing.T) {
	const many = 2000
	w := newWatched(t, nil)
	before := runtime.NumGoroutine()

	t.Run("from one address", func(t *testing.T) {
		flood(t, many, func(int) string { return "127.0.0.66" }, w.Address)
		require.Eventually(t, func() bool { return w.metric("drover_stream_dropped_total", "") >= many-maxStrangersPerAddr }, soon, often)
		w.goesOn()
		w.StopAgent() // another one gets in, from another address
		w.StartAgent(1)
		w.goesOn()
		require.LessOrEqual(t, w.metric("drover_stream_strangers", ""), float64(maxStrangersPerAddr))
	})
	require.Positive(t, w.metric("drover_stream_dropped_total", "too many of one address"))
	require.Eventually(t, func() bool { return w.metric("drover_stream_strangers", "") == 0 }, soon, often)

	t.Run("from many addresses", func(t *testing.T) {
		sessions := len(w.Ended())
		flood(t, many, func(i int) string { return fmt.Sprintf("127.0.1.%d", 1+i%50) }, w.Address)
		require.LessOrEqual(t, runtime.NumGoroutine(), before+2*maxStrangers)
		w.goesOn()
		require.LessOrEqual(t, w.metric("drover_stream_strangers", ""), float64(maxStrangers))
		require.Len(t, w.Ended(), sessions, "the session that was there goes on")
	})
	require.Positive(t, w.metric("drover_stream_dropped_total", "too many"))
	require.Eventually(t, func() bool { return w.metric("drover_stream_strangers", "") == 0 }, soon, often)
	w.StopAgent()
	w.StartAgent(1)
	w.goesOn()
}

// slow is a connection that gets so far and no further, or hardly.
var slow = map[string]func(w *watched, c net.Conn) (net.Conn, []byte){
	"TCP alone": func(_ *watched, c net.Conn) (net.Conn, []byte) { return c, nil },
	"half of TLS": func(_ *watched, c net.Conn) (net.Conn, []byte) {
		return c, []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	},
	"TLS alone": func(w *watched, c net.Conn) (net.Conn, []byte) { return w.secure(c), nil },
	"half of a request": func(w *watched, c net.Conn) (net.Conn, []byte) {
		return w.secure(c), []byte("GET /v1/stream HTTP/1.1\r\nHost: x\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	},
	"an upgrade alone": func(w *watched, c net.Conn) (net.Conn, []byte) {
		s := w.secure(c)
		_, _ = fmt.Fprintf(s, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, wire.UpgradeToken)
		return s, nil
	},
	"half of a hello": func(w *watched, c net.Conn) (net.Conn, []byte) {
		s := w.secure(c)
		_, _ = fmt.Fprintf(s, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, wire.UpgradeToken)
		p := &peer{t: w.T}
		return s, p.of(wire.KindHello, hello(w.Rig)).seal()
	},
	"an idle connection after another request": func(w *watched, c net.Conn) (net.Conn, []byte) {
		s := w.secure(c)
		_, _ = fmt.Fprintf(s, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
		return s, nil
	},
}

func (w *watched) secure(c net.Conn) net.Conn {
	s := tls.Client(c, w.CA.Client(w.AgentPeer(), rig.ServerPeer))
	if err := s.HandshakeContext(w.T.Context()); err != nil {
		w.T.Error(err)
	}
	return s
}

// TestCase31SlowConnections: one deadline for TLS, upgrade and hello together, however
// steadily the bytes drip.
func TestCase31SlowConnections(t *testing.T) {
	w := newWatched(t, nil)
	sessions := len(w.Ended())
	var all sync.WaitGroup
	for name, reach := range slow {
		raw := from(t, "127.0.0.67", w.Address)
		all.Go(func() {
			begin := time.Now()
			c, drip := reach(w, raw)
			var dripping sync.WaitGroup
			dripping.Go(func() {
				for _, b := range drip {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(handshake / 10)
				}
			})
			buf := make([]byte, 4<<10)
			for {
				if _, err := c.Read(buf); err != nil {
					break
				}
			}
			took := time.Since(begin)
			_ = c.Close()
			dripping.Wait()
			if took < handshake/2 || took > 5*handshake {
				t.Errorf("%s: closed after %s, want %s", name, took, handshake)
			}
		})
	}
	w.goesOn()
	all.Wait()
	// HTTP's and TLS's own limits may come first where they count.
	require.GreaterOrEqual(t, w.metric("drover_stream_dropped_total", "no hello in time"), 2.0)
	require.Len(t, w.Ended(), sessions, "the session that was there goes on, longer than the deadline")
}

// TestCase32CertificateIsDeniedWhileItIsUsed: the live session is cut at the server's
// next look, and nobody gets in with that certificate.
func TestCase32CertificateIsDeniedWhileItIsUsed(t *testing.T) {
	const look = time.Second // of the server
	var denied atomic.Bool
	w := newWatched(t, func(p ident.Peer) bool { return denied.Load() && p.Role == ident.RoleAgent })
	begin := time.Now()
	denied.Store(true)
	require.Eventually(t, func() bool { return refusal(w.Ended()) != nil }, soon, often)
	require.Less(t, time.Since(begin), 5*look)
	require.Equal(t, wire.CodeIdentity, refusal(w.Ended()).Code)
	st := quiet(w.Rig)
	ended := len(w.Ended())
	w.Write(0, 7, []byte("written after the certificate was denied"))
	require.Eventually(t, func() bool { return len(w.Ended()) > ended+5 }, soon, often, "it comes again and again")
	for _, err := range w.Ended()[ended:] {
		require.Equal(t, wire.CodeIdentity, refusal([]error{err}).Code)
	}
	require.Equal(t, st.Spooled, w.Status().Spooled)
	require.Greater(t, w.metric("drover_stream_refused_total", wire.CodeIdentity.String()), 5.0)
	denied.Store(false)
	w.goesOn()
}

// TestCase34PausedWriter: a writer that slept while the epoch was raised is refused by
// the store itself, with its next write. (Every call of every store:
// datapath/replica/replicatest; the cache storage: datapath/cachestore TestFence.)
func TestCase34PausedWriter(t *testing.T) {
	w := newWatched(t, nil)
	store, err := file.Open(w.StoreDir()) // as another server has it
	require.NoError(t, err)
	require.NoError(t, store.Fence(t.Context(), w.Machine, 2))
	points := w.Points()
	w.Write(0, 9, []byte("a late write"))
	require.Eventually(t, func() bool { return refusal(w.Ended()) != nil }, soon, often)
	require.Equal(t, wire.CodeEpoch, refusal(w.Ended()).Code)
	w.Await("no session", func(st pipe.Status) bool { return !st.Connected })
	require.Equal(t, len(points), len(w.Points()), "no point after the fence")
	require.NoError(t, store.Close())
}
