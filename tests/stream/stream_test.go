package stream

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/session"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/waterfall"
	"drover/tests/rig"
)

// breakable is a line that breaks after so many more bytes, if at all.
type breakable struct {
	left  atomic.Int64
	armed atomic.Bool
}

// arm lets the line break after n more bytes, in whatever direction.
func (b *breakable) arm(n int64) { b.left.Store(n); b.armed.Store(true) }

func (b *breakable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	return &breakableConn{c, b}, err
}

type breakableConn struct {
	net.Conn
	line *breakable
}

func (c *breakableConn) moved(n int) {
	if c.line.armed.Load() && c.line.left.Add(-int64(n)) < 0 && c.line.armed.CompareAndSwap(true, false) {
		_ = c.Close()
	}
}

func (c *breakableConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.moved(n)
	return n, err
}

func (c *breakableConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.moved(n)
	return n, err
}

// TestEveryPointIsOneMomentOfTheSource writes single blocks while line, agent and
// server break again and again. Each point must be what the disks were after one of
// the writes, later points after later writes, and the last one what they are.
func TestEveryPointIsOneMomentOfTheSource(t *testing.T) {
	const seed, rounds = 20261123, 40
	rnd := rand.New(rand.NewPCG(seed, 1))
	sizes := []int64{300*rig.Block + 1024, 200 * rig.Block}
	r := rig.New(t, sizes...)
	line := &breakable{}
	r.Dial = line.dial
	r.StartServer()
	r.Grant(1, 10*time.Millisecond)

	moments := map[string]int{r.Digest(): 0} // content -> the newest write after which it was so
	write := func() {
		disk := rnd.IntN(len(sizes))
		at := rnd.Int64N(sizes[disk] / rig.Block)
		var data []byte
		if rnd.IntN(4) > 0 {
			data = make([]byte, rig.Block)
			for i := range data {
				data[i] = byte(rnd.Uint32() >> (i % 3)) //nolint:gosec // any bytes
			}
		}
		r.Write(disk, at, data)
		moments[r.Digest()] = len(moments)
	}
	for range 150 {
		write()
	}
	r.StartAgent(1)
	for round := range rounds {
		for range rnd.IntN(12) {
			write()
		}
		switch rnd.IntN(8) {
		case 0:
			r.StopAgent()
			write()
			r.StartAgent(1)
		case 1:
			r.StopServer()
			write()
			r.StartServer()
		default:
			line.arm(rnd.Int64N(64 << 10))
		}
		time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
		if round%8 == 7 {
			r.AfterNow()
		}
	}
	line.armed.Store(false)
	last := r.AfterNow()
	require.Equal(t, r.Digest(), r.DigestAt(last), "the last point is the source")
	st := r.Status()
	require.Nil(t, st.Broken)
	require.Equal(t, uint32(1), st.Generation, "nothing here needs a resync")
	r.StopAgent() // else there are new points faster than old ones are read
	checkMoments(t, r, moments)
}

func checkMoments(t *testing.T, r *rig.Rig, moments map[string]int) {
	t.Helper()
	newest := -1
	points := r.Points()
	for _, p := range points {
		at, ok := moments[r.DigestAt(p)]
		require.True(t, ok, "point %d is no moment of the source", p.ID)
		require.GreaterOrEqual(t, at, newest, "point %d is older than the one before", p.ID)
		newest = at
	}
	require.Greater(t, len(points), 5)
	t.Logf("%d points, %d moments", len(points), len(moments))
}

// hook writes a program that notes each call.
func hook(r *rig.Rig, name, body string) (program, log string) {
	r.T.Helper()
	log = filepath.Join(r.Dir, name+".log")
	program = filepath.Join(r.Dir, name)
	text := "#!/bin/sh\necho $DROVER_PHASE $DROVER_SEQ $DROVER_FINAL >> " + log + "\n" + body + "\n"
	require.NoError(r.T, os.WriteFile(program, []byte(text), 0o700))
	return program, log
}

