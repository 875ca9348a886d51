package fault

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
	"drover/tests/fault/proxy"
	"drover/tests/rig"
)

const mib = 1 << 20

// breaks lets a fault happen again and again in the middle of change sets. What is
// sent again is bounded by what was not acknowledged.
func breaks(t *testing.T, kind proxy.Kind) {
	const rounds, blocks = 12, 64
	l := newLine(t, idle, cut, 4*mib)
	l.right()
	before := l.Status().DataBytes
	for n := range rounds {
		dir, after := proxy.Up, l.rnd.Int64N(blocks*rig.Block)
		if n%4 == 3 {
			dir, after = proxy.Down, l.rnd.Int64N(200)
		}
		ended, fired := len(l.Ended()), l.Fired(dir)
		l.Arm(dir, proxy.Fault{Kind: kind, After: after})
		l.burst(blocks)
		l.fires(dir, fired+1)
		require.Eventually(t, func() bool { return len(l.Ended()) > ended }, soon, often, "the session does not end")
	}
	l.right()
	sent := l.Status().DataBytes - before
	require.LessOrEqual(t, sent, int64(2*rounds*blocks*rig.Block), "a break costs what was under way, not the disk")
}

// TestCase01ResetInTheMiddleOfAFrame: the partial frame is dropped, the session resumes
// from what was acknowledged.
func TestCase01ResetInTheMiddleOfAFrame(t *testing.T) { breaks(t, proxy.Reset) }

// TestCase02EarlyEOF: a polite end before the promised one is never "finished".
func TestCase02EarlyEOF(t *testing.T) {
	t.Run("both directions", func(t *testing.T) { breaks(t, proxy.EOF) })
	t.Run("one direction", func(t *testing.T) { breaks(t, proxy.HalfClose) })
}

// TestCase03BlackHole: nothing arrives and nothing is closed. Both sides notice by
// silence, the lag grows in the status, and it goes on by itself.
func TestCase03BlackHole(t *testing.T) {
	l := newLine(t, idle, cut, mib)
	l.right()
	ended := len(l.Ended())
	begin := time.Now()
	l.Set(proxy.Up, proxy.Rule{Stall: true})
	l.Set(proxy.Down, proxy.Rule{Stall: true})
	l.burst(16)
	require.Eventually(t, func() bool { return len(l.Ended()) > ended }, soon, often)
	require.ErrorIs(t, l.Ended()[ended], os.ErrDeadlineExceeded)
	st := l.Await("the server sees it too", func(st pipe.Status) bool { return !st.Connected })
	require.Less(t, time.Since(begin), 5*idle)
	require.Greater(t, lag(st), idle/2)
	require.Eventually(t, func() bool { return l.State().Word == "connecting" }, soon, often)
	for _, d := range []proxy.Direction{proxy.Up, proxy.Down} {
		l.Set(d, proxy.Rule{})
	}
	l.right()
}

// TestCase04AcknowledgementsAreLost: data arrives, answers do not. The window stays
// bounded, and what arrived twice does no harm.
func TestCase04AcknowledgementsAreLost(t *testing.T) {
	l := newLine(t, idle, cut, 4*mib)
	l.right()
	for range 3 {
		position := l.Status().Spooled.Seq
		ended := len(l.Ended())
		l.Set(proxy.Down, proxy.Rule{Stall: true})
		for len(l.Ended()) == ended {
			l.burst(8)
			time.Sleep(cut)
		}
		require.LessOrEqual(t, l.Status().Spooled.Seq, position+4, "at most two are sent that nobody has acknowledged")
		l.Set(proxy.Down, proxy.Rule{})
		l.right()
	}
}

// TestCase05DuplicateAndReorderedBytes and TestCase25FlippedBits: under TLS a byte that
// is not what was sent ends the session, whatever it belongs to.
func TestCase05DuplicateAndReorderedBytes(t *testing.T) {
	t.Run("duplicate", func(t *testing.T) { damages(t, proxy.Fault{Kind: proxy.Duplicate, Bytes: 16}) })
	t.Run("reordered", func(t *testing.T) { damages(t, proxy.Fault{Kind: proxy.Swap, Bytes: 16}) })
}

func TestCase25FlippedBits(t *testing.T) { damages(t, proxy.Fault{Kind: proxy.Flip}) }

func damages(t *testing.T, f proxy.Fault) {
	l := newLine(t, idle, cut, mib)
	l.right()
	// In the handshake of TLS some bits mean nothing; the replica is right anyway.
	for _, dir := range []proxy.Direction{proxy.Up, proxy.Down} {
		for _, after := range []int64{0, 3, 5, 60, 700, 1500} {
			fired := l.Fired(dir)
			f.After, f.Bit = after, uint(after)
			l.Arm(dir, f)
			l.Cut()
			l.burst(4)
			l.fires(dir, fired+1)
		}
	}
	l.right()
	for n := range int64(12) {
		dir, after := proxy.Up, l.rnd.Int64N(16*rig.Block)
		if n%3 == 2 {
			dir, after = proxy.Down, l.rnd.Int64N(100)
		}
		ended, fired := len(l.Ended()), l.Fired(dir)
		f.After, f.Bit = after, uint(n)
		l.Arm(dir, f)
		l.burst(16)
		l.fires(dir, fired+1)
		require.Eventually(t, func() bool { return len(l.Ended()) > ended }, soon, often, "damage is noticed")
	}
	l.right()
}

