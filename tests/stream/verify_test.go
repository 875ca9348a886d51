package stream

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker"
	"drover/datapath/attest"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/replica"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

// blind is a tracker that misses changes of one block, until it is told to forget it.
type blind struct {
	tracker.Tracker
	mu     sync.Mutex
	block  int64 // in bytes
	hidden bool
	deaf   bool // it does not forget either
}

func (b *blind) hide(at int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.block, b.hidden = at*rig.Block, true
}

func (b *blind) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	return b.Tracker.Pass(ctx, disk, func(e changeset.Extent) error {
		b.mu.Lock()
		hidden := b.hidden && e.Offset <= b.block && b.block < e.Offset+e.Length
		b.mu.Unlock()
		if hidden {
			return nil
		}
		return emit(e)
	}, p)
}

func (b *blind) Forget(disk int, r checksum.Range) {
	b.mu.Lock()
	if !b.deaf && r.Offset <= b.block && b.block < r.End() {
		b.hidden = false
	}
	b.mu.Unlock()
	b.Tracker.Forget(disk, r)
}

func protected(t *testing.T, change func(*rig.Rig), blocks ...int64) *rig.Rig {
	t.Helper()
	sizes := make([]int64, len(blocks))
	for i, n := range blocks {
		sizes[i] = n * rig.Block
	}
	r := rig.New(t, sizes...)
	if change != nil {
		change(r)
	}
	for i, n := range blocks {
		for at := int64(0); at < n; at += 3 {
			r.Write(i, at, noiseBlock(uint64(at)))
		}
	}
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	return r
}

func noiseBlock(seed uint64) []byte {
	b := make([]byte, rig.Block)
	g := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = g.Read(b)
	return b
}

// verify compares and checks the record's signature and that its digests are those of
// its recovery point.
func verify(t *testing.T, r *rig.Rig, order pipe.VerifyOrder) pipe.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
	defer cancel()
	signed, err := r.Server.Verify(ctx, r.Machine, 1, order)
	require.NoError(t, err)
	record, signer, err := attest.Check(signed, r.CA.Pool)
	require.NoError(t, err)
	require.Equal(t, rig.ServerPeer, signer)
	require.Equal(t, r.Machine, record.Machine)
	require.Equal(t, order.Deep, record.Deep)
	require.Len(t, record.Disks, len(r.Disks))
	for _, d := range record.Disks {
		open, err := r.Reader().OpenDisk(t.Context(), record.Point, d.ID)
		require.NoError(t, err)
		digest, err := attest.Digest(open)
		require.NoError(t, err)
		require.Equal(t, digest, d.Digest)
		require.NoError(t, open.Close())
	}
	return record
}

// TestVerifyWhileTheMachineWrites: a source that is written all the time is found equal,
// and nothing of it is taken for a difference.
func TestVerifyWhileTheMachineWrites(t *testing.T) {
	r := protected(t, nil, 3000, 700)
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := uint64(1); ctx.Err() == nil; i++ {
			r.Write(int(i%2), int64(i*37%700), noiseBlock(i))
			time.Sleep(time.Millisecond)
			if i%50 == 0 { // without hooks a cut needs a quiet moment, however slow it is
				quiet(ctx, r)
			}
		}
	})
	for _, order := range []pipe.VerifyOrder{{}, {Deep: true}} {
		record := verify(t, r, order)
		require.Contains(t, []pipe.Verdict{pipe.VerdictEqual, pipe.VerdictUnsettled}, record.Verdict)
		require.Zero(t, record.Differed())
	}
	stop()
	writing.Wait()
	record := verify(t, r, pipe.VerifyOrder{Deep: true})
	require.Equal(t, pipe.VerdictEqual, record.Verdict)
	for _, p := range r.Points() {
		if p.ID == record.Point {
			require.Equal(t, r.Digest(), r.DigestAt(p))
		}
	}
	documents, err := os.ReadFile(filepath.Join(r.StoreDir(), "documents", "verified-"+r.Machine.String()))
	require.NoError(t, err)
	signed, err := attest.Parse(documents)
	require.NoError(t, err)
	kept, _, err := attest.Check(signed, r.CA.Pool)
	require.NoError(t, err, "also as it is kept in the store, indented")
	require.Equal(t, record, kept)
}

