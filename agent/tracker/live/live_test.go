package live

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

const block = checksum.BlockSize

// kernel is block devices in memory and a source that sees the writes to them. It
// outlives trackers, as the real one does processes.
type kernel struct {
	mu      sync.Mutex
	data    [][]byte
	seen    []map[int64]bool // since the last Drain
	pending []map[int64]int  // writes that were issued and are not complete
	memory  map[string][]byte
	follows bool
	gap     string
	failing error
}

func newKernel(sizes ...int64) *kernel {
	k := &kernel{memory: map[string][]byte{}}
	for _, n := range sizes {
		k.data = append(k.data, make([]byte, n))
		k.seen = append(k.seen, map[int64]bool{})
		k.pending = append(k.pending, map[int64]int{})
	}
	return k
}

// write issues a write and gives what completes it.
func (k *kernel) write(disk int, off int64, p []byte) (complete func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first, end := off/block, checksum.Blocks(off+int64(len(p)))
	for b := first; b < end; b++ {
		k.pending[disk][b]++
		k.seen[disk][b] = true
	}
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		copy(k.data[disk][off:], p)
		for b := first; b < end; b++ {
			if k.pending[disk][b]--; k.pending[disk][b] == 0 {
				delete(k.pending[disk], b)
			}
			k.seen[disk][b] = true
		}
	}
}

func (k *kernel) Name() string { return "double" }

func (k *kernel) Follow(devices []changes.Device) ([]bool, error) {
	kept := make([]bool, len(devices))
	for i := range kept {
		kept[i] = k.follows
	}
	k.follows = true
	return kept, k.failing
}

func (k *kernel) Drain(device int, into changes.Bitmap) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for b := range k.seen[device] {
		into.Set(b, b+1)
	}
	for b := range k.pending[device] {
		into.Set(b, b+1)
	}
	k.seen[device] = map[int64]bool{}
	return k.failing
}

func (k *kernel) Gap() (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	gap := k.gap
	k.gap = ""
	return gap, k.failing
}

func (k *kernel) Memory(device int, name string, n int) ([]byte, bool, error) {
	key := string(rune('0'+device)) + name
	mem, kept := k.memory[key]
	if !kept {
		mem = make([]byte, n)
		k.memory[key] = mem
	}
	return mem, kept, nil
}

func (k *kernel) Counters() (map[string]uint64, error) { return nil, nil }

func (k *kernel) Close() error { return nil }

// device is a disk of the kernel's.
type device struct {
	k *kernel
	n int
}

func (d device) ReadAt(p []byte, off int64) (int, error) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if n := copy(p, d.k.data[d.n][off:]); n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

func (d device) CurrentSize() (int64, error) { return int64(len(d.k.data[d.n])), nil }

func (d device) NextData(off int64) (int64, int64, error) { return off, int64(len(d.k.data[d.n])), nil }

func (d device) Device() (changes.Device, error) {
	return changes.Device{Path: "double", Major: 7, Minor: uint32(9 - d.n), Size: int64(len(d.k.data[d.n]))}, nil
}

// world is a kernel, a tracker of its disks, and their replica: what is safe of it, and
// what was emitted since.
type world struct {
	t     *testing.T
	k     *kernel
	live  *Tracker
	safe  [][]byte
	since []changeset.Extent
	info  []changeset.Disk
}

func newWorld(t *testing.T, sizes ...int64) *world {
	w := &world{t: t, k: newKernel(sizes...)}
	for i, n := range sizes {
		w.safe = append(w.safe, make([]byte, n))
		w.info = append(w.info, changeset.Disk{ID: [16]byte{byte(i + 1)}, Size: n, Seed: uint64(i + 5)})
	}
	require.False(t, w.start())
	w.live.Begin(w.info)
	return w
}

// start is a new process.
func (w *world) start() (kept bool) {
	w.t.Helper()
	w.live = New(w.k)
	kept, err := w.live.Attach(w.devices())
	require.NoError(w.t, err)
	return kept
}

func (w *world) devices() (out []tracker.Disk) {
	for i := range w.k.data {
		out = append(out, device{w.k, i})
	}
	return out
}

func (w *world) emit(e changeset.Extent) error {
	require.Equal(w.t, e.Zero, len(e.Data) == 0)
	if !e.Zero {
		require.Equal(w.t, checksum.SumAll(nil, w.info[e.Disk].Seed, e.Offset, e.Data), e.Sums)
	}
	e.Data, e.Sums = slices.Clone(e.Data), nil
	w.since = append(w.since, e)
	return nil
}