// TestCase06LinkSlowerThanTheWrites: the guest goes on writing, the lag grows where it
// can be seen, and is gone after the link is fast again.
func TestCase06LinkSlowerThanTheWrites(t *testing.T) {
	const interval = 500 * time.Millisecond
	l := newLine(t, wire.IdleTimeout, interval, 4*mib)
	l.right()
	l.Set(proxy.Up, proxy.Rule{Rate: 128 << 10})
	stop := make(chan struct{})
	var writer sync.WaitGroup
	var spent time.Duration
	bursts := 0
	var mu sync.Mutex
	pause := 20 * time.Millisecond
	writer.Go(func() { // 1.6 MB/s, twelve times what the link takes
		for {
			begin := time.Now()
			l.burst(8)
			mu.Lock()
			spent += time.Since(begin)
			bursts++
			wait := pause
			mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(wait):
			}
		}
	})
	first := l.Await("a lag", func(st pipe.Status) bool { return lag(st) > 2*interval })
	require.True(t, first.Connected, "a slow line is not a dead one")
	l.Await("a lag that grows", func(st pipe.Status) bool { return lag(st) > 6*interval })
	mu.Lock()
	require.Less(t, spent/time.Duration(bursts), interval/5, "the guest's writes wait for nothing")
	pause = 100 * time.Millisecond
	mu.Unlock()
	l.Set(proxy.Up, proxy.Rule{})
	l.Await("it catches up", func(st pipe.Status) bool { return lag(st) < interval })
	close(stop)
	writer.Wait()
	require.Empty(t, l.Ended(), "one session all the time")
	l.right()
}

// other is another server, which knows the machine if it has a grant.
func (l *line) other(t *testing.T, grant bool, change func(*server.Config)) *rig.Rig {
	t.Helper()
	o := rig.New(t, mib)
	o.CA, o.Machine, o.Disks, o.Configure = l.CA, l.Machine, l.Disks, change
	o.StartServer()
	if grant {
		o.Grant(1, cut)
	}
	return o
}

// visit gives the address to somebody else for a while, and how sessions end there.
func (l *line) visit(t *testing.T, address string) []error {
	t.Helper()
	l.Retarget(address)
	ended := len(l.Ended())
	l.Cut()
	l.burst(8)
	require.Eventually(t, func() bool { return len(l.Ended()) >= ended+4 }, soon, often)
	errs := l.Ended()[ended+1:]
	l.Retarget(l.Rig.Address)
	l.right()
	return errs
}

// TestCase07AddressOfAnotherServer: whoever has the address now is found out, and
// nothing is written there.
func TestCase07AddressOfAnotherServer(t *testing.T) {
	l := newLine(t, idle, cut, mib)
	l.right()
	t.Run("of another name", func(t *testing.T) {
		peer := ident.Peer{Role: ident.RoleProcessServer, Name: "ps-2"}
		o := l.other(t, true, func(c *server.Config) { c.TLS = l.CA.Server(peer) })
		for _, err := range l.visit(t, o.Address)[:2] {
			require.ErrorContains(t, err, "ps-2")
		}
		require.True(t, o.Status().LastSeen.IsZero())
		require.Empty(t, files(t, filepath.Join(o.StateDir(), "spool")))
	})
	t.Run("of another CA", func(t *testing.T) {
		o := l.other(t, true, func(c *server.Config) { c.TLS = wiretest.NewCA(t).Server(rig.ServerPeer) })
		for _, err := range l.visit(t, o.Address)[:2] {
			require.ErrorContains(t, err, "certificate")
		}
		require.True(t, o.Status().LastSeen.IsZero())
	})
	t.Run("without a grant", func(t *testing.T) {
		o := l.other(t, false, nil)
		r := refusal(l.visit(t, o.Address))
		require.NotNil(t, r)
		require.Equal(t, wire.CodeUnknownMachine, r.Code)
		require.Empty(t, files(t, o.StateDir()))
		require.Empty(t, files(t, filepath.Join(o.Dir, "cache")))
	})
	t.Run("with another epoch's grant", func(t *testing.T) {
		o := l.other(t, false, nil)
		o.Grant(9, cut)
		r := refusal(l.visit(t, o.Address))
		require.NotNil(t, r)
		require.Equal(t, wire.CodeEpoch, r.Code)
		require.Empty(t, files(t, filepath.Join(o.StateDir(), "spool")))
	})
	t.Run("something else", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var done sync.WaitGroup
		done.Go(func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte("220 mail.example.com ESMTP\r\n"))
				_ = c.Close()
			}
		})
		errs := l.visit(t, listener.Addr().String())
		require.NoError(t, listener.Close())
		done.Wait()
		var strange tls.RecordHeaderError
		require.True(t, errors.As(errs[0], &strange) || errors.As(errs[1], &strange), "%v", errs)
	})
}
