package verify

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"drover/datapath/checksum"
)

const block = checksum.BlockSize

// image is what a disk holds, by block; what is absent is zeros.
type image map[int64][]byte

// drive is a disk of the source.
type drive struct {
	image
	size int64
	seed uint64
}

func (d *drive) ReadAt(p []byte, off int64) (int, error) {
	if off%block != 0 || off+int64(len(p)) > d.size || len(p)%block != 0 && off+int64(len(p)) != d.size {
		return 0, errors.New("a read that agent/disk would refuse")
	}
	clear(p)
	for at := 0; at < len(p); at += block {
		copy(p[at:], d.image[(off+int64(at))/block])
	}
	return len(p), nil
}

func (d *drive) NextData(off int64) (start, end int64, err error) {
	if off%block != 0 && off != d.size {
		return 0, 0, io.ErrNoProgress
	}
	first := int64(-1)
	for b := range d.image {
		if b*block >= off && (first < 0 || b < first) {
			first = b
		}
	}
	if first < 0 {
		return d.size, d.size, nil
	}
	return first * block, min(first*block+block, d.size), nil
}

// place is a block of a disk.
type place struct {
	disk  int
	block int64
}

// world is a source, its replica, and what is on its way between the two.
type world struct {
	t       *testing.T
	source  []*drive
	replica []image            // as of the newest point
	compare []image            // the point that is compared with
	flight  map[place]struct{} // what the tracker has seen since
	asked   int
	cuts    int
	mended  []place // in the order they were sent again
	deaf    bool    // what is to be mended is not
	// on is called before every answer, after once it was made.
	on    func(q Query) error
	after func()
}

func newWorld(t *testing.T, sizes ...int64) *world {
	w := &world{t: t, flight: map[place]struct{}{}}
	for i, size := range sizes {
		w.source = append(w.source, &drive{image{}, size, uint64(i)*77 + 5})
		w.replica = append(w.replica, image{})
	}
	return w
}

// lastLen is how many bytes the block has.
func (d *drive) blockLen(b int64) int64 { return min(block, d.size-b*block) }

// content is what nobody has written before.
func (w *world) content(p place, n uint64) []byte {
	b := make([]byte, w.source[p.disk].blockLen(p.block))
	for i := range b {
		b[i] = byte(n >> (8 * (i % 8)))
	}
	b[len(b)-1] |= 1
	return b
}

// write is seen by the tracker.
func (w *world) write(p place, b []byte) {
	w.flight[p] = struct{}{}
	w.missed(p, b)
}

// missed is not.
func (w *world) missed(p place, b []byte) {
	if b == nil {
		delete(w.source[p.disk].image, p.block)
		return
	}
	w.source[p.disk].image[p.block] = b
}

// cut makes a recovery point.
func (w *world) cut() {
	w.cuts++
	for p := range w.flight {
		if b, ok := w.source[p.disk].image[p.block]; ok {
			w.replica[p.disk][p.block] = b
		} else {
			delete(w.replica[p.disk], p.block)
		}
	}
	clear(w.flight)
}

// point keeps what is compared with as it is now.
func (w *world) point() {
	w.compare = nil
	for _, d := range w.replica {
		w.compare = append(w.compare, maps.Clone(d))
	}
}

func (w *world) Sums(ctx context.Context, q Query) ([]uint64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w.asked++
	if w.on != nil {
		if err := w.on(q); err != nil {
			return nil, err
		}
	}
	require.LessOrEqual(w.t, int64(q.Count)*checksum.Span(q.Level), int64(checksum.MaxCompared))
	require.LessOrEqual(w.t, q.Count, checksum.MaxSums)
	require.LessOrEqual(w.t, q.Done, q.Total)
	if q.Settle {
		w.cut()
	}
	if q.Settle || q.Level > 0 {
		w.point()
	}
	d := w.source[q.Disk]
	sums := make([]uint64, q.Count)
	err := checksum.Level(leaves{d, w.compare[q.Disk]}, q.Level, q.First, sums)
	if w.after != nil {
		w.after()
	}
	return sums, err
}

// leaves are the checksums of a replica's disk.
type leaves struct {
	*drive
	replica image
}

func (l leaves) Len() int64 { return checksum.Blocks(l.size) }

func (l leaves) ReadSums(first int64, dst []uint64) error {
	for i := range dst {
		b := first + int64(i)
		dst[i] = checksum.Sum(l.seed, b*block, l.replica[b])
	}
	return nil
}

func (w *world) Mend(_ context.Context, disk int, ranges []checksum.Range) error {
	for _, r := range ranges {
		require.Positive(w.t, r.Length)
		require.LessOrEqual(w.t, r.End(), w.source[disk].size)
		for at := r.Offset; at < r.End(); at += block {
			p := place{disk, at / block}
			w.mended = append(w.mended, p)
			if !w.deaf {
				w.flight[p] = struct{}{}
			}
		}
	}
	return nil
}

func (w *world) sizes() (out []int64) {
	for _, d := range w.source {
		out = append(out, d.size)
	}
	return out
}

func (w *world) disks() (out []Disk) {
	for _, d := range w.source {
		out = append(out, Disk{Size: d.size, Seed: d.seed, Open: d})
	}
	return out
}

// run compares to the end, and gives the totals.
func (w *world) run(c *Comparison) (found []Result, tooMuch bool) {
	w.t.Helper()
	found, tooMuch, err := c.Run(w.t.Context(), w.disks(), w, rate.NewLimiter(rate.Inf, readBytes))
	require.NoError(w.t, err)
	require.Len(w.t, found, len(w.source))
	require.Empty(w.t, c.waiting)
	require.Empty(w.t, c.mending)
	return found, tooMuch
}

// same checks that source and replica are equal after one more cut.
func (w *world) same() {
	w.t.Helper()
	w.cut()
	for i, d := range w.source {
		require.Equal(w.t, slices.Sorted(maps.Keys(d.image)), slices.Sorted(maps.Keys(w.replica[i])))
		for b, content := range d.image {
			require.Equal(w.t, content, w.replica[i][b], "disk %d, block %d", i, b)
		}
	}
}
