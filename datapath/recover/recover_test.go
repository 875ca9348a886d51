package recover

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/replicatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = replicatest.Block

func spec(name, id string) replica.Spec {
	m := ident.NewMachineID("vc", id)
	return replica.Spec{Machine: m, Name: name, Disks: []replica.Disk{
		{Disk: changeset.Disk{ID: ident.NewDiskID(m, "a"), Size: 100 * block}, Name: "Hard disk 1"},
		{Disk: changeset.Disk{ID: ident.NewDiskID(m, "b"), Size: 10*block + 512}, Name: "../../etc/passwd"},
	}}
}

// protect makes a machine with three points: the third changes one block of the second.
func protect(t *testing.T, s replica.Store, name, id string) {
	t.Helper()
	w, err := s.OpenWriter(t.Context(), 1, spec(name, id))
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
	apply := func(b *replicatest.Builder, c changeset.Cut) {
		_, err := w.Apply(t.Context(), b.Cut(c))
		require.NoError(t, err)
	}
	apply(replicatest.After(w.State(), changeset.Base).Write(0, 0, replicatest.Pattern(1, 2*block)).Write(1, 0, replicatest.Pattern(2, block)), replicatest.Complete())
	apply(replicatest.After(w.State(), changeset.Delta).Write(0, 50*block, replicatest.Pattern(3, block)), replicatest.Crash())
	apply(replicatest.After(w.State(), changeset.Delta).Write(0, 50*block, replicatest.Pattern(4, block)), replicatest.Crash())
}

func open(t *testing.T) *file.Store {
	t.Helper()
	s, err := file.Open(t.TempDir())
	require.NoError(t, err)
	return s
}

func TestWrite(t *testing.T) {
	s := open(t)
	protect(t, s, "db-1", "1")
	st, err := Find(t.Context(), s, "db-1")
	require.NoError(t, err)
	p, err := Point(st, 2)
	require.NoError(t, err)
	out := t.TempDir()
	var last int64
	disks, err := Write(t.Context(), s, st, p, out, func(_ Disk, done int64) { last = done })
	require.NoError(t, err)
	require.Len(t, disks, 2)
	require.Positive(t, last)

	want := make([]byte, 100*block)
	copy(want, replicatest.Pattern(1, 2*block))
	copy(want[50*block:], replicatest.Pattern(3, block))
	got, err := os.ReadFile(disks[0].Path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "the disk as of point 2")
	require.Less(t, disks[0].Data, int64(len(want)), "holes stay holes")
	info, err := os.Stat(disks[1].Path)
	require.NoError(t, err)
	require.Equal(t, int64(10*block+512), info.Size())
	files, err := os.ReadDir(out)
	require.NoError(t, err)
	require.Len(t, files, 2, "a name in the manifest is never a path")

	_, err = Write(t.Context(), s, st, p, out, nil)
	require.ErrorIs(t, err, os.ErrExist)
	again, err := Find(t.Context(), s, st.Spec.Machine.String())
	require.NoError(t, err)
	require.Empty(t, again.Points[1].Holds, "the point is released")
}

// Also where a file system has lost what it had and gives holes instead.
func TestDamageIsNotWritten(t *testing.T) {
	for name, damage := range map[string]func(f *os.File) error{
		"a byte": func(f *os.File) error { _, err := f.WriteAt([]byte{0xff, 0xfe}, 100); return err },
		"a hole": func(f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 50*block, block)
		},
		"all are holes": func(f *os.File) error { return errors.Join(f.Truncate(0), f.Truncate(100*block)) },
		"cut off":       func(f *os.File) error { return f.Truncate(20 * block) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := file.Open(dir)
			require.NoError(t, err)
			protect(t, s, "db-1", "1")
			st, err := Find(t.Context(), s, "db-1")
			require.NoError(t, err)
			f, err := os.OpenFile(image(t, dir, st), os.O_RDWR, 0)
			require.NoError(t, err)
			require.NoError(t, errors.Join(damage(f), f.Close()))
			p, err := Point(st, 0)
			require.NoError(t, err)
			out := t.TempDir()
			_, err = Write(t.Context(), s, st, p, out, nil)
			require.ErrorIs(t, err, replica.ErrCorrupt)
			files, err := os.ReadDir(out)
			require.NoError(t, err)
			require.Empty(t, files)
		})
	}
}

// image is the first disk's file in the store.
func image(t *testing.T, store string, st replica.State) string {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(store, "machines", st.Spec.Machine.String(), "disks", st.Spec.Disks[0].ID.String()+"*"))
	require.NoError(t, err)
	require.Len(t, images, 1)
	return images[0]
}

func TestFind(t *testing.T) {
	s := open(t)
	protect(t, s, "twin", "1")
	protect(t, s, "twin", "2")
	protect(t, s, "alone", "3")
	all, err := Machines(t.Context(), s)
	require.NoError(t, err)
	require.Equal(t, "alone", all[0].Spec.Name)
	_, err = Find(t.Context(), s, "twin")
	require.ErrorContains(t, err, ident.NewMachineID("vc", "1").String())
	st, err := Find(t.Context(), s, ident.NewMachineID("vc", "2").String())
	require.NoError(t, err)
	_, err = Find(t.Context(), s, "nobody")
	require.ErrorIs(t, err, replica.ErrNotFound)
	_, err = Point(st, 99)
	require.ErrorIs(t, err, ErrNoPoint)
	p, err := Point(st, 0)
	require.NoError(t, err)
	require.Equal(t, ident.Seq(3), p.ID)
	require.False(t, p.Time.After(time.Now().Add(time.Hour)))
}