func apply(to [][]byte, all []changeset.Extent) {
	for _, e := range all {
		if e.Zero {
			clear(to[e.Disk][e.Offset:][:e.Length])
		}
		copy(to[e.Disk][e.Offset:], e.Data)
	}
}

// pass passes over all disks and gives how many extents were emitted.
func (w *world) pass() int {
	w.t.Helper()
	before := len(w.since)
	for i := range w.k.data {
		require.NoError(w.t, w.live.Pass(w.t.Context(), i, w.emit, nil))
	}
	return len(w.since) - before
}

// settle makes all that was emitted safe.
func (w *world) settle(note string) {
	apply(w.safe, w.since)
	w.since = nil
	w.live.Keep([]byte(note), true)
}

// isReplica: what was emitted makes the replica what the disks are.
func (w *world) isReplica() {
	w.t.Helper()
	got := make([][]byte, len(w.safe))
	for i := range got {
		got[i] = slices.Clone(w.safe[i])
	}
	apply(got, w.since)
	for i := range got {
		if bytes.Equal(w.k.data[i], got[i]) {
			continue
		}
		for at := 0; at < len(got[i]); at += block {
			end := min(at+block, len(got[i]))
			require.Equal(w.t, w.k.data[i][at:end], got[i][at:end], "disk %d at %d", i, at)
		}
	}
}

