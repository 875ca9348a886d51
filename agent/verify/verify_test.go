package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"drover/datapath/checksum"
)

const gib = 1 << 30

// filled is a world whose replica has all that its source has.
func filled(t *testing.T, sizes ...int64) *world {
	t.Helper()
	w := newWorld(t, sizes...)
	for i, d := range w.source {
		blocks := checksum.Blocks(d.size)
		for k := range int64(60) {
			p := place{i, k * blocks / 60}
			w.write(p, w.content(p, uint64(k+1)))
		}
		last := place{i, blocks - 1}
		w.write(last, w.content(last, 99))
	}
	w.cut()
	return w
}

func (w *world) new() *Comparison { return New(1, w.sizes()) }

func TestEqual(t *testing.T) {
	w := filled(t, gib+gib/4+512, 40*block, 512, 3*block+1536)
	found, tooMuch := w.run(w.new())
	require.False(t, tooMuch)
	require.Equal(t, make([]Result, 4), found)
	require.Equal(t, 3+3, w.asked, "one question per window of 512 MiB")
	require.Equal(t, 1, w.cuts, "it is no work for the machine")
}

// TestEveryKindOfDifference: what the tracker missed, what rotted in the replica, and
// zeros on either side, at the borders of disks, windows and groups.
func TestEveryKindOfDifference(t *testing.T) {
	w := filled(t, gib+gib/4+512, 40*block, 3*block+1536)
	last := checksum.Blocks(w.source[0].size) - 1
	want := []place{
		{0, 0}, {0, 255}, {0, 256}, {0, windowBlocks - 1}, {0, windowBlocks}, {0, 2*windowBlocks + 7}, {0, last - 1}, {0, last},
		{1, 0}, {1, 1}, {1, 39}, {2, 3},
	}
	for i, p := range want {
		switch {
		case p == place{1, 0}:
			delete(w.replica[p.disk], p.block) // zeros in the replica
		case p == place{1, 1}:
			w.missed(p, nil) // zeros in the source, whatever was there
			w.replica[p.disk][p.block] = w.content(p, 3)
		case i%2 == 0:
			w.missed(p, w.content(p, uint64(1000+i)))
		default:
			w.replica[p.disk][p.block] = w.content(p, uint64(2000+i))
		}
	}
	found, tooMuch := w.run(w.new())
	require.False(t, tooMuch)
	require.Equal(t, want, w.mended)
	require.Equal(t, []int64{0, 255 * block, 256 * block, (windowBlocks - 1) * block, windowBlocks * block, (2*windowBlocks + 7) * block,
		(last - 1) * block, last * block}, found[0].First)
	for i, n := range []int64{8, 3, 1} {
		require.Equal(t, []int64{n * block, n * block, 0}, []int64{found[i].Differed, found[i].Mended, found[i].Busy}, "disk %d", i)
	}
	w.same()
	found, _ = w.run(New(2, w.sizes()))
	require.Equal(t, make([]Result, 3), found)
}

// TestInFlight: what is on its way is no difference.
func TestInFlight(t *testing.T) {
	w := filled(t, 500*block, 40*block)
	for b := range int64(30) {
		p := place{int(b % 2), b}
		w.write(p, w.content(p, uint64(5000+b)))
	}
	n := uint64(6000)
	w.on = func(q Query) error { // and more all the time
		n++
		p := place{int(n % 2), int64(n % 37)}
		w.write(p, w.content(p, n))
		return nil
	}
	found, _ := w.run(w.new())
	require.Equal(t, make([]Result, 2), found)
	require.Empty(t, w.mended)
}

// TestBusy: what is written between every two looks cannot be compared, and is neither
// equal nor different.
func TestBusy(t *testing.T) {
	w := filled(t, 500*block)
	n, p := uint64(7000), place{0, 77}
	write := func() {
		n++
		w.write(p, w.content(p, n))
	}
	w.on = func(q Query) error {
		write()
		if q.Level > 0 {
			w.cut()
		}
		return nil
	}
	w.after = write
	found, _ := w.run(w.new())
	require.Equal(t, []Result{{Busy: block}}, found)
	require.Equal(t, 1+1+maxRounds, w.cuts)
	require.Empty(t, w.mended)
}

