package disk

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// image makes a sparse file of size bytes with data in the blocks given.
func image(t *testing.T, size int64, blocks ...int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	for _, b := range blocks {
		data := bytes.Repeat([]byte{byte(b) + 1}, int(min(Align, size-b*Align)))
		_, err := f.WriteAt(data, b*Align)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	return path
}

func open(t *testing.T, path string) *Disk {
	t.Helper()
	d, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// ranges walks the map of a disk.
func ranges(t *testing.T, d *Disk) (out [][2]int64) {
	t.Helper()
	for off := int64(0); ; {
		start, end, err := d.NextData(off)
		require.NoError(t, err)
		require.GreaterOrEqual(t, start, off)
		if start == d.Size() {
			require.Equal(t, d.Size(), end)
			return out
		}
		require.Greater(t, end, start)
		require.LessOrEqual(t, end, d.Size())
		require.Zero(t, start%Align)
		require.True(t, end%Align == 0 || end == d.Size())
		out = append(out, [2]int64{start, end})
		off = end
	}
}

func TestNextData(t *testing.T) {
	const m = 1 << 20
	for name, c := range map[string]struct {
		size   int64
		blocks []int64
		want   [][2]int64
	}{
		"only a hole":         {8 * m, nil, nil},
		"hole of an odd size": {8*m + 512, nil, nil},
		"all data":            {2 * Align, []int64{0, 1}, [][2]int64{{0, 2 * Align}}},
		"start, middle, end":  {8 * m, []int64{0, 1024, 2047}, [][2]int64{{0, Align}, {4 * m, 4*m + Align}, {8*m - Align, 8 * m}}},
		"neighbours":          {8 * m, []int64{512, 513}, [][2]int64{{2 * m, 2*m + 2*Align}}},
		"tail of one sector":  {8*m + 512, []int64{2048}, [][2]int64{{8 * m, 8*m + 512}}},
		"tail of 7 sectors":   {8*m + 3584, []int64{2047, 2048}, [][2]int64{{8*m - Align, 8*m + 3584}}},
		"tail is a hole":      {8*m + 512, []int64{3}, [][2]int64{{3 * Align, 4 * Align}}},
		"one sector":          {512, []int64{0}, [][2]int64{{0, 512}}},
		"nothing at all":      {0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, ranges(t, open(t, image(t, c.size, c.blocks...))))
		})
	}
}

func TestNextDataInsideAndPastTheEnd(t *testing.T) {
	d := open(t, image(t, 1<<20+512, 0, 1, 2, 256))
	start, end, err := d.NextData(Align)
	require.NoError(t, err)
	require.Equal(t, [2]int64{Align, 3 * Align}, [2]int64{start, end})
	for _, off := range []int64{d.Size(), d.Size() + 1, 1 << 40} {
		start, end, err = d.NextData(off)
		require.NoError(t, err)
		require.Equal(t, [2]int64{d.Size(), d.Size()}, [2]int64{start, end})
	}
}

// A write that is smaller than a block makes the whole block data.
func TestNextDataIsAligned(t *testing.T) {
	path := image(t, 1<<20)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("x"), 5*Align+1000)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, [][2]int64{{5 * Align, 6 * Align}}, ranges(t, open(t, path)))
}

// A file that was cut or grown after it was opened keeps its old bounds.
func TestSizeChanges(t *testing.T) {
	path := image(t, 4*Align, 0)
	d := open(t, path)
	require.NoError(t, os.Truncate(path, 16*Align))
	size, err := d.CurrentSize()
	require.NoError(t, err)
	require.EqualValues(t, 16*Align, size)
	require.EqualValues(t, 4*Align, d.Size())
	require.Equal(t, [][2]int64{{0, Align}}, ranges(t, d))
	require.NoError(t, os.Truncate(path, 0))
	require.Empty(t, ranges(t, d))
	_, err = d.ReadAt(Buffer(Align), 0)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// A disk that is opened is not always the one that is there.
func TestCheck(t *testing.T) {
	path := image(t, 4*Align, 0)
	d := open(t, path)
	require.NoError(t, d.Check())
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	linked := open(t, link)
	require.NoError(t, linked.Check())
	require.NoError(t, os.Truncate(path, 16*Align))
	require.ErrorIs(t, d.Check(), ErrChanged, "larger")
	require.NoError(t, os.Truncate(path, Align))
	require.ErrorIs(t, d.Check(), ErrChanged, "smaller")
	require.NoError(t, os.Truncate(path, 4*Align))
	require.NoError(t, d.Check())
	other := image(t, 4*Align, 0)
	require.NoError(t, os.Remove(link))
	require.NoError(t, os.Symlink(other, link))
	require.ErrorIs(t, linked.Check(), ErrChanged, "the link names another")
	require.NoError(t, os.Rename(path, path+".away"))
	require.ErrorIs(t, d.Check(), ErrChanged, "gone")
	require.ErrorContains(t, d.Check(), path)
	require.NoError(t, os.Rename(other, path))
	require.ErrorIs(t, d.Check(), ErrChanged, "another one")
	require.NoError(t, os.Rename(path+".away", path))
	require.NoError(t, d.Check(), "back again")
	require.NoError(t, d.Close())
	require.Error(t, d.Check())
}

// What lies beyond the size at opening is never named, also when it is data.
func TestGrownDataIsNotNamed(t *testing.T) {
	path := image(t, 2*Align)
	d := open(t, path)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, Align), 8*Align)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Empty(t, ranges(t, d))
}

func TestReadAt(t *testing.T) {
	path := image(t, 4*Align+512, 1, 4)
	d := open(t, path)
	require.Equal(t, path, d.Path())
	require.EqualValues(t, 4*Align+512, d.Size())
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	buf := Buffer(int(d.Size()))
	n, err := d.ReadAt(buf, 0)
	require.NoError(t, err)
	require.Len(t, want, n)
	require.True(t, bytes.Equal(want, buf))
	tail := Buffer(512)
	_, err = d.ReadAt(tail, 4*Align)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte{5}, 512), tail)
}

func TestReadPastTheEnd(t *testing.T) {
	path := image(t, 4*Align+512, 4)
	d := open(t, path)
	n, err := d.ReadAt(Buffer(Align), 4*Align)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, "read 4096 bytes at 16384 of disk "+path)
	require.Equal(t, 512, n)
	n, err = d.ReadAt(Buffer(Align), 64*Align)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Zero(t, n)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir)
	require.ErrorContains(t, err, dir+": neither a block device nor an image file")
	_, err = Open("/dev/null")
	require.ErrorContains(t, err, "neither a block device nor an image file")
	_, err = Open(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestClosedDisk(t *testing.T) {
	d := open(t, image(t, Align, 0))
	require.NoError(t, d.Close())
	_, err := d.CurrentSize()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = d.ReadAt(Buffer(Align), 0)
	require.ErrorIs(t, err, os.ErrClosed)
	_, _, err = d.NextData(0)
	require.ErrorContains(t, err, "find data of disk")
	require.Error(t, d.Close())
}

func TestBufferIsAligned(t *testing.T) {
	for _, n := range []int{1, 512, Align, 1 << 20} {
		b := Buffer(n)
		require.Len(t, b, n)
		require.Equal(t, n, cap(b))
		require.Zero(t, uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align)
	}
}