func noise(rnd *rand.Rand, n int64) []byte {
	b := make([]byte, n)
	if rnd.IntN(4) == 0 {
		return b
	}
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// TestLives: whatever happens in whatever order, a quiet pass makes the replica what the
// disks are, unless the tracker says that it does not know.
func TestLives(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, 300*block+512, 64*block)
		var open []func()
		for range 60 {
			w.step(rnd, &open)
		}
		for _, complete := range open {
			complete()
		}
		w.pass()
		w.isReplica()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// step does one thing.
func (w *world) step(rnd *rand.Rand, open *[]func()) {
	switch rnd.IntN(12) {
	case 0, 1, 2, 3:
		disk := rnd.IntN(2)
		size := int64(len(w.k.data[disk]))
		off := rnd.Int64N(size/512) * 512
		complete := w.k.write(disk, off, noise(rnd, 1+rnd.Int64N(min(20*block, size-off))))
		*open = append(*open, complete)
	case 4, 5:
		if n := len(*open); n > 0 {
			i := rnd.IntN(n)
			(*open)[i]()
			*open = slices.Delete(*open, i, i+1)
		}
	case 6:
		w.pass()
	case 7: // the line breaks in the middle of a pass, and some of it is lost
		left := rnd.IntN(4)
		broken := errors.New("broken")
		err := w.live.Pass(w.t.Context(), rnd.IntN(2), func(e changeset.Extent) error {
			if left--; left < 0 {
				return broken
			}
			return w.emit(e)
		}, nil)
		if err != nil {
			require.ErrorIs(w.t, err, broken)
		}
		w.lose(rnd)
	case 8:
		w.settle("note")
	case 9:
		w.live.Keep([]byte("another"), false)
	case 10: // killed; of what was on its way a part has arrived
		apply(w.safe, w.since[:rnd.IntN(len(w.since)+1)])
		w.since = nil
		if !w.start() {
			w.learn(rnd)
		}
	case 11:
		w.k.gap = "lost events"
		require.ErrorIs(w.t, w.live.Pass(w.t.Context(), 0, w.emit, nil), tracker.ErrGap)
		require.ErrorIs(w.t, w.live.Pass(w.t.Context(), 1, w.emit, nil), tracker.ErrGap, "until it is compared")
		w.learn(rnd)
	}
}

// lose takes away the newest extents that are not safe, and says so.
func (w *world) lose(rnd *rand.Rand) {
	n := rnd.IntN(len(w.since) + 1)
	for _, e := range w.since[n:] {
		w.live.Forget(e.Disk, checksum.Range{Offset: e.Offset, Length: e.Length})
	}
	w.since = w.since[:n]
}

// learn compares with the replica.
func (w *world) learn(*rand.Rand) {
	w.t.Helper()
	apply(w.safe, w.since)
	w.since = nil
	w.live.Begin(w.info)
	for i := range w.k.data {
		theirs := checksum.SumAll(nil, w.info[i].Seed, 0, w.safe[i])
		require.NoError(w.t, w.live.Learn(w.t.Context(), i, func(x checksum.Window) error {
			for j, s := range x.Sums {
				if b := x.First + int64(j); theirs[b] != s {
					w.live.Forget(i, checksum.Range{Offset: b * block, Length: min(block, w.info[i].Size-b*block)})
				}
			}
			return nil
		}, nil))
	}
}

// TestWritesDuringPasses: writers that never wait.
func TestWritesDuringPasses(t *testing.T) {
	w := newWorld(t, 2000*block, 500*block)
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for i := range uint64(3) {
		writers.Go(func() {
			for rnd := rand.New(rand.NewPCG(i, i)); ctx.Err() == nil; {
				off := rnd.Int64N(400) * block
				w.k.write(rnd.IntN(2), off, noise(rnd, 1+rnd.Int64N(3*block)))()
			}
		})
	}
	for range 60 {
		w.pass()
	}
	stop()
	writers.Wait()
	w.pass()
	w.isReplica()
}

// A first copy emits data only; a later zero is a zero.
func TestFirstCopy(t *testing.T) {
	w := newWorld(t, 400*block)
	one := slices.Repeat([]byte{1}, 3*block)
	w.k.write(0, 10*block, one)()
	require.Equal(t, 1, w.pass())
	require.Equal(t, changeset.Extent{Offset: 10 * block, Length: 3 * block, Data: one}, w.since[0])
	w.k.write(0, 11*block, make([]byte, block))()
	w.k.write(0, 99*block, make([]byte, block))()
	require.Equal(t, 1, w.pass(), "99 is zeros there already")
	require.Equal(t, changeset.Extent{Offset: 11 * block, Length: block, Zero: true}, w.since[1])
	require.Zero(t, w.pass())
}

// A write that never completes is looked at with every pass and emitted once.
func TestPendingIsEmittedOnce(t *testing.T) {
	w := newWorld(t, 100*block)
	w.pass()
	complete := w.k.write(0, 7*block, slices.Repeat([]byte{1}, block))
	require.Zero(t, w.pass(), "nothing is there yet")
	w.k.write(0, 9*block, slices.Repeat([]byte{2}, block))()
	require.Equal(t, 1, w.pass())
	for range 5 {
		require.Zero(t, w.pass())
	}
	complete()
	require.Equal(t, 1, w.pass())
	w.isReplica()
	w.live.Forget(0, checksum.Range{Offset: 7 * block, Length: block})
	require.Equal(t, 1, w.pass(), "what was forgotten is emitted though nothing changed")
}

// The next process knows what this one did, note included, unless the devices are others.
func TestNextProcess(t *testing.T) {
	w := newWorld(t, 100*block, 50*block)
	w.k.write(1, 5*block, slices.Repeat([]byte{1}, block))()
	w.pass()
	w.settle("where it stands")
	require.True(t, w.start())
	require.Equal(t, "where it stands", string(w.live.Note()))
	require.Zero(t, w.pass(), "all of it was safe")
	w.k.write(0, 6*block, slices.Repeat([]byte{1}, block))()
	require.Equal(t, 1, w.pass())
	require.True(t, w.start())
	require.Equal(t, 1, w.pass(), "on its way when the process ended")
	w.isReplica()

	w.live = New(w.k)
	kept, err := w.live.Attach(w.devices()[:1])
	require.NoError(t, err)
	require.False(t, kept)
	require.Nil(t, w.live.Note())
	require.ErrorIs(t, w.live.Pass(t.Context(), 0, w.emit, nil), tracker.ErrGap)
}

// A note that was being written when the process was killed does not count; the one
// before does.
func TestTornNote(t *testing.T) {
	w := newWorld(t, 100*block)
	w.live.Keep([]byte("first"), true)
	w.live.Keep([]byte("second"), true)
	newest := w.live.notes.mem[int(w.live.notes.number%slots)*slotSize:]
	for at := range slotHead + 40 {
		newest[at] ^= 0x10
		require.True(t, w.start())
		require.Equal(t, "first", string(w.live.Note()))
		newest[at] ^= 0x10
	}
	require.True(t, w.start())
	require.Equal(t, "second", string(w.live.Note()))
	w.live.Begin(w.info)
	require.False(t, w.start(), "it was void from the first moment of a new copy")
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, 100*block)
	require.ErrorContains(t, w.live.Pass(t.Context(), 1, w.emit, nil), "not attached")
	w.k.failing = errors.New("no such device")
	require.ErrorIs(t, w.live.Pass(t.Context(), 0, w.emit, nil), w.k.failing)
	_, err := New(w.k).Attach(w.devices())
	require.ErrorIs(t, err, w.k.failing)
	w.k.failing = nil
	w.k.data[0] = make([]byte, 101*block)
	require.ErrorIs(t, w.live.Pass(t.Context(), 0, w.emit, nil), tracker.ErrSize)
	_, err = New(w.k).Attach([]tracker.Disk{image{}})
	require.ErrorContains(t, err, "no block device")
}

type image struct{ tracker.Disk }
