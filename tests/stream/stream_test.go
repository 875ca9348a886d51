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

	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	pipe "drover/datapath/stream"
	"drover/datapath/waterfall"
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
	sizes := []int64{300*block + 1024, 200 * block}
	r := newRig(t, sizes...)
	line := &breakable{}
	r.dial = line.dial
	r.startServer()
	r.grant(1, 10*time.Millisecond)

	moments := map[string]int{r.digest(): 0} // content -> the newest write after which it was so
	write := func() {
		disk := rnd.IntN(len(sizes))
		at := rnd.Int64N(sizes[disk] / block)
		var data []byte
		if rnd.IntN(4) > 0 {
			data = make([]byte, block)
			for i := range data {
				data[i] = byte(rnd.Uint32() >> (i % 3)) //nolint:gosec // any bytes
			}
		}
		r.write(disk, at, data)
		moments[r.digest()] = len(moments)
	}
	for range 150 {
		write()
	}
	r.startAgent(1)
	for round := range rounds {
		for range rnd.IntN(12) {
			write()
		}
		switch rnd.IntN(8) {
		case 0:
			r.stopAgent()
			write()
			r.startAgent(1)
		case 1:
			r.stop()
			write()
			r.startServer()
		default:
			line.arm(rnd.Int64N(64 << 10))
		}
		time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
		if round%8 == 7 {
			r.afterNow()
		}
	}
	line.armed.Store(false)
	last := r.afterNow()
	require.Equal(t, r.digest(), r.digestAt(last), "the last point is the source")
	st := r.status()
	require.Nil(t, st.Broken)
	require.Equal(t, uint32(1), st.Generation, "nothing here needs a resync")
	r.stopAgent() // else there are new points faster than old ones are read
	checkMoments(t, r, moments)
}

func checkMoments(t *testing.T, r *rig, moments map[string]int) {
	t.Helper()
	newest := -1
	points := r.points()
	for _, p := range points {
		at, ok := moments[r.digestAt(p)]
		require.True(t, ok, "point %d is no moment of the source", p.ID)
		require.GreaterOrEqual(t, at, newest, "point %d is older than the one before", p.ID)
		newest = at
	}
	require.Greater(t, len(points), 5)
	t.Logf("%d points, %d moments", len(points), len(moments))
}

// hook writes a program that notes each call.
func (r *rig) hook(name, body string) (program, log string) {
	r.t.Helper()
	log = filepath.Join(r.dir, name+".log")
	program = filepath.Join(r.dir, name)
	text := "#!/bin/sh\necho $DROVER_PHASE $DROVER_SEQ $DROVER_FINAL >> " + log + "\n" + body + "\n"
	require.NoError(r.t, os.WriteFile(program, []byte(text), 0o700))
	return program, log
}

