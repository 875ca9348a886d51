package pipeline_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
)

// leave has n sets stored in the cache storage and not applied.
func (r *rig) leave(n int) {
	r.t.Helper()
	r.run()
	r.add(1)
	r.drain()
	r.faults.set("before apply", true, 0)
	r.add(n)
	r.noted(func() bool { return len(r.stored) == n+1 })
}

func TestSpoolLost(t *testing.T) {
	r := newRig(t)
	r.leave(3)
	want, _ := r.pipe.Tail()
	r.halt()
	require.NoError(t, os.RemoveAll(filepath.Join(r.dir, "spool"))) // a new process server
	r.epoch = 2
	require.NoError(t, r.cache.Fence(t.Context(), machineID, r.epoch))
	r.restart()
	tail, whole := r.pipe.Tail()
	require.Equal(t, want, tail)
	require.True(t, whole)
	r.whole(4)
	r.add(2)
	r.whole(6)
}

func TestSpoolLostInPart(t *testing.T) {
	r := newRig(t)
	r.leave(3)
	r.halt()
	files, err := filepath.Glob(filepath.Join(r.dir, "spool", "*", "*.cs"))
	require.NoError(t, err)
	require.Len(t, files, 3)
	require.NoError(t, os.Remove(files[1])) // the cache has it
	r.restart()
	r.whole(4)
}

func TestDamagedSpoolIsReplacedByTheCache(t *testing.T) {
	r := newRig(t)
	r.leave(3)
	r.halt()
	files, err := filepath.Glob(filepath.Join(r.dir, "spool", "*", "*.cs"))
	require.NoError(t, err)
	require.Len(t, files, 3)
	whole, err := os.ReadFile(files[1])
	require.NoError(t, err)
	require.NoError(t, os.Remove(files[1])) // the cache may have the same file under another name
	require.NoError(t, os.WriteFile(files[1], whole[:100], 0o600))
	r.restart()
	r.whole(4)
	require.Empty(t, r.broken)
}

// Of two sets in one place the chain tells which one counts.
func TestStaleSetsAreDropped(t *testing.T) {
	r := newRig(t)
	r.leave(2)
	at := r.writer.State().Position
	r.halt()
	// The sets 2 and 3 of epoch 1 are never seen by the new owner, who makes its own.
	state := filepath.Join(r.dir, "spool")
	require.NoError(t, os.Rename(state, state+".away"))
	cached, err := r.cache.List(t.Context(), machineID)
	require.NoError(t, err)
	require.Len(t, cached, 2)
	require.NoError(t, os.Rename(filepath.Join(r.dir, "cache"), filepath.Join(r.dir, "cache.away")))
	require.NoError(t, os.Mkdir(filepath.Join(r.dir, "cache"), 0o750))
	r.epoch = 2
	r.now = bytes.Clone(r.content[1])
	r.restart()
	e, s := r.spooled(at, 0xEE)
	r.pipe.Add(e, s, nil, nil)
	r.whole(2)
	r.halt()
	// Now they come to light again, beside a set of the new owner.
	require.NoError(t, os.RemoveAll(state))
	require.NoError(t, os.Rename(state+".away", state))
	require.NoError(t, os.RemoveAll(filepath.Join(r.dir, "cache")))
	require.NoError(t, os.Rename(filepath.Join(r.dir, "cache.away"), filepath.Join(r.dir, "cache")))
	r.open()
	_, third := r.spooled(s.Position(), 0xEF)
	r.run()
	tail, _ := r.pipe.Tail()
	require.Equal(t, third.Position(), tail)
	r.whole(3)
	require.Empty(t, r.broken)
}

func TestSetsOfAnOlderGenerationAreDropped(t *testing.T) {
	r := newRig(t)
	r.leave(2)
	r.halt()
	r.open()
	require.NoError(t, r.writer.BeginGeneration(t.Context(), r.spec().Disks, false, nil))
	r.run()
	tail, whole := r.pipe.Tail()
	require.Equal(t, ident.Seq(1), tail.Seq)
	require.False(t, whole)
	r.nothingLeft()
}

func TestDiscard(t *testing.T) {
	r := newRig(t)
	r.leave(2)
	r.pipe.Stop()
	require.NoError(t, pipeline.Discard(t.Context(), r.config()))
	r.nothingLeft()
}

