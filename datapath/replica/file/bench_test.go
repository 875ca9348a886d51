package file

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
)

// BenchmarkApplyAndRead measures a base copy of 128 MiB, deltas of 4 MiB in
// scattered blocks, and reading the oldest point over all their undo.
func BenchmarkApplyAndRead(b *testing.B) {
	const size, deltas, blocks = 128 << 20, 30, 1024
	spec := rt.Spec()
	spec.Disks = spec.Disks[:1]
	spec.Disks[0].Size = size
	data := rt.Pattern(1, size)
	for b.Loop() {
		s, err := Open(b.TempDir())
		require.NoError(b, err)
		w, err := s.OpenWriter(b.Context(), 1, spec)
		require.NoError(b, err)
		require.NoError(b, w.BeginGeneration(b.Context(), spec.Disks, false, nil))
		base := rt.After(w.State(), changeset.Base).Write(0, 0, data).Cut(rt.Complete())
		timed(b, "base-s", func() { applied(b, w, base) })
		sets := 0.0
		for i := range uint64(deltas) {
			d := rt.After(w.State(), changeset.Delta)
			for k := range uint64(blocks) {
				d.Write(0, int64((i*31+k*32)%(size/block))*block, data[k*block:(k+1)*block])
			}
			cs := d.Cut(rt.Crash())
			start := b.Elapsed()
			applied(b, w, cs)
			sets += (b.Elapsed() - start).Seconds()
		}
		b.ReportMetric(sets/deltas*1000, "delta-ms")
		r, err := s.OpenReader(b.Context(), spec.Machine)
		require.NoError(b, err)
		timed(b, "read-s", func() {
			h, err := r.OpenDisk(b.Context(), 1, spec.Disks[0].ID)
			require.NoError(b, err)
			_, err = io.Copy(io.Discard, io.NewSectionReader(h, 0, size))
			require.NoError(b, err)
			require.NoError(b, h.Close())
		})
		require.NoError(b, w.Close())
	}
}

func applied(b *testing.B, w replica.Writer, cs replica.ChangeSet) {
	b.Helper()
	_, err := w.Apply(b.Context(), cs)
	require.NoError(b, err)
}

func timed(b *testing.B, unit string, fn func()) {
	b.Helper()
	start := b.Elapsed()
	fn()
	b.ReportMetric((b.Elapsed() - start).Seconds(), unit)
}
