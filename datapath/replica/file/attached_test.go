package file

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
)

// attachedLab has a machine with points whose first disk lies at a path outside.
func attachedLab(t *testing.T) (*Store, replica.Spec, string) {
	t.Helper()
	dir := t.TempDir()
	spec := rt.Spec()
	spec.Disks[0].Path = filepath.Join(dir, "sdb")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, rt.Pattern(7, spec.Disks[0].Size), 0o600))
	store, err := Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	w, err := store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	require.NoError(t, w.BeginGeneration(t.Context(), spec.Disks, true, nil))
	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Base).Write(0, block, rt.Pattern(5, block)).Cut(rt.Complete()))
	require.NoError(t, err)
	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Delta).Write(0, block, rt.Pattern(6, block)).Cut(rt.Crash()))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return store, spec, dir
}

// A link to the device is the same place as the device; points stay readable by it.
func TestAttachedDiskByAnotherPath(t *testing.T) {
	store, spec, dir := attachedLab(t)
	link := filepath.Join(dir, "by-id")
	require.NoError(t, os.Symlink(spec.Disks[0].Path, link))
	want := rt.Pattern(7, spec.Disks[0].Size)
	copy(want[block:], rt.Pattern(5, block))
	spec.Disks[0].Path = link
	w, err := store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	require.Equal(t, link, w.State().Spec.Disks[0].Path)
	_, err = w.Leaves(spec.Disks[0].ID)
	require.NoError(t, err, "its content is known")
	require.NoError(t, os.Rename(filepath.Join(dir, "sdb"), filepath.Join(dir, "sdc")), "a reboot")
	require.NoError(t, os.Remove(link))
	require.NoError(t, os.Symlink(filepath.Join(dir, "sdc"), link))
	require.NoError(t, w.Close())
	w, err = store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	require.Equal(t, uint32(1), w.State().Generation)
	r, err := store.OpenReader(t.Context(), spec.Machine)
	require.NoError(t, err)
	rt.CheckDisk(t, r, 1, spec.Disks[0].ID, want)
	require.NoError(t, w.Close())
}

// Another disk is another place: points need the one they were made on.
func TestAttachedDiskThatMoves(t *testing.T) {
	store, spec, dir := attachedLab(t)
	old := spec.Disks[0].Path
	spec.Disks[0].Path = filepath.Join(dir, "other")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, make([]byte, spec.Disks[0].Size), 0o600))
	w, err := store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	require.Equal(t, old, w.State().Spec.Disks[0].Path)
	require.ErrorContains(t, w.BeginGeneration(t.Context(), spec.Disks, false, nil), "attach that disk")
	require.Equal(t, old, w.State().Spec.Disks[0].Path, "nothing has changed")
	require.Len(t, w.State().Points, 2)
	require.NoError(t, w.Close())
}

// Without points nobody needs the old one; what is on the new one is read first.
func TestAttachedDiskThatMovesBeforeThereArePoints(t *testing.T) {
	dir := t.TempDir()
	spec := rt.Spec()
	spec.Disks[0].Path = filepath.Join(dir, "sdb")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, rt.Pattern(7, spec.Disks[0].Size), 0o600))
	store, err := Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	w, err := store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
	require.NoError(t, w.BeginGeneration(t.Context(), spec.Disks, true, nil))
	spec.Disks[0].Path = filepath.Join(dir, "other")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, make([]byte, spec.Disks[0].Size), 0o600))
	require.NoError(t, w.BeginGeneration(t.Context(), spec.Disks, false, nil))
	require.Equal(t, spec.Disks[0].Path, w.State().Spec.Disks[0].Path)
	leaves, err := w.Leaves(spec.Disks[0].ID)
	require.NoError(t, err)
	sums := make([]uint64, leaves.Len())
	require.NoError(t, leaves.ReadSums(0, sums))
	require.Equal(t, make([]uint64, len(sums)), sums, "there are zeros")
}
