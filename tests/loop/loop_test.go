package loop

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker/changes"
)

const mega = 1 << 20

// TestEveryWriteIsFound holds that each way to write changes the device, and that the
// comparison finds the blocks.
func TestEveryWriteIsFound(t *testing.T) {
	d := New(t, 9*mega+Sector)
	require.Equal(t, int64(9*mega+Sector), d.Size)
	s := d.Snapshot()
	require.Empty(t, d.Changed(s))
	ones := bytes.Repeat([]byte{1}, mega)

	require.NoError(t, d.Write(3*4096-Sector, ones[:2*Sector]))
	require.Equal(t, []int64{2, 3}, d.Changed(s))
	require.NoError(t, d.Buffered(5*4096+7, ones[:1]))
	require.Equal(t, []int64{5}, d.Changed(s))
	require.NoError(t, d.Write(d.Size-Sector, ones[:Sector]))
	require.Equal(t, []int64{9 * mega / 4096}, d.Changed(s))

	for name, erase := range map[string]func(off, n int64) error{"discard": d.Discard, "zero": d.Zero, "punch": d.Punch} {
		require.NoError(t, d.Write(mega, ones))
		require.Len(t, d.Changed(s), mega/4096, name)
		require.NoError(t, erase(mega+4096, 2*4096), name)
		require.Equal(t, []int64{mega/4096 + 1, mega/4096 + 2}, d.Changed(s), name)
		require.NoError(t, erase(mega, mega), name)
		require.Len(t, d.Changed(s), mega/4096-2, name)
	}
	require.Empty(t, d.Changed(s))
}

func TestDevicesAreTheirOwn(t *testing.T) {
	a, b := New(t, mega), New(t, mega)
	require.NotEqual(t, [2]uint32{a.Major, a.Minor}, [2]uint32{b.Major, b.Minor})
	s := b.Snapshot()
	require.NoError(t, a.Write(0, bytes.Repeat([]byte{1}, Sector)))
	require.Empty(t, b.Changed(s))
}

func TestGrow(t *testing.T) {
	d := New(t, mega)
	d.Grow(2 * mega)
	require.NoError(t, d.Write(2*mega-Sector, make([]byte, Sector)))
	require.Error(t, d.Write(2*mega, make([]byte, Sector)))
}

// TestReplica holds that a copy is as the device where it was told of the changes, and
// that it is seen where it is not.
func TestReplica(t *testing.T) {
	d := New(t, 8*mega)
	r, s := NewReplica(t, d), d.Snapshot()
	require.NoError(t, d.WriteAtRandom(1, 20))
	changed := d.Changed(s)
	require.NotEmpty(t, changed)
	require.Equal(t, changed, r.Differs())
	b := make(changes.Bitmap, changes.Words(d.Size))
	for _, n := range changed[1:] {
		b.Set(n, n+1)
	}
	r.Take(b)
	require.Equal(t, changed[:1], r.Differs())
}
