package pageblob

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"drover/datapath/azstorage"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

const (
	benchDisk  = 256 << 20 // half of it is data
	benchDelta = 4000      // blocks, anywhere: 6 % of them
)

// benchWriter is a new machine's, on an account of its own.
func benchWriter(b *testing.B) *Writer {
	b.Helper()
	s, err := Open(b.Context(), Config{Account: azurite.Shared(b).Account(b, b.TempDir()), Limits: azurite.Unlimited()})
	require.NoError(b, err)
	m := ident.NewMachineID("vcenter", "bench")
	w, err := s.OpenWriter(b.Context(), 1, replica.Spec{Machine: m, Name: "bench", KeyID: "k",
		Disks: []replica.Disk{{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, "d"), Size: benchDisk}}}})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, w.Close()) })
	require.NoError(b, w.BeginGeneration(b.Context(), w.State().Spec.Disks, false, nil))
	out, _ := w.(*Writer)
	return out
}

func (w *Writer) requests() (n int64) {
	for _, o := range w.open {
		n += o.vhd.pacer.Requests() + o.sums.pacer.Requests()
	}
	return n
}

// measure reports MB/s of data and page blob requests per GiB of it.
func (w *Writer) measure(b *testing.B, bytes int64, apply func()) {
	b.Helper()
	begun, requests := time.Now(), w.requests()
	apply()
	b.ReportMetric(float64(bytes)/1e6/time.Since(begun).Seconds(), "MB/s")
	b.ReportMetric(float64(w.requests()-requests)*float64(1<<30)/float64(bytes), "requests/GiB")
}

// BenchmarkInitialReplication copies a disk of which every second 4 MiB are zeros.
func BenchmarkInitialReplication(b *testing.B) {
	for range b.N {
		w := benchWriter(b)
		set := rt.After(w.State(), changeset.Base)
		for off := int64(0); off < benchDisk; off += 2 * maxPut {
			set.Write(0, off, rt.Pattern(uint64(off), maxPut)).Zero(0, off+maxPut, maxPut)
		}
		cs := set.Cut(rt.Complete())
		w.measure(b, benchDisk/2, func() {
			_, err := w.Apply(b.Context(), cs)
			require.NoError(b, err)
		})
	}
}

// BenchmarkRandomDelta writes single blocks all over a disk that has data: few of them,
// and so many that it is worth reading what is between them.
func BenchmarkRandomDelta(b *testing.B) {
	for _, n := range []int{benchDelta, 4 * benchDelta} {
		b.Run(fmt.Sprintf("%d%%", n*100/(benchDisk/block)), func(b *testing.B) {
			for range b.N {
				randomDelta(b, n)
			}
		})
	}
}

func randomDelta(b *testing.B, n int) {
	b.Helper()
	w := benchWriter(b)
	set := rt.After(w.State(), changeset.Base)
	for off := int64(0); off < benchDisk; off += maxPut {
		set.Write(0, off, rt.Pattern(uint64(off), maxPut)) //nolint:gosec // small
	}
	_, err := w.Apply(b.Context(), set.Cut(rt.Complete()))
	require.NoError(b, err)
	set, rnd := rt.After(w.State(), changeset.Delta), rand.New(rand.NewPCG(1, 1))
	blocks := rnd.Perm(benchDisk / block)[:n]
	slices.Sort(blocks)
	for _, at := range blocks {
		set.Write(0, int64(at)*block, rt.Pattern(uint64(at), block)) //nolint:gosec // small
	}
	cs := set.Cut(rt.Crash())
	w.measure(b, int64(n)*block, func() {
		_, err := w.Apply(b.Context(), cs)
		require.NoError(b, err)
	})
}

// BenchmarkFloor is a plain loop of Put Page of 4 MiB, as many at once: what we must
// not be slower than.
func BenchmarkFloor(b *testing.B) {
	for range b.N {
		c, err := azstorage.Open(azurite.Shared(b).Account(b, b.TempDir()))
		require.NoError(b, err)
		p := c.NewPageBlobClient("floor")
		_, err = p.Create(b.Context(), benchDisk, nil)
		require.NoError(b, err)
		data := rt.Pattern(3, maxPut)
		begun := time.Now()
		var g errgroup.Group
		g.SetLimit(defaultParallel)
		for off := int64(0); off < benchDisk; off += 2 * maxPut {
			g.Go(func() error {
				_, err := p.UploadPages(b.Context(), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: off, Count: maxPut},
					&sdk.UploadPagesOptions{TransactionalValidation: azstorage.CRC64(data)})
				return err
			})
		}
		require.NoError(b, g.Wait())
		b.ReportMetric(benchDisk/2/1e6/time.Since(begun).Seconds(), "MB/s")
		b.ReportMetric(float64(1<<30)/maxPut, "requests/GiB")
	}
}
