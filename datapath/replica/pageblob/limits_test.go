package pageblob

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// TestWhatTheEmulatorWouldTake and Azure does not: it is never asked for.
func TestWhatTheEmulatorWouldTake(t *testing.T) {
	l, p := newFaultLab(t)
	w, _ := l.w.(*Writer)
	image := w.open[l.spec.Disks[0].ID].vhd
	var changes atomic.Int64
	p.Set(func(r *http.Request) azurite.Fault {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			changes.Add(1)
		}
		return azurite.Fault{}
	})
	_, err := image.put(t.Context(), w.mf.word(), 0, make([]byte, maxPut+pageBytes))
	require.ErrorContains(t, err, "one request takes")
	_, err = image.put(t.Context(), w.mf.word(), 1, make([]byte, pageBytes))
	require.ErrorContains(t, err, "not whole pages")
	_, err = image.clear(t.Context(), w.mf.word(), 0, pageBytes+1)
	require.ErrorContains(t, err, "not whole pages")
	beyond := l.set(changeset.Delta, 1).Write(0, l.spec.Disks[0].Size, rt.Pattern(1, block)).Cut(rt.Crash())
	_, err = l.w.Apply(t.Context(), beyond)
	require.ErrorContains(t, err, "not whole blocks inside the disk")

	m := ident.NewMachineID("vcenter", "large")
	_, err = l.store.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "large", KeyID: "k",
		Disks: []replica.Disk{{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, "d"), Size: 8 << 40}}}})
	require.Error(t, err)
	_, err = l.store.OpenReader(t.Context(), m)
	require.ErrorIs(t, err, replica.ErrNotFound)
	require.Zero(t, changes.Load(), "all was refused before anything was asked for")
}

// TestHalfEmptyDiskCostsHalf: of a new replica, zeros are neither written nor cleared; later
// ones are cleared by few requests. All that is written comes with a checksum that the
// account compares.
func TestHalfEmptyDiskCostsHalf(t *testing.T) {
	const size, half = 64 << 20, 32 << 20
	p := azurite.NewProxy(t, azurite.Shared(t))
	dir := t.TempDir()
	azurite.Shared(t).Account(t, dir)
	s, err := Open(t.Context(), Config{Account: azurite.AccountAt(p.Endpoint(), dir), Limits: azurite.Unlimited()})
	require.NoError(t, err)
	m := ident.NewMachineID("vcenter", "m")
	w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "m", KeyID: "k",
		Disks: []replica.Disk{{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, "d"), Size: size}}}})
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))

	var puts, clears, bytes, unchecked atomic.Int64
	p.Set(func(r *http.Request) azurite.Fault {
		switch {
		case r.Method != http.MethodPut || r.ContentLength == 0 && r.Header.Get("x-ms-page-write") != "clear":
			return azurite.Fault{}
		case r.Header.Get("x-ms-page-write") == "clear":
			clears.Add(1)
			return azurite.Fault{}
		case r.Header.Get("x-ms-content-crc64") == "":
			unchecked.Add(1)
		}
		if isPagePut(r) && strings.HasSuffix(r.URL.Path, diskSuffix) {
			puts.Add(1)
			bytes.Add(r.ContentLength)
		}
		return azurite.Fault{}
	})
	set := rt.After(w.State(), changeset.Base)
	for off := int64(0); off < size; off += 2 * maxPut {
		set.Write(0, off, rt.Pattern(uint64(off), maxPut)).Zero(0, off+maxPut, maxPut) //nolint:gosec // small
	}
	_, err = w.Apply(t.Context(), set.Cut(rt.Complete()))
	require.NoError(t, err)
	require.Equal(t, int64(half), bytes.Load())
	require.Equal(t, int64(half/maxPut), puts.Load())
	require.Zero(t, clears.Load())

	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Delta).Zero(0, 0, size).Cut(rt.Crash()))
	require.NoError(t, err)
	require.Equal(t, int64(half), bytes.Load())
	require.Positive(t, clears.Load())
	require.LessOrEqual(t, clears.Load(), int64(4), "of the image and its checksums")
	require.Zero(t, unchecked.Load(), "nothing is written without a checksum")
}
