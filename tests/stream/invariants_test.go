package stream

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/tests/ports"
	"drover/tests/rig"
)

// slowTracker takes for ever while the machine is frozen.
type slowTracker struct {
	tracker.Tracker
	marker string
	slow   *atomic.Bool
}

func (s slowTracker) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	if _, err := os.Stat(s.marker); err == nil && s.slow.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Tracker.Pass(ctx, disk, emit, p)
}

// TestFreezeHasALimit: what cannot be read in time makes no recovery point; the machine
// is thawed and goes on.
func TestFreezeHasALimit(t *testing.T) {
	const patience = 300 * time.Millisecond
	r := rig.New(t, 64*rig.Block)
	log := freezable(r, "")
	r.Hooks.Timeout = patience
	var slow atomic.Bool
	r.Track = func(t tracker.Tracker) tracker.Tracker { return slowTracker{t, r.Hooks.Marker, &slow} }
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	slow.Store(true)
	frozen := len(calls(r, log))
	r.Await("a freeze that was given up", func(pipe.Status) bool { return strings.Contains(r.State().Detail, "frozen for longer") })
	r.Write(0, 5, []byte(strings.Repeat("y", rig.Block)))
	require.Eventually(t, func() bool { return len(calls(r, log)) > frozen+5 }, rig.Limit, 5*time.Millisecond, "frozen and thawed again and again")
	slow.Store(false)
	p := r.AfterNow()
	require.Equal(t, ident.ApplicationConsistent, p.Consistency)
	require.Equal(t, r.Digest(), r.DigestAt(p))
	r.StopAgent()
	require.NoFileExists(t, r.Hooks.Marker, "what was frozen was thawed")
}

// busyTracker changes the disk after every pass, before anybody can look whether the next
// one finds nothing.
type busyTracker struct {
	tracker.Tracker
	change func()
}

func (b busyTracker) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	err := b.Tracker.Pass(ctx, disk, emit, p)
	b.change()
	return err
}

// TestBusyDisksMakeNoPoint: what was read of disks that changed meanwhile is no moment of
// them, however often it is tried.
func TestBusyDisksMakeNoPoint(t *testing.T) {
	r := rig.New(t, 64*rig.Block)
	var busy atomic.Bool
	var n atomic.Int64
	r.Track = func(t tracker.Tracker) tracker.Tracker {
		return busyTracker{t, func() {
			if busy.Load() {
				r.Write(0, n.Load()%60, []byte(strings.Repeat(string(rune('a'+n.Add(1)%26)), rig.Block)))
			}
		}}
	}
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	r.AfterNow()
	busy.Store(true)
	given := func(pipe.Status) bool { return strings.Contains(r.State().Detail, "changed during every pass") }
	r.Await("a cut that was given up", given)
	more := func() {
		sets := r.Status().Spooled.Seq
		r.Await("more of them", func(st pipe.Status) bool { return st.Applied.Seq >= sets+3 })
	}
	more() // what was under way before is applied
	points := len(r.Points())
	more()
	require.Len(t, r.Points(), points)
	busy.Store(false)
	p := r.AfterNow() // what was being written by a pass is written now
	require.Equal(t, r.Digest(), r.DigestAt(p))
}

// learning counts the comparisons of whole disks.
type learning struct {
	tracker.Tracker
	times *atomic.Int64
}

func (l learning) Learn(ctx context.Context, disk int, compare func(checksum.Window) error, p tracker.Progress) error {
	l.times.Add(1)
	return l.Tracker.Learn(ctx, disk, compare, p)
}

// TestSpoolLostCostsAResendAndNoResync: sets are acknowledged as spooled, and the spool
// is lost before they are in the cache storage. The agent still knows what was in them.
func TestSpoolLostCostsAResendAndNoResync(t *testing.T) {
	r := rig.New(t, 500*rig.Block)
	var cache *awayCache
	r.Configure = func(c *server.Config) {
		cache = &awayCache{Store: c.Cache}
		c.Cache = cache
	}
	var learned atomic.Int64
	r.Track = func(t tracker.Tracker) tracker.Tracker { return learning{t, &learned} }
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	r.AfterNow()
	cache.away.Store(true)
	for at := range int64(3) {
		before := r.Status().Spooled
		r.Write(0, 10+at, []byte(strings.Repeat("z", rig.Block)))
		r.Await("two sets are spooled", func(st pipe.Status) bool { return st.Spooled.Seq >= before.Seq+2 })
	}
	require.Greater(t, r.Status().BacklogSets, 3)
	r.StopServer()
	require.NoError(t, os.RemoveAll(filepath.Join(r.StateDir(), "spool", r.Machine.String())))
	r.StartServer()
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	st := r.Status()
	require.Nil(t, st.Broken)
	require.Equal(t, uint32(1), st.Generation)
	require.Zero(t, learned.Load(), "nothing was compared")
}

// fast is a server whose clock is ahead; it takes one session and tells how each set
// was dated.
func fast(r *rig.Rig, ahead time.Duration, ends chan<- wire.End) (address string) {
	r.T.Helper()
	address, err := ports.Free()
	require.NoError(r.T, err)
	listener, err := net.Listen("tcp", address)
	require.NoError(r.T, err)
	srv := &http.Server{TLSConfig: r.CA.Server(rig.ServerPeer), ReadHeaderTimeout: time.Second,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			conn, err := wire.Upgrade(w, q)
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			for {
				message, err := conn.Receive()
				if err != nil {
					return
				}
				switch m := message.(type) {
				case *wire.Hello:
					err = conn.Send(&wire.Welcome{Nonce: 1, Generation: 1, Mode: wire.ModeCopy, KeyID: "k", Disks: m.Disks,
						ServerTime: time.Now().Add(ahead), CutInterval: 20 * time.Millisecond, BaseSetBytes: 1 << 20})
				case *wire.End:
					select {
					case ends <- *m:
					default:
					}
				}
				if err != nil {
					return
				}
			}
		})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(listener, "", "") }()
	r.T.Cleanup(func() { r.StopAgent(); _ = srv.Close(); <-done })
	return address
}

// TestSetsThatNobodyAcknowledges: an agent keeps two sets under way and waits, however
// much it has to send.
func TestSetsThatNobodyAcknowledges(t *testing.T) {
	r := rig.New(t, 4000*rig.Block) // 15 sets of the fake server's
	for at := range int64(4000) {
		r.Write(0, at, []byte(strings.Repeat(string(rune('a'+at%26)), rig.Block)))
	}
	ends := make(chan wire.End, 100)
	r.Via = fast(r, 0, ends)
	r.StartAgent(1)
	require.Eventually(t, func() bool { return len(ends) >= 2 }, rig.Limit, 5*time.Millisecond)
	time.Sleep(300 * time.Millisecond)
	require.Len(t, ends, 2)
}

// TestClocksThatDiffer: an agent tells with every cut by how much the server's clock is
// ahead of its own.
func TestClocksThatDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, -48 * time.Hour} {
		r := rig.New(t, 16*rig.Block)
		ends := make(chan wire.End, 1)
		r.Via = fast(r, ahead, ends)
		r.StartAgent(1)
		select {
		case end := <-ends:
			require.InDelta(t, ahead, end.Cut.ClockOffset, float64(time.Minute))
			require.WithinDuration(t, time.Now(), end.Cut.SourceTime, time.Minute, "the time itself is the source's")
		case <-time.After(rig.Limit):
			require.Fail(t, "no set came")
		}
		r.StopAgent()
	}
}
