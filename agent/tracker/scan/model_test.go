package scan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// TestModel writes and punches at random between passes; some passes break in the
// middle, some ranges of the replica are lost. After each whole pass the extents
// have made the replica the same as the image.
func TestModel(t *testing.T) {
	for i, size := range []int64{512, 5 * block, mega, 2*mega + 512, 4*mega + 3584} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r, rng := newRig(t, size), rand.New(rand.NewPCG(42, uint64(i)))
			for range 10 {
				for range rng.IntN(6) {
					r.step(rng)
				}
				if rng.IntN(3) == 0 {
					r.breakPass(rng)
				}
				if rng.IntN(4) == 0 {
					r.loseSome(rng)
				}
				r.pass()
				require.Empty(t, r.pass(), "nothing was changed")
			}
		})
	}
}

// step changes the image once.
func (r *rig) step(rng *rand.Rand) {
	size := int64(len(r.replica))
	off := rng.Int64N(size)
	n := min(size-off, 1+rng.Int64N([]int64{10, block, 5 * block, mega}[rng.IntN(4)]))
	switch rng.IntN(4) {
	case 0:
		r.punch(off, n)
	case 1:
		r.write(off, make([]byte, n))
	default:
		r.fill(off, n, byte(1+rng.IntN(255)))
	}
}

// breakPass ends a pass after a few extents.
func (r *rig) breakPass(rng *rand.Rand) {
	r.t.Helper()
	broken, left := errors.New("broken"), rng.IntN(3)
	r.emitted = nil
	err := r.scan.Pass(r.t.Context(), 0, func(e changeset.Extent) error {
		if left--; left < 0 {
			return broken
		}
		return r.apply(e)
	}, nil)
	if err != nil {
		require.ErrorIs(r.t, err, broken)
	}
}

// loseSome spoils a part of the replica and says so.
func (r *rig) loseSome(rng *rand.Rand) {
	first := rng.Int64N(checksum.Blocks(int64(len(r.replica)))) * block
	lost := checksum.Range{Offset: first, Length: min(int64(1+rng.IntN(40))*block, int64(len(r.replica))-first)}
	for i := lost.Offset; i < lost.End(); i++ {
		r.replica[i] ^= 0xa5
	}
	r.scan.Forget(0, lost)
}

// failing is a disk with errors.
type failing struct {
	tracker.Disk
	size, data, read error
}

func (f failing) CurrentSize() (int64, error) {
	if f.size != nil {
		return 0, f.size
	}
	return f.Disk.CurrentSize()
}

func (f failing) NextData(off int64) (int64, int64, error) {
	if f.data != nil && off > 0 {
		return 0, 0, f.data
	}
	return f.Disk.NextData(off)
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if f.read != nil && off >= 2*mega {
		return 0, f.read
	}
	return f.Disk.ReadAt(p, off)
}

// An error of the disk ends the pass; the next one goes on where it must.
func TestDiskErrors(t *testing.T) {
	broken := errors.New("input/output error")
	for name, spoil := range map[string]func(*failing){
		"size": func(f *failing) { f.size = broken },
		"map":  func(f *failing) { f.data = broken },
		"read": func(f *failing) { f.read = broken },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 8*mega)
			r.fill(0, mega, 1)
			r.fill(2*mega, 6*mega, 2)
			f := failing{Disk: r.disk}
			spoil(&f)
			attach(t, r.scan, f)
			require.ErrorIs(t, r.scan.Pass(t.Context(), 0, r.apply, nil), broken)
			attach(t, r.scan, r.disk)
			r.pass()
		})
	}
}

// The error of emit is what Pass gives, also when the disk fails behind it.
func TestErrorOfEmitComesFirst(t *testing.T) {
	r := newRig(t, 8*mega)
	r.fill(0, 8*mega, 1)
	attach(t, r.scan, failing{Disk: r.disk, read: errors.New("input/output error")})
	full := errors.New("the set is full")
	err := r.scan.Pass(t.Context(), 0, func(changeset.Extent) error { return full }, nil)
	require.ErrorIs(t, err, full)
}

func TestCancelledBeforeItStarts(t *testing.T) {
	r := newRig(t, 8*mega) // holes alone are also not looked at
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, r.scan.Pass(ctx, 0, r.apply, nil), context.Canceled)
	require.Empty(t, r.emitted)
}