// quiet waits until a point was made of what is there now.
func quiet(ctx context.Context, r *rig.Rig) {
	for last, made := r.Status().LastPoint, 0; made < 2 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if p := r.Status().LastPoint; p != last {
			last, made = p, made+1
		}
	}
}

// TestVerifyFindsWhatTheTrackerMissed and has it sent again.
func TestVerifyFindsWhatTheTrackerMissed(t *testing.T) {
	var b *blind
	r := protected(t, func(r *rig.Rig) {
		r.Track = func(inner tracker.Tracker) tracker.Tracker {
			b = &blind{Tracker: inner}
			return b
		}
	}, 2000, 500)
	b.hide(44)
	r.Write(1, 44, noiseBlock(4711))
	require.NotEqual(t, r.Digest(), r.DigestAt(r.AfterNow()), "missed")
	record := verify(t, r, pipe.VerifyOrder{})
	require.Equal(t, pipe.VerdictMended, record.Verdict)
	require.Zero(t, record.Disks[0].Differed)
	require.Equal(t, pipe.VerifiedDisk{ID: r.Disks[1].ID, Size: r.Disks[1].Size, Seed: record.Disks[1].Seed, Digest: record.Disks[1].Digest,
		Differed: rig.Block, Mended: rig.Block, First: []int64{44 * rig.Block}}, record.Disks[1])
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Equal(t, pipe.VerdictEqual, verify(t, r, pipe.VerifyOrder{Deep: true}).Verdict)
	require.Nil(t, r.Status().Broken)
}

// TestVerifyMarksWhatCannotBeMended for resync, and a resync mends it.
func TestVerifyMarksWhatCannotBeMended(t *testing.T) {
	var b *blind
	r := protected(t, func(r *rig.Rig) {
		r.Track = func(inner tracker.Tracker) tracker.Tracker {
			b = &blind{Tracker: inner, deaf: true}
			return b
		}
	}, 500)
	b.hide(44)
	r.Write(0, 44, noiseBlock(4711))
	record := verify(t, r, pipe.VerifyOrder{})
	require.Equal(t, pipe.VerdictDifferent, record.Verdict)
	require.EqualValues(t, rig.Block, record.Disks[0].Differed)
	require.Zero(t, record.Disks[0].Mended)
	st := r.Await("marked", func(st pipe.Status) bool { return st.Broken != nil })
	require.Equal(t, "DRV-3401", st.Broken.Code)
}

// restless is a tracker of a machine that writes before every pass, once it was told to.
type restless struct {
	tracker.Tracker
	write atomic.Pointer[func()]
}

func (r *restless) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	if write := r.write.Load(); write != nil {
		(*write)()
	}
	return r.Tracker.Pass(ctx, disk, emit, p)
}

// TestVerifyWithoutAQuietMoment: a machine without quiesce programs that never stops
// writing has no points to compare with. That is told, and does not go on for ever.
func TestVerifyWithoutAQuietMoment(t *testing.T) {
	var busy *restless
	r := protected(t, func(r *rig.Rig) {
		r.Configure = func(c *server.Config) { c.VerifyPatience = 500 * time.Millisecond }
		r.Track = func(inner tracker.Tracker) tracker.Tracker {
			busy = &restless{Tracker: inner}
			return busy
		}
	}, 3000)
	n := uint64(1 << 16) // of the one goroutine that makes passes; none of these was written before
	write := func() {
		n++
		r.Write(0, int64(n%7), noiseBlock(n))
	}
	busy.write.Store(&write)
	_, err := r.Server.Verify(t.Context(), r.Machine, 1, pipe.VerifyOrder{})
	require.ErrorContains(t, err, "it waits for a recovery point; if the machine never stops writing, configure quiesce programs")
	require.Nil(t, r.Status().Verify)
}