func TestGapIsNoticed(t *testing.T) {
	r := newRig(t)
	r.run()
	r.faults.set("before put", true, 0)
	r.add(3)
	r.halt()
	files, err := filepath.Glob(filepath.Join(r.dir, "spool", "*", "*.cs"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(files[1]))
	r.open()
	_, err = pipeline.Start(t.Context(), r.config())
	require.ErrorIs(t, err, replica.ErrCorrupt)
}

func TestErrorsOfTheCacheAreRetried(t *testing.T) {
	r := newRig(t)
	r.run()
	r.faults.set("before put", false, 2)
	r.faults.set("after apply", false, 1)
	r.add(2)
	r.whole(2)
	require.Equal(t, []ident.Seq{1, 2}, r.applied)
	require.Empty(t, r.broken)
	require.Equal(t, 4, r.faults.count("before put"))
}

func TestFenced(t *testing.T) {
	for name, fence := range map[string]func(r *rig) error{
		"by the cache":   func(r *rig) error { return r.cache.Fence(r.t.Context(), machineID, 2) },
		"by the replica": func(r *rig) error { return r.store.Fence(r.t.Context(), machineID, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.run()
			r.add(1)
			r.drain()
			require.NoError(t, fence(r))
			r.add(1)
			r.noted(func() bool { return len(r.fenced) == 1 })
			require.ErrorIs(t, r.pipe.Drain(t.Context()), pipeline.ErrStopped)
			require.Empty(t, r.broken)
			require.Equal(t, ident.Seq(1), r.writer.State().Position.Seq)
		})
	}
}

func TestDamageBreaks(t *testing.T) {
	r := newRig(t)
	r.run()
	r.add(1)
	r.drain()
	r.faults.set("before put", true, 0)
	r.add(1)
	files, err := filepath.Glob(filepath.Join(r.dir, "spool", "*", "*.cs"))
	require.NoError(t, err)
	require.NoError(t, os.Truncate(files[0], 100))
	r.faults.set("before put", false, 0)
	r.noted(func() bool { return len(r.broken) == 1 })
	require.ErrorIs(t, r.pipe.Drain(t.Context()), pipeline.ErrStopped)
	require.Empty(t, r.fenced)
}

func TestDrainAndStop(t *testing.T) {
	r := newRig(t)
	r.run()
	r.faults.set("before put", true, 0)
	r.add(1)
	sets, size := r.pipe.Backlog()
	require.Equal(t, 1, sets)
	require.Positive(t, size)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.pipe.Drain(ctx), context.Canceled)
	waited := make(chan error, 1)
	go func(p *pipeline.Pipeline) { waited <- p.Drain(context.Background()) }(r.pipe)
	r.pipe.Stop()
	require.ErrorIs(t, <-waited, pipeline.ErrStopped)
}

func TestThinning(t *testing.T) {
	r := newRig(t)
	r.retention = replica.Retention{Keep: 5 * time.Minute, Steps: []replica.ThinStep{{Until: 5 * time.Minute}}}
	r.run()
	r.add(20)
	r.drain()
	r.noted(func() bool { return len(r.applied) == 20 })
	points := r.writer.State().Points
	require.Equal(t, ident.Seq(15), points[0].ID, "older than five minutes")
	require.Equal(t, ident.Seq(20), points[len(points)-1].ID)
	require.Len(t, points, 6)
	r.nothingLeft()
}

// What an older owner spooled and did not store any more is the machine's past too;
// the cache storage takes it no more.
func TestSetsThatAnOlderOwnerDidNotStoreAreApplied(t *testing.T) {
	r := newRig(t)
	r.run()
	r.add(1)
	r.drain()
	at, _ := r.pipe.Tail()
	r.halt()
	r.open()
	_, s := r.spooled(at, 7)
	r.epoch = 2
	require.NoError(t, r.cache.Fence(t.Context(), machineID, r.epoch))
	r.restart()
	r.drain()
	tail, _ := r.pipe.Tail()
	require.Equal(t, s.Position(), tail)
	r.whole(2)
	require.Empty(t, r.fenced)
	require.Empty(t, r.broken)
}