// calls reads a hook's log.
func calls(r *rig.Rig, log string) []string {
	r.T.Helper()
	b, err := os.ReadFile(log)
	require.NoError(r.T, err)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func freezable(r *rig.Rig, pre string) (log string) {
	program, log := hook(r, "hook", pre)
	r.Hooks.Pre, r.Hooks.Post, r.Hooks.Timeout = []string{program}, []string{program}, 5*time.Second
	r.Hooks.Marker = filepath.Join(r.Dir, "frozen")
	return log
}

func complete(st pipe.Status) bool { return st.Complete && st.Points > 0 }

func TestFrozenCutsAreApplicationConsistent(t *testing.T) {
	r := rig.New(t, 64*rig.Block)
	log := freezable(r, "")
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.Write(0, 3, []byte(strings.Repeat("x", rig.Block)))
	r.StartAgent(1)
	r.Await("complete", complete)
	p := r.AfterNow()
	require.Equal(t, ident.ApplicationConsistent, p.Consistency)
	require.Equal(t, r.Digest(), r.DigestAt(p))
	require.Positive(t, p.Freeze)
	r.StopAgent()
	calls := calls(r, log)
	for i := 0; i+1 < len(calls); i += 2 {
		freeze, thaw := strings.Fields(calls[i]), strings.Fields(calls[i+1])
		require.Equal(t, "freeze", freeze[0])
		require.Equal(t, "thaw", thaw[0])
		require.Equal(t, freeze[1:], thaw[1:], "the same cut")
	}
	require.NoFileExists(t, r.Hooks.Marker)
}

func TestFinalCutHoldsTheSourceUntilRelease(t *testing.T) {
	r := rig.New(t, 64*rig.Block)
	r.IdleTimeout = 2 * time.Second // and pings, which find the broken line, six times as often
	freezable(r, "")
	line := &breakable{}
	r.Dial = line.dial
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	r.Write(0, 5, []byte(strings.Repeat("y", rig.Block)))
	ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
	defer cancel()
	p, err := r.Server.Cut(ctx, r.Machine, 1, true)
	require.NoError(t, err)
	require.True(t, p.Final)
	require.Equal(t, r.Digest(), r.DigestAt(p))
	require.FileExists(t, r.Hooks.Marker, "the source stays frozen")

	line.arm(0)
	r.Await("the line breaks", func(st pipe.Status) bool { return !line.armed.Load() })
	r.Await("a new session", func(st pipe.Status) bool { return st.Connected })
	again, err := r.Server.Cut(ctx, r.Machine, 1, true)
	require.NoError(t, err)
	require.Equal(t, p.ID, again.ID, "asked twice, made once")
	r.StopServer()
	r.StartServer()
	r.Await("a session after a restart", func(st pipe.Status) bool { return st.Connected })
	require.FileExists(t, r.Hooks.Marker)
	require.Equal(t, p.ID, r.Points()[len(r.Points())-1].ID, "no points while it is frozen")

	require.NoError(t, r.Server.Release(t.Context(), r.Machine, 1))
	next := r.AfterNow()
	require.False(t, next.Final)
	r.StopAgent()
	require.NoFileExists(t, r.Hooks.Marker)
}

func TestAgentThatStopsThawsTheSource(t *testing.T) {
	r := rig.New(t, 16*rig.Block)
	freezable(r, "")
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
	defer cancel()
	_, err := r.Server.Cut(ctx, r.Machine, 1, true)
	require.NoError(t, err)
	r.StopAgent()
	require.NoFileExists(t, r.Hooks.Marker)
}

func TestHookThatFailsCostsConsistencyNotThePoint(t *testing.T) {
	r := rig.New(t, 16*rig.Block)
	freezable(r, "[ $DROVER_PHASE = thaw ] || { echo the database does not answer; exit 7; }")
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	p := r.AfterNow()
	require.Equal(t, ident.CrashConsistent, p.Consistency)
	require.Contains(t, p.Note, "the database does not answer")
	require.Equal(t, r.Digest(), r.DigestAt(p))
}

func TestResyncMovesTheDifferenceOnly(t *testing.T) {
	r := rig.New(t, 4000*rig.Block)
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	for i := range int64(2000) {
		r.Write(0, i, []byte(strings.Repeat(string(rune('a'+i%26)), rig.Block)))
	}
	r.StartAgent(1)
	r.Await("complete", complete)
	before := r.Points()
	r.StopAgent()
	for _, at := range []int64{7, 8, 900, 3999} {
		r.Write(0, at, []byte(strings.Repeat("z", rig.Block)))
	}
	r.Write(0, 1000, nil)
	require.NoError(t, r.Server.MarkBroken(t.Context(), r.Machine, 1, pipe.Broken{Code: "DRV-3001", Cause: "test"}))
	r.StartAgent(1)
	require.NotNil(t, r.Status().Broken)
	require.NoError(t, r.Server.StartBase(t.Context(), r.Machine, 1, "resync", false))
	st := r.Await("complete again", func(st pipe.Status) bool { return st.Generation == 2 && complete(st) && !st.BaseFinished.IsZero() })
	require.Nil(t, st.Broken)
	require.Equal(t, int64(4*rig.Block), st.BaseDataBytes)
	require.Less(t, st.BaseWireBytes, int64(64<<10))
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	after := map[ident.Seq]bool{}
	for _, p := range r.Points() {
		after[p.ID] = true
	}
	for _, p := range before {
		require.True(t, after[p.ID], "point %d from before the resync", p.ID)
	}
}

// TestNewOwnerGoesOnWithoutAResync: a machine moves to another epoch, as when its
// server is replaced; the agent knows where the replica stands and sends no more.
func TestNewOwnerGoesOnWithoutAResync(t *testing.T) {
	r := rig.New(t, 500*rig.Block)
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.Write(0, 1, []byte(strings.Repeat("a", rig.Block)))
	r.StartAgent(1)
	r.Await("complete", complete)
	r.StopAgent()
	r.Grant(2, 20*time.Millisecond)
	r.Write(0, 2, []byte(strings.Repeat("b", rig.Block)))
	r.StartAgent(2)
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	st := r.Status()
	require.Equal(t, uint32(1), st.Generation)
	require.Equal(t, int64(rig.Block), st.DataBytes, "one block changed")
	require.ErrorIs(t, r.Server.MarkBroken(t.Context(), r.Machine, 1, pipe.Broken{}), replica.ErrFenced)
}

// TestAgentOfAnotherReleaseIsUpgraded: servers are upgraded past an agent, which is refused
// and says so, and nothing of it is taken; once it is upgraded it goes on where it was.
func TestAgentOfAnotherReleaseIsUpgraded(t *testing.T) {
	r := rig.New(t, 500*rig.Block)
	release := "v1.4.0"
	r.Configure = func(c *server.Config) { c.Version = release }
	r.Version = "1.1.2"
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.Write(0, 1, []byte(strings.Repeat("a", rig.Block)))
	r.StartAgent(1)
	r.Await("complete", complete)
	r.StopServer()
	release = "v1.6.0"
	r.StartServer()
	const why = "DRV-2105: the agent is of release 1.1, more than 4 minor releases older than the server's 1.6: upgrade the agent"
	require.Eventually(t, func() bool {
		st := r.State() // first the old server refuses, as it is stopping
		return st.Word == session.StateRefused && strings.Contains(st.Detail, why)
	}, 20*time.Second, 5*time.Millisecond)
	before := r.Status()
	require.False(t, before.Connected)
	r.StopAgent()
	r.Write(0, 2, []byte(strings.Repeat("b", rig.Block)))
	r.Version = "1.2.0"
	r.StartAgent(1)
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Equal(t, uint32(1), r.Status().Generation, "no resync")
	require.Nil(t, r.Status().Broken)
}

// Every stage that a chunk passes has its part in the disk's times, and the codec
// that the policy asks for is used where it says.
func TestWaitsAndCompression(t *testing.T) {
	for _, c := range []codec.Choice{{}, {Codec: "zstd"}, {Codec: "none"}, {Codec: "s2", At: codec.AtServer}} {
		t.Run(c.Codec+c.At, func(t *testing.T) {
			r := rig.New(t, 2000*rig.Block, 100*rig.Block)
			text := bytes.Repeat([]byte("compresses well "), rig.Block/16)
			for at := range int64(900) {
				r.Write(0, 2*at, text)
			}
			r.StartServer()
			r.Compression = c
			r.Grant(1, 20*time.Millisecond)
			r.StartAgent(1)
			r.Await("the base", complete)
			require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
			st := r.Status()
			times := st.Disks[0].Times
			require.Positive(t, times.Chunks)
			require.Zero(t, st.Disks[1].Times.Chunks, "it holds nothing")
			for stage, spent := range times.Spent {
				if waterfall.Stage(stage) == waterfall.Compress && c.Codec == "none" {
					continue
				}
				require.Positive(t, spent, "%s", waterfall.Stage(stage))
			}
			plain := int64(900 * rig.Block)
			require.GreaterOrEqual(t, st.BaseDataBytes, plain)
			small := func(n int64) bool { return n < plain/4 }
			require.Equal(t, c.Codec != "none" && c.At != codec.AtServer, small(st.BaseWireBytes), "%d on the wire", st.BaseWireBytes)
			require.Equal(t, c.Codec != "none", small(st.CacheBytes), "%d into the cache", st.CacheBytes)
		})
	}
}