// TestDeepVerifyFindsRot: a bit that has turned in the replica's image is found by
// reading it back, not by the map of checksums, and is mended from the source.
func TestDeepVerifyFindsRot(t *testing.T) {
	r := protected(t, nil, 2000)
	images, err := filepath.Glob(filepath.Join(r.StoreDir(), "machines", r.Machine.String(), "disks", "*"))
	require.NoError(t, err)
	require.Len(t, images, 1)
	image, err := os.OpenFile(images[0], os.O_RDWR, 0)
	require.NoError(t, err)
	at := int64(999)*rig.Block + 17
	one := make([]byte, 1)
	_, err = image.ReadAt(one, at)
	require.NoError(t, err)
	one[0] ^= 4
	_, err = image.WriteAt(one, at)
	require.NoError(t, err)
	require.NoError(t, image.Close())
	require.Equal(t, pipe.VerdictEqual, verify(t, r, pipe.VerifyOrder{}).Verdict)
	record := verify(t, r, pipe.VerifyOrder{Deep: true})
	require.Equal(t, pipe.VerdictMended, record.Verdict)
	require.Equal(t, []int64{999 * rig.Block}, record.Disks[0].First)
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Equal(t, pipe.VerdictEqual, verify(t, r, pipe.VerifyOrder{Deep: true}).Verdict)
}

// TestVerifyGoesOnInTheNextSession: a line that breaks costs no more than a window.
func TestVerifyGoesOnInTheNextSession(t *testing.T) {
	line := &breakable{}
	r := protected(t, func(r *rig.Rig) { r.Dial = line.dial }, 6000)
	sessions := len(r.Ended())
	done := make(chan pipe.Record, 1)
	go func() { done <- verify(t, r, pipe.VerifyOrder{Rate: 16 << 20}) }() // 1.4 s
	r.Await("compared", func(st pipe.Status) bool { return st.Verify != nil })
	line.arm(10)
	require.Eventually(t, func() bool { return len(r.Ended()) > sessions }, rig.Limit, time.Millisecond)
	require.Equal(t, pipe.VerdictEqual, (<-done).Verdict)
	require.Nil(t, r.Status().Verify)
}

// TestVerifyIsGivenUp: when nobody waits for it any more the agent stops, and another
// one can begin. Two that want the same share one; one of another depth is refused.
func TestVerifyIsGivenUp(t *testing.T) {
	r := protected(t, nil, 6000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := r.Server.Verify(ctx, r.Machine, 1, pipe.VerifyOrder{Rate: 1 << 20}) // 24 s
			done <- err
		}()
	}
	r.Await("compared", func(st pipe.Status) bool { return st.Verify != nil })
	_, err := r.Server.Verify(t.Context(), r.Machine, 1, pipe.VerifyOrder{Deep: true})
	require.ErrorContains(t, err, "not of the same depth")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.ErrorIs(t, <-done, context.Canceled)
	require.Nil(t, r.Status().Verify)
	require.Equal(t, pipe.VerdictEqual, verify(t, r, pipe.VerifyOrder{Deep: true}).Verdict)
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(r.Points(), func(p replica.Point) bool { return len(p.Holds) > 0 })
	}, rig.Limit, time.Millisecond, "nothing is held any more")
}

// TestVerifyWhatCannotBe: a machine that is not complete, one that breaks meanwhile, and
// a disk that cannot be read.
func TestVerifyWhatCannotBe(t *testing.T) {
	r := rig.New(t, 100*rig.Block)
	r.Configure = func(c *server.Config) { c.VerifyPatience = 2 * time.Second }
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	_, err := r.Server.Verify(t.Context(), r.Machine, 1, pipe.VerifyOrder{})
	require.ErrorContains(t, err, "not complete")
	r.Write(0, 1, bytes.Repeat([]byte{1}, rig.Block))
	r.StartAgent(1)
	r.Await("complete", complete)

	path := r.Path(r.Disks[0].BackingUUID)
	require.NoError(t, os.Rename(path, path+".away")) // the session has it open, until it notices
	_, err = r.Server.Verify(t.Context(), r.Machine, 1, pipe.VerifyOrder{})
	require.Regexp(t, "the agent could not compare: open disk|it waits for the agent, which is not connected", err)
	require.NoError(t, os.Rename(path+".away", path))
	r.Await("connected", func(st pipe.Status) bool { return st.Connected })

	done := make(chan error, 1)
	r.StopAgent()
	go func() {
		_, err := r.Server.Verify(t.Context(), r.Machine, 1, pipe.VerifyOrder{})
		done <- err
	}()
	r.Await("asked for", func(st pipe.Status) bool { return st.Verify != nil })
	require.NoError(t, r.Server.MarkBroken(t.Context(), r.Machine, 1, pipe.Broken{Code: "DRV-3001", Cause: "test"}))
	err = <-done
	require.ErrorContains(t, err, "marked for resync")
	require.False(t, errors.Is(err, context.Canceled))
}
