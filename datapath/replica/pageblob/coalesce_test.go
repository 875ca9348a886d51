package pageblob

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// windowOf is a window of a blob whose first full blocks hold data, with blocks to write
// every step from the first on.
func windowOf(full, step, n int64) *window {
	w := &window{known: true}
	for i := range full {
		w.sums[i] = 1
	}
	for i := range n {
		w.state[i*step] = data
	}
	return w
}

func TestPieces(t *testing.T) {
	for name, c := range map[string]struct {
		w    *window
		want int // pieces
	}{
		"one run":                    {windowOf(windowBlocks, 1, windowBlocks), 1},
		"close together":             {windowOf(windowBlocks, 2, 500), 1},
		"two are not worth a read":   {windowOf(windowBlocks, 2, 2), 2},
		"far apart":                  {windowOf(windowBlocks, 100, 10), 10},
		"empty, one block between":   {windowOf(0, 2, 500), 1},
		"empty, many blocks between": {windowOf(0, 2+maxEmpty, 100), 100},
	} {
		p := c.w.pieces()
		require.Len(t, p, c.want, name)
		for _, x := range p {
			require.Equal(t, byte(data), x.kind, name)
		}
	}
	w := windowOf(windowBlocks, 2, 500)
	w.known = false
	require.Len(t, w.pieces(), 500, "what is between them is not known")
	w = windowOf(windowBlocks, 2, 500)
	for i := 400; i < 400+minClear; i++ {
		w.state[i] = zeros
	}
	p := w.pieces()
	require.Len(t, p, 3, "long zeros are cleared")
	require.Equal(t, byte(zeros), p[1].kind)
	require.Equal(t, int64(1), p[0].gaps.from)
	require.Equal(t, int64(398), p[0].gaps.to)
}

// scatter writes every second block of the first two MiB.
func scatter(w replica.Writer, n uint64) *rt.Builder {
	set := rt.After(w.State(), changeset.Delta)
	for off := int64(0); off < 2<<20; off += 2 * block {
		set.Write(0, off, rt.Pattern(n+uint64(off), block)) //nolint:gosec // small
	}
	return set
}

// newScatterLab has a machine with a disk of 4 MiB, full of data in its first half.
func newScatterLab(t *testing.T) (*Writer, *Store) {
	s := openStore(t, t.TempDir())
	m := ident.NewMachineID("vcenter", "scatter")
	w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "scatter", KeyID: "k",
		Disks: []replica.Disk{{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, "d"), Size: 4 << 20}}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Base).Write(0, 0, rt.Pattern(7, 2<<20)).Cut(rt.Complete()))
	require.NoError(t, err)
	out, _ := w.(*Writer)
	return out, s
}

func wantScattered(n uint64) []byte {
	want := rt.Pattern(7, 2<<20)
	for off := 0; off < 2<<20; off += 2 * block {
		copy(want[off:], rt.Pattern(n+uint64(off), block)) //nolint:gosec // small
	}
	return append(want, make([]byte, 2<<20)...)
}

// TestScatteredWritesAreJoined: 256 runs need one read and one write, and what is between
// them stays.
func TestScatteredWritesAreJoined(t *testing.T) {
	w, s := newScatterLab(t)
	before := w.requests()
	p, err := w.Apply(t.Context(), scatter(w, 1000).Cut(rt.Crash()))
	require.NoError(t, err)
	require.LessOrEqual(t, w.requests()-before, int64(8), "pages, sums and snapshots")
	r, err := s.OpenReader(t.Context(), w.m.id)
	require.NoError(t, err)
	require.Equal(t, wantScattered(1000), rt.ReadPoint(t, r, p)[0])
	require.NoError(t, r.Close())
	pages := int64(0)
	for _, o := range w.open {
		require.NoError(t, o.vhd.written(t.Context(), 0, o.disk.Size, func(from, to int64) error { pages += to - from; return nil }))
	}
	require.Equal(t, int64(2<<20), pages, "no empty range is stored")
}

// TestDamageIsNotWrittenAnew: a block between two runs that does not match its checksum
// stays as it is, so that it is found.
func TestDamageIsNotWrittenAnew(t *testing.T) {
	w, s := newScatterLab(t)
	d := w.State().Spec.Disks[0]
	_, err := w.open[d.ID].vhd.put(t.Context(), w.mf.word(), 5*block, rt.Pattern(666, block))
	require.NoError(t, err)
	p, err := w.Apply(t.Context(), scatter(w, 1000).Cut(rt.Crash()))
	require.NoError(t, err)
	r, err := s.OpenReader(t.Context(), w.m.id)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	disk, err := r.OpenDisk(t.Context(), p.ID, d.ID)
	require.NoError(t, err)
	defer func() { require.NoError(t, disk.Close()) }()
	b, want := make([]byte, block), wantScattered(1000)
	for i := range int64(512) {
		_, err := disk.ReadAt(b, i*block)
		if i == 5 {
			require.ErrorIs(t, err, replica.ErrCorrupt)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want[i*block:(i+1)*block], b)
	}
}

// TestNoSecondWriteAfterOneWithoutAnswer: a joined write could come late and undo what is
// written next at the same place, so the set is applied again under another word.
func TestNoSecondWriteAfterOneWithoutAnswer(t *testing.T) {
	l, p := newFaultLab(t)
	w, _ := l.w.(*Writer)
	up := newUploads(t.Context(), newShares(1, 1))
	defer up.stop()
	d := newDiskWriter(w, w.open[l.spec.Disks[0].ID], up, false)
	first, err := d.window(0)
	require.NoError(t, err)
	copy(first.buf[:block], rt.Pattern(1, block))
	first.state[0] = data
	lost := false
	p.Set(func(r *http.Request) azurite.Fault {
		f := azurite.Fault{LoseReply: !lost && isPagePut(r)}
		lost = lost || f.LoseReply
		return f
	})
	d.windows = nil
	require.NoError(t, d.send(first))
	_, err = d.window(0)
	require.ErrorIs(t, err, errLate)
	require.NoError(t, up.wait())
}