// TestSwitching: a block that goes back to what it was can look different once, and is
// not taken for it.
func TestSwitching(t *testing.T) {
	w := filled(t, 500*block)
	p := place{0, 77}
	a, b := w.content(p, 1), w.content(p, 2)
	w.write(p, a)
	w.cut()
	settled := 0
	w.on = func(q Query) error {
		if !q.Settle && w.cuts == 2 {
			w.missed(p, a) // what is read, at first
		}
		if q.Settle {
			settled++
			if settled < strikes { // A when it is read, B at the cut
				w.write(p, b)
				w.cut()
				w.write(p, a)
				clear(w.flight)
			} else {
				w.write(p, a)
			}
		}
		return nil
	}
	w.replica[0][p.block] = b
	found, _ := w.run(w.new())
	require.Equal(t, []Result{{}}, found)
	require.Equal(t, strikes, settled)
}

// TestNotMended: what differs still after it was sent again stays counted.
func TestNotMended(t *testing.T) {
	w := filled(t, 500*block)
	w.deaf = true
	w.missed(place{0, 5}, w.content(place{0, 5}, 1))
	found, tooMuch := w.run(w.new())
	require.False(t, tooMuch)
	require.Equal(t, []Result{{Differed: block, First: []int64{5 * block}}}, found)
	require.Len(t, w.mended, remedies)
}

func TestTooMuch(t *testing.T) {
	w := filled(t, 500*block, 500*block)
	for b := range int64(300) {
		for disk := range 2 {
			w.missed(place{disk, b}, w.content(place{disk, b}, uint64(b+1000)))
		}
	}
	c := w.new()
	c.most = 599
	found, tooMuch := w.run(c)
	require.True(t, tooMuch)
	require.EqualValues(t, 600*block, found[0].Differed+found[1].Differed)
	require.Len(t, found[0].First, maxFirst)
	require.Empty(t, w.mended, "a resync does that better")
}

// TestManyWait: so many blocks that the scan pauses for them.
func TestManyWait(t *testing.T) {
	const blocks = 300
	w := newWorld(t, blocks*block, blocks*block, gib, blocks*block)
	for _, disk := range []int{0, 1, 3} {
		for b := range int64(blocks) {
			w.missed(place{disk, b}, w.content(place{disk, b}, uint64(b+1)))
		}
	}
	c, waited, told := w.new(), 0, 0
	c.wait = 500
	w.on = func(q Query) error {
		waited = max(waited, len(c.waiting)+len(c.mending))
		if q.Settle && q.Done < q.Total {
			told++
		}
		return nil
	}
	found, _ := w.run(c)
	for _, disk := range []int{0, 1, 3} {
		require.EqualValues(t, blocks*block, found[disk].Differed)
		require.EqualValues(t, blocks*block, found[disk].Mended)
	}
	require.Positive(t, told, "before the scan was over")
	require.LessOrEqual(t, waited, c.wait+2*blocks)
	w.same()
}

// TestGoesOn: a line that breaks anywhere costs a window, and changes nothing of what
// is found.
func TestGoesOn(t *testing.T) {
	lost := errors.New("the line broke")
	for every := 4; every < 10; every++ {
		t.Run(fmt.Sprint(every), func(t *testing.T) {
			w := filled(t, gib+512, 40*block)
			for _, p := range []place{{0, 3}, {0, windowBlocks + 9}, {1, 39}} {
				w.missed(p, w.content(p, 4711))
			}
			c, n, down := w.new(), 0, 0
			w.on = func(Query) error {
				if n++; n%every == 0 {
					return lost
				}
				return nil
			}
			for {
				require.True(t, c.Fits(1, w.sizes()))
				found, _, err := c.Run(t.Context(), w.disks(), w, rate.NewLimiter(rate.Inf, readBytes))
				if err != nil {
					require.ErrorIs(t, err, lost)
					down++
					require.Less(t, down, 100)
					continue
				}
				require.Equal(t, []Result{
					{Differed: 2 * block, Mended: 2 * block, First: []int64{3 * block, (windowBlocks + 9) * block}},
					{Differed: block, Mended: block, First: []int64{39 * block}},
				}, found)
				break
			}
			require.Positive(t, down)
			w.same()
		})
	}
}

func TestFits(t *testing.T) {
	var none *Comparison
	require.False(t, none.Fits(1, nil))
	c := New(1, []int64{5, 6})
	require.True(t, c.Fits(1, []int64{5, 6}))
	require.False(t, c.Fits(2, []int64{5, 6}))
	require.False(t, c.Fits(1, []int64{6, 5}))
}

