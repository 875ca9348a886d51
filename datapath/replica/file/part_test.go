package file

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
)

// breakOff applies a set until its first extent is in the image.
func (l *lab) breakOff(cs replica.ChangeSet) {
	l.t.Helper()
	l.store.failpoint = func(step string) error {
		if step == failpoint.ImageWritten {
			return errCrash
		}
		return nil
	}
	_, err := l.w.Apply(l.t.Context(), cs)
	require.ErrorIs(l.t, err, errCrash)
	l.reopen()
}

// TestSetWrittenInPart: after a crash in the middle of a set the images hold a part of
// it. The same set finishes the work; another one in its place (of a new owner, say) is
// refused; and a new generation does not trust the checksums of before.
func TestSetWrittenInPart(t *testing.T) {
	l := newLab(t)
	position := l.w.State().Position
	first := l.set(changeset.Delta, 9).Cut(rt.Crash())
	other := rt.After(l.w.State(), changeset.Delta).Write(1, 3*block, rt.Pattern(77, block)).Cut(rt.Crash())
	l.breakOff(first)
	require.Equal(t, position, l.w.State().Position)
	_, err := l.w.Apply(t.Context(), other)
	require.ErrorIs(t, err, replica.ErrGap)
	require.ErrorContains(t, err, "was written in part")
	l.check()
	l.must(first)
	l.check()

	l.breakOff(l.set(changeset.Delta, 11).Cut(rt.Crash()))
	l.check()
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
	l.check()
	for i, d := range l.w.State().Spec.Disks {
		leaves, err := l.w.Leaves(d.ID)
		require.NoError(t, err)
		got := make([]uint64, leaves.Len())
		require.NoError(t, leaves.ReadSums(0, got))
		require.Equal(t, checksum.SumAll(nil, d.Seed, 0, l.image(i)), got, "what is stored, not what should be")
	}
	l.must(l.set(changeset.Base, 12).Cut(rt.Complete()))
	l.check()
}

// image reads what is in a disk's image now.
func (l *lab) image(disk int) []byte {
	l.t.Helper()
	d := l.w.State().Spec.Disks[disk]
	img, err := l.store.machine(l.spec.Machine).openImage(d, false)
	require.NoError(l.t, err)
	b := make([]byte, d.Size)
	require.NoError(l.t, img.read(b, 0))
	require.NoError(l.t, img.close())
	return b
}

// The first set of all is no exception: a replica that may hold a part of it is not
// empty, and what is zeros at the source must be sent.
func TestFirstSetWrittenInPart(t *testing.T) {
	store := open(t, t.TempDir()).(*Store)
	spec := rt.Spec()
	l := &lab{t: t, dir: store.dir, store: store, spec: spec}
	l.reopen()
	t.Cleanup(func() { require.NoError(t, l.w.Close()) })
	require.NoError(t, l.w.BeginGeneration(t.Context(), spec.Disks, false, nil))
	require.True(t, l.w.State().Empty)
	l.breakOff(l.set(changeset.Base, 1).Cut(rt.Complete()))
	require.False(t, l.w.State().Empty)
}
