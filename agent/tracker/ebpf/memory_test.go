package ebpf

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// plainDisk is a disk whose memory is no kernel's.
func plainDisk(blocks int64) *disk {
	all := make([]word, elements(blocks*checksum.BlockSize))
	words := changes.Words(blocks * checksum.BlockSize)
	return &disk{head: &head{blocks: uint64(blocks)}, tops: all[header : len(all)-words], words: all[len(all)-words:]}
}

// write does what a device and the programs do for one write, to a few blocks.
func (m *model) write(rnd *rand.Rand) {
	first := rnd.Int64N(int64(len(m.content)))
	end := first + 1 + rnd.Int64N(min(3, int64(len(m.content))-first))
	turn := m.begin()
	defer turn.Done()
	s := span{first: uint64(first), end: uint64(end), what: issued} //nolint:gosec // small
	m.disk.apply(s)
	pause(rnd)
	for b := first; b < end; b++ {
		m.content[b].Add(1)
	}
	pause(rnd)
	switch rnd.IntN(4) {
	case 0: // the end is not seen
	case 1:
		s.what = seen
		m.disk.apply(s)
	default:
		s.what = done
		m.disk.apply(s)
	}
}

func pause(rnd *rand.Rand) {
	for range rnd.IntN(3) {
		runtime.Gosched()
	}
}

// model is a disk whose blocks have numbers that only grow, and a copy of it.
type model struct {
	disk    *disk
	content []atomic.Uint64
	copy    []uint64

	mu    sync.Mutex
	turns []*sync.WaitGroup // of the writes that began in each turn
}

// begin counts a write to the turn it begins in.
func (m *model) begin() *sync.WaitGroup {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.turns[len(m.turns)-1]
	last.Add(1)
	return last
}

// pass drains and copies. Before a turn ends all writes of the turn before have ended:
// a turn takes longer than a write may take.
func (m *model) pass(over bool) {
	if over {
		m.mu.Lock()
		n := len(m.turns)
		old := m.turns[max(0, n-2)]
		m.mu.Unlock()
		if n > 1 {
			old.Wait()
		}
	}
	into := make(changes.Bitmap, len(m.disk.words))
	m.disk.drain(into, over)
	if over {
		m.mu.Lock()
		m.turns = append(m.turns, &sync.WaitGroup{})
		m.mu.Unlock()
	}
	for b := range m.content {
		if into.Has(int64(b)) {
			m.copy[b] = m.content[b].Load()
		}
	}
}

// TestMarksMissNothing lets goroutines write to a few blocks, of which some ends are
// never seen, while the copy follows what Drain says. The marks are made by the Go
// side's mark, which does what the programs do.
func TestMarksMissNothing(t *testing.T) {
	for i := range uint64(20) {
		blocks := []int64{1, 3, 70, 5000}[i%4]
		m := &model{disk: plainDisk(blocks), content: make([]atomic.Uint64, blocks), copy: make([]uint64, blocks), turns: []*sync.WaitGroup{{}}}
		var g errgroup.Group
		for k := range uint64(4) {
			g.Go(func() error {
				rnd := rand.New(rand.NewPCG(i, k))
				for range 2000 {
					m.write(rnd)
				}
				return nil
			})
		}
		written := make(chan error, 1)
		go func() { written <- g.Wait() }()
		rnd := rand.New(rand.NewPCG(i, 100))
		for going := true; going; {
			select {
			case err := <-written:
				require.NoError(t, err)
				going = false
			default:
			}
			m.pass(rnd.IntN(5) == 0)
		}
		for b := range m.content {
			require.Equal(t, m.content[b].Load(), m.copy[b], "block %d of %d, run %d", b, blocks, i)
		}
		for range 2 {
			m.pass(true)
		}
		into := make(changes.Bitmap, len(m.disk.words))
		require.Zero(t, m.disk.drain(into, false))
		require.Zero(t, into.Count(), "all is old")
	}
}

// TestTwoUnderWay is the case that two bits alone would lose: of two writes to a block
// the end of the one is seen, that of the other is not.
func TestTwoUnderWay(t *testing.T) {
	d := plainDisk(100)
	s := span{first: 70, end: 71}
	mark := func(what uint64) { s.what = what; d.apply(s) }
	reported := func(over bool) bool {
		into := make(changes.Bitmap, len(d.words))
		d.drain(into, over)
		return into.Has(70)
	}
	mark(issued)
	mark(issued)
	mark(done)
	require.True(t, reported(false))
	require.True(t, reported(false), "the other one may be under way")
	mark(issued)
	mark(done)
	require.True(t, reported(true), "still")
	require.True(t, reported(true), "until a whole turn has passed")
	require.False(t, reported(false))
	mark(issued)
	require.True(t, reported(false))
	require.True(t, reported(false))
	mark(done)
	require.True(t, reported(false), "once after it is known")
	require.False(t, reported(false))
}

func TestBordersOfSpans(t *testing.T) {
	for _, c := range [][2]uint64{{0, 1}, {63, 64}, {63, 65}, {0, 64}, {64, 128}, {1, 300}, {0, 300}, {299, 300}} {
		d := plainDisk(300)
		d.apply(span{first: c[0], end: c[1], what: seen})
		into, want := make(changes.Bitmap, len(d.words)), make(changes.Bitmap, len(d.words))
		d.drain(into, false)
		want.Set(int64(c[0]), int64(c[1])) //nolint:gosec // small
		require.Equal(t, want, into, "%v", c)
		d.apply(span{first: c[0], end: 301, what: seen})
		d.apply(span{since: 5, first: c[0], end: c[1], what: seen})
		clear(into)
		d.drain(into, false)
		require.Zero(t, into.Count(), "of another disk")
	}
}
