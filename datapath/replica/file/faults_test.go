package file

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/datapath/vfs"
	"drover/datapath/vfs/crashfs"
)

// lived gives a life that is past all its steps, with its file system and writer.
func lived(t *testing.T) (*life, *crashfs.FS, *Store, *Writer) {
	t.Helper()
	fs, l := crashfs.New(), newLife(t)
	require.NoError(t, l.run(fs))
	s, w, err := l.open(fs)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return l, fs, s, w.(*Writer)
}

// next applies one more change set.
func (l *life) next(w *Writer) error {
	cs := l.sets[l.step]
	if cs == nil {
		cs = l.build(w.State(), changeset.Delta, rt.Crash(), []extent{{disk: 0, offset: 3 * block, data: rt.Pattern(90, 9*block)}})
	}
	_, err := w.Apply(l.t.Context(), cs)
	if err == nil {
		l.before = l.with(cs, rt.Crash())
		l.step++
	}
	return err
}

func TestFullDiskIsToldAndGoesOnByItself(t *testing.T) {
	l, fs, s, w := lived(t)
	for room := int64(0); ; room += block {
		fs.SetCapacity(fs.Used() + room)
		err := l.next(w)
		if err == nil {
			require.Greater(t, room, int64(block), "there was no room")
			break
		}
		require.ErrorIs(t, err, replica.ErrNoSpace)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.NoError(t, l.reads(s))
	}
	require.NoError(t, l.recover(fs.Crash(crashfs.AllLost)))
}

func TestReadOnlyDiskIsTold(t *testing.T) {
	l, fs, s, w := lived(t)
	fs.SetReadOnly()
	for range 2 {
		err := l.next(w)
		require.ErrorIs(t, err, syscall.EROFS)
		require.NotErrorIs(t, err, replica.ErrNoSpace)
		require.NoError(t, l.reads(s))
	}
	fs.Mend()
	require.NoError(t, l.next(w))
	require.NoError(t, l.recover(fs.Crash(crashfs.AllLost)))
}

// change alters the bytes of a file, as a bad disk does.
func change(t *testing.T, fs *crashfs.FS, path string, at int64, alter func(b []byte), length int) {
	t.Helper()
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, length)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	alter(b)
	_, err = f.WriteAt(b, at)
	require.NoError(t, errors.Join(err, f.Close()))
}

// readable reads all points whole; points that do not read must say ErrCorrupt, and
// those that read must be what they were.
func readable(l *life, s *Store) map[ident.Seq]bool {
	out := map[ident.Seq]bool{}
	r, err := s.OpenReader(l.t.Context(), l.spec.Machine)
	require.NoError(l.t, err)
	for id, want := range l.before.points {
		out[id] = true
		for i, d := range l.spec.Disks {
			h, err := r.OpenDisk(l.t.Context(), id, d.ID)
			if err == nil {
				b := make([]byte, h.Size())
				_, err = h.ReadAt(b, 0)
				if err == nil {
					require.Equal(l.t, want[i], b, "point %d, disk %d: damage that nobody tells", id, i)
				}
				require.NoError(l.t, h.Close())
			}
			if err != nil {
				require.ErrorIs(l.t, err, replica.ErrCorrupt)
				out[id] = false
			}
		}
	}
	return out
}

// TestRotInAnUndoFile flips a bit anywhere in an undo file: no point reads as what
// it was not, and newer points do not suffer.
func TestRotInAnUndoFile(t *testing.T) {
	l, fs, s, w := lived(t)
	points := w.State().Points
	require.Greater(t, len(points), 1)
	victim := points[0]
	path := w.m.undoPath(w.mf.Undo[0])
	require.Positive(t, victim.UndoBytes)
	damaged := 0
	step := int64(97)
	for at := int64(0); at < undoHeaderSize+victim.UndoBytes; at += step {
		flip := func(b []byte) { b[0] ^= 4 }
		change(t, fs, path, at, flip, 1)
		ok := readable(l, s)
		if !ok[victim.ID] {
			damaged++
		}
		require.True(t, ok[points[len(points)-1].ID])
		change(t, fs, path, at, flip, 1)
	}
	require.Greater(t, damaged, 10)
	require.NotContains(t, readable(l, s), false)
}

// TestWriteAtTheWrongPlace: a good block that lies elsewhere, on its disk or on
// another, is not taken for the one that belongs there.
func TestWriteAtTheWrongPlace(t *testing.T) {
	l, fs, s, w := lived(t)
	newest := w.mf.newest().ID
	first, second := w.m.imagePath(l.spec.Disks[0]), w.m.imagePath(l.spec.Disks[1])
	b, err := vfs.ReadFile(fs, first, 64<<20)
	require.NoError(t, err)
	for _, path := range []string{first, second} {
		var old []byte
		change(t, fs, path, 2*block, func(to []byte) {
			old = append(old, to...)
			copy(to, b[8*block:9*block])
		}, block)
		require.False(t, readable(l, s)[newest])
		change(t, fs, path, 2*block, func(to []byte) { copy(to, old) }, block)
		require.True(t, readable(l, s)[newest])
	}
}

// A bit that one read gives wrong is not taken, and read again.
func TestReadThatGivesAWrongBit(t *testing.T) {
	l, fs, s, _ := lived(t)
	for _, name := range []string{"*.img", "*.sums"} {
		fs.Inject(crashfs.Rule{Op: crashfs.Read, Name: name, Flip: true, Skip: 2, Times: 1})
		require.NoError(t, l.reads(s))
	}
	fs.Inject(crashfs.Rule{Op: crashfs.Read, Name: "*.img", Err: syscall.EIO})
	r, err := s.OpenReader(t.Context(), l.spec.Machine)
	require.NoError(t, err)
	_, err = r.OpenDisk(t.Context(), 9, l.spec.Disks[0].ID)
	require.ErrorIs(t, err, syscall.EIO)
}