// calls reads a hook's log.
func (r *rig) calls(log string) []string {
	r.t.Helper()
	b, err := os.ReadFile(log)
	require.NoError(r.t, err)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func (r *rig) freezable(pre string) (log string) {
	program, log := r.hook("hook", pre)
	r.hooks.Pre, r.hooks.Post, r.hooks.Timeout = []string{program}, []string{program}, 5*time.Second
	r.hooks.Marker = filepath.Join(r.dir, "frozen")
	return log
}

func complete(st pipe.Status) bool { return st.Complete && st.Points > 0 }

func TestFrozenCutsAreApplicationConsistent(t *testing.T) {
	r := newRig(t, 64*block)
	log := r.freezable("")
	r.startServer()
	r.grant(1, 20*time.Millisecond)
	r.write(0, 3, []byte(strings.Repeat("x", block)))
	r.startAgent(1)
	r.await("complete", complete)
	p := r.afterNow()
	require.Equal(t, ident.ApplicationConsistent, p.Consistency)
	require.Equal(t, r.digest(), r.digestAt(p))
	require.Positive(t, p.Freeze)
	r.stopAgent()
	calls := r.calls(log)
	for i := 0; i+1 < len(calls); i += 2 {
		freeze, thaw := strings.Fields(calls[i]), strings.Fields(calls[i+1])
		require.Equal(t, "freeze", freeze[0])
		require.Equal(t, "thaw", thaw[0])
		require.Equal(t, freeze[1:], thaw[1:], "the same cut")
	}
	require.NoFileExists(t, r.hooks.Marker)
}

func TestFinalCutHoldsTheSourceUntilRelease(t *testing.T) {
	r := newRig(t, 64*block)
	r.freezable("")
	line := &breakable{}
	r.dial = line.dial
	r.startServer()
	r.grant(1, 50*time.Millisecond)
	r.startAgent(1)
	r.await("complete", complete)
	r.write(0, 5, []byte(strings.Repeat("y", block)))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p, err := r.server.Cut(ctx, r.machine, 1, true)
	require.NoError(t, err)
	require.True(t, p.Final)
	require.Equal(t, r.digest(), r.digestAt(p))
	require.FileExists(t, r.hooks.Marker, "the source stays frozen")

	line.arm(0)
	r.await("the line breaks", func(st pipe.Status) bool { return !line.armed.Load() })
	r.await("a new session", func(st pipe.Status) bool { return st.Connected })
	again, err := r.server.Cut(ctx, r.machine, 1, true)
	require.NoError(t, err)
	require.Equal(t, p.ID, again.ID, "asked twice, made once")
	r.stop()
	r.startServer()
	r.await("a session after a restart", func(st pipe.Status) bool { return st.Connected })
	require.FileExists(t, r.hooks.Marker)
	require.Equal(t, p.ID, r.points()[len(r.points())-1].ID, "no points while it is frozen")

	require.NoError(t, r.server.Release(t.Context(), r.machine, 1))
	next := r.afterNow()
	require.False(t, next.Final)
	r.stopAgent()
	require.NoFileExists(t, r.hooks.Marker)
}

func TestAgentThatStopsThawsTheSource(t *testing.T) {
	r := newRig(t, 16*block)
	r.freezable("")
	r.startServer()
	r.grant(1, 50*time.Millisecond)
	r.startAgent(1)
	r.await("complete", complete)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := r.server.Cut(ctx, r.machine, 1, true)
	require.NoError(t, err)
	r.stopAgent()
	require.NoFileExists(t, r.hooks.Marker)
}

func TestHookThatFailsCostsConsistencyNotThePoint(t *testing.T) {
	r := newRig(t, 16*block)
	r.freezable("[ $DROVER_PHASE = thaw ] || { echo the database does not answer; exit 7; }")
	r.startServer()
	r.grant(1, 20*time.Millisecond)
	r.startAgent(1)
	r.await("complete", complete)
	p := r.afterNow()
	require.Equal(t, ident.CrashConsistent, p.Consistency)
	require.Contains(t, p.Note, "the database does not answer")
	require.Equal(t, r.digest(), r.digestAt(p))
}

func TestResyncMovesTheDifferenceOnly(t *testing.T) {
	r := newRig(t, 4000*block)
	r.startServer()
	r.grant(1, 20*time.Millisecond)
	for i := range int64(2000) {
		r.write(0, i, []byte(strings.Repeat(string(rune('a'+i%26)), block)))
	}
	r.startAgent(1)
	r.await("complete", complete)
	before := r.points()
	r.stopAgent()
	for _, at := range []int64{7, 8, 900, 3999} {
		r.write(0, at, []byte(strings.Repeat("z", block)))
	}
	r.write(0, 1000, nil)
	require.NoError(t, r.server.MarkBroken(t.Context(), r.machine, 1, pipe.Broken{Code: "DRV-3001", Cause: "test"}))
	r.startAgent(1)
	require.NotNil(t, r.status().Broken)
	require.NoError(t, r.server.StartBase(t.Context(), r.machine, 1, "resync", false))
	st := r.await("complete again", func(st pipe.Status) bool { return st.Generation == 2 && complete(st) && !st.BaseFinished.IsZero() })
	require.Nil(t, st.Broken)
	require.Equal(t, int64(4*block), st.BaseDataBytes)
	require.Less(t, st.BaseWireBytes, int64(64<<10))
	require.Equal(t, r.digest(), r.digestAt(r.afterNow()))
	after := map[ident.Seq]bool{}
	for _, p := range r.points() {
		after[p.ID] = true
	}
	for _, p := range before {
		require.True(t, after[p.ID], "point %d from before the resync", p.ID)
	}
}

// TestNewOwnerGoesOnWithoutAResync: a machine moves to another epoch, as when its
// server is replaced; the agent knows where the replica stands and sends no more.
func TestNewOwnerGoesOnWithoutAResync(t *testing.T) {
	r := newRig(t, 500*block)
	r.startServer()
	r.grant(1, 20*time.Millisecond)
	r.write(0, 1, []byte(strings.Repeat("a", block)))
	r.startAgent(1)
	r.await("complete", complete)
	r.stopAgent()
	r.grant(2, 20*time.Millisecond)
	r.write(0, 2, []byte(strings.Repeat("b", block)))
	r.startAgent(2)
	require.Equal(t, r.digest(), r.digestAt(r.afterNow()))
	st := r.status()
	require.Equal(t, uint32(1), st.Generation)
	require.Equal(t, int64(block), st.DataBytes, "one block changed")
	require.ErrorIs(t, r.server.MarkBroken(t.Context(), r.machine, 1, pipe.Broken{}), replica.ErrFenced)
}

// Every stage that a chunk passes has its part in the disk's times, and the codec
// that the policy asks for is used where it says.
func TestWaitsAndCompression(t *testing.T) {
	for _, c := range []codec.Choice{{}, {Codec: "zstd"}, {Codec: "none"}, {Codec: "s2", At: codec.AtServer}} {
		t.Run(c.Codec+c.At, func(t *testing.T) {
			r := newRig(t, 2000*block, 100*block)
			text := bytes.Repeat([]byte("compresses well "), block/16)
			for at := range int64(900) {
				r.write(0, 2*at, text)
			}
			r.startServer()
			r.compression = c
			r.grant(1, 20*time.Millisecond)
			r.startAgent(1)
			r.await("the base", complete)
			require.Equal(t, r.digest(), r.digestAt(r.afterNow()))
			st := r.status()
			times := st.Disks[0].Times
			require.Positive(t, times.Chunks)
			require.Zero(t, st.Disks[1].Times.Chunks, "it holds nothing")
			for stage, spent := range times.Spent {
				if waterfall.Stage(stage) == waterfall.Compress && c.Codec == "none" {
					continue
				}
				require.Positive(t, spent, "%s", waterfall.Stage(stage))
			}
			plain := int64(900 * block)
			require.GreaterOrEqual(t, st.BaseDataBytes, plain)
			small := func(n int64) bool { return n < plain/4 }
			require.Equal(t, c.Codec != "none" && c.At != codec.AtServer, small(st.BaseWireBytes), "%d on the wire", st.BaseWireBytes)
			require.Equal(t, c.Codec != "none", small(st.CacheBytes), "%d into the cache", st.CacheBytes)
		})
	}
}