// replicaFunc is a replica that answers with what it likes.
type replicaFunc func(q Query) ([]uint64, error)

func (f replicaFunc) Sums(_ context.Context, q Query) ([]uint64, error) { return f(q) }
func (f replicaFunc) Mend(context.Context, int, []checksum.Range) error { return nil }
func (w *world) try(ctx context.Context, r Replica, limit *rate.Limiter) error {
	_, _, err := w.new().Run(ctx, w.disks(), r, limit)
	return err
}

func TestWrongAnswersAndErrors(t *testing.T) {
	w := filled(t, 500*block)
	free := rate.NewLimiter(rate.Inf, readBytes)
	err := w.try(t.Context(), replicaFunc(func(q Query) ([]uint64, error) { return make([]uint64, q.Count+1), nil }), free)
	require.ErrorContains(t, err, "got 3 checksums, asked for 2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, w.try(ctx, w, rate.NewLimiter(1, readBytes)), context.Canceled)
	w.source[0].size = 499 * block // the disk has shrunk: the read fails
	c := New(1, []int64{500 * block})
	_, _, err = c.Run(t.Context(), []Disk{{Size: 500 * block, Open: w.source[0]}}, w, free)
	require.ErrorContains(t, err, "compare disk 0")
}

// TestRate: reading is bounded, holes are free.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, gib)
		for b := range int64(2048) {
			w.write(place{0, b}, w.content(place{0, b}, uint64(b+1)))
		}
		w.cut()
		begun := time.Now()
		require.NoError(t, w.try(t.Context(), w, rate.NewLimiter(1<<20, readBytes)))
		require.InDelta(t, 7, time.Since(begun).Seconds(), 0.1, "8 MiB at 1 MiB/s, the first of them at once")
	})
}

// TestLives plays random lives against a plain model: which blocks were damaged, and
// which were written since.
func TestLives(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { live(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func live(t *testing.T, rnd *rand.Rand) {
	var sizes []int64
	for range 1 + rnd.IntN(4) {
		sizes = append(sizes, 512*(1+rnd.Int64N(900*8)))
	}
	w, n := newWorld(t, sizes...), uint64(0)
	anywhere := func() place {
		disk := rnd.IntN(len(sizes))
		return place{disk, rnd.Int64N(checksum.Blocks(sizes[disk]))}
	}
	fresh := func(p place) []byte {
		if n++; rnd.IntN(8) == 0 {
			return nil
		}
		return w.content(p, n)
	}
	for range rnd.IntN(2000) {
		p := anywhere()
		w.write(p, fresh(p))
	}
	w.cut()
	damaged, written := map[place]bool{}, map[place]bool{}
	for range rnd.IntN(40) {
		p := anywhere()
		n++
		damaged[p] = true
		if rnd.IntN(2) == 0 {
			w.missed(p, w.content(p, n))
		} else {
			w.replica[p.disk][p.block] = w.content(p, n)
		}
	}
	lost := errors.New("the line broke")
	w.on = func(Query) error {
		for range rnd.IntN(6) {
			p := anywhere()
			written[p] = true
			w.write(p, fresh(p))
			if rnd.IntN(4) == 0 {
				w.cut() // the cadence's own
			}
		}
		if rnd.IntN(20) == 0 {
			return lost
		}
		return nil
	}
	c := w.new()
	var found []Result
	for {
		var err error
		if found, _, err = c.Run(t.Context(), w.disks(), w, rate.NewLimiter(rate.Inf, readBytes)); err == nil {
			break
		}
		require.ErrorIs(t, err, lost)
	}
	var differed, mended, busy int64
	for _, d := range found {
		differed, mended, busy = differed+d.Differed, mended+d.Mended, busy+d.Busy
	}
	for _, p := range w.mended {
		require.True(t, damaged[p], "%v was whole", p)
	}
	slices.SortFunc(w.mended, func(a, b place) int {
		return byPlace(candidate{disk: a.disk, block: a.block}, candidate{disk: b.disk, block: b.block})
	})
	require.EqualValues(t, len(slices.Compact(w.mended))*block, differed)
	require.Equal(t, differed, mended)
	require.LessOrEqual(t, busy, int64(len(written))*block)
	for p := range damaged {
		if !written[p] {
			require.Contains(t, w.mended, p, "damaged, and not written since")
		}
	}
	w.on = nil
	w.same()
}
