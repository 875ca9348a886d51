package pageblob

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// TestOneDiskDoesNotStarveOthers: the service answers nothing of one machine's disk; those
// of others are written all the same, and never are more requests under way than are
// allowed.
func TestOneDiskDoesNotStarveOthers(t *testing.T) {
	const inFlight, machines = 4, 4
	p := azurite.NewProxy(t, azurite.Shared(t))
	dir := t.TempDir()
	azurite.Shared(t).Account(t, dir)
	s, err := Open(t.Context(), Config{Account: azurite.AccountAt(p.Endpoint(), dir), Limits: azurite.Unlimited(), Parallel: 2, InFlight: inFlight})
	require.NoError(t, err)
	var writers []replica.Writer
	for i := range machines {
		m := ident.NewMachineID("vcenter", "m"+strconv.Itoa(i))
		w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "m", KeyID: "k",
			Disks: []replica.Disk{{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, "d"), Size: 16 << 20}}}})
		require.NoError(t, err)
		defer func() { require.NoError(t, w.Close()) }()
		require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
		writers = append(writers, w)
	}
	apply := func(w replica.Writer) error {
		set := rt.After(w.State(), changeset.Base)
		for off := int64(0); off < 16<<20; off += maxPut {
			set.Write(0, off, rt.Pattern(uint64(off), maxPut)) //nolint:gosec // small
		}
		_, err := w.Apply(t.Context(), set.Cut(rt.Complete()))
		return err
	}

	var stuck atomic.Int64
	release := make(chan struct{})
	slow := writers[0].State().Spec.Machine.String()
	p.Set(func(r *http.Request) azurite.Fault {
		if isPagePut(r) && strings.Contains(r.URL.Path, slow) {
			stuck.Add(1)
			<-release
		}
		return azurite.Fault{}
	})
	var first, others errgroup.Group
	first.Go(func() error { return apply(writers[0]) })
	require.Eventually(t, func() bool { return stuck.Load() == 2 }, time.Minute, time.Millisecond, "as many as one machine may have")
	for _, w := range writers[1:] {
		others.Go(func() error { return apply(w) })
	}
	require.NoError(t, others.Wait(), "while nothing of the first is answered")
	require.Equal(t, int64(2), stuck.Load())
	close(release)
	require.NoError(t, first.Wait())

	var waiting atomic.Int64
	gate := make(chan struct{})
	p.Set(func(r *http.Request) azurite.Fault {
		if isPagePut(r) {
			waiting.Add(1)
			<-gate
		}
		return azurite.Fault{}
	})
	for _, w := range writers {
		others.Go(func() error { return apply(w) })
	}
	require.Eventually(t, func() bool { return waiting.Load() == inFlight }, time.Minute, time.Millisecond)
	time.Sleep(50 * time.Millisecond) // room for one too many
	require.Equal(t, int64(inFlight), waiting.Load(), "four machines want eight")
	close(gate)
	require.NoError(t, others.Wait())
	_, err = Open(t.Context(), Config{Account: azurite.AccountAt(p.Endpoint(), dir), Parallel: 8, InFlight: 8})
	require.ErrorContains(t, err, "want more for all")
}

// TestOneDiskDoesNotStarveItsMachine: the service answers nothing of a machine's largest
// disk, which comes first in the change set. It gets its share of the requests, the
// other disks are written meanwhile, and when they are done it gets theirs, too.
func TestOneDiskDoesNotStarveItsMachine(t *testing.T) {
	const parallel, small = 6, 12 << 20
	p := azurite.NewProxy(t, azurite.Shared(t))
	dir := t.TempDir()
	azurite.Shared(t).Account(t, dir)
	s, err := Open(t.Context(), Config{Account: azurite.AccountAt(p.Endpoint(), dir), Limits: azurite.Unlimited(), Parallel: parallel})
	require.NoError(t, err)
	m := ident.NewMachineID("vcenter", "m")
	spec := replica.Spec{Machine: m, Name: "m", KeyID: "k"}
	for i, size := range []int64{64 << 20, small, small} {
		spec.Disks = append(spec.Disks, replica.Disk{Name: "disk", Disk: changeset.Disk{ID: ident.NewDiskID(m, strconv.Itoa(i)), Size: size}})
	}
	w, err := s.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
	set := rt.After(w.State(), changeset.Base)
	for i, d := range spec.Disks {
		for off := int64(0); off < d.Size; off += maxPut {
			set.Write(i, off, rt.Pattern(uint64(off)+uint64(i), maxPut)) //nolint:gosec // small
		}
	}

	var stuck, most, others atomic.Int64
	release := make(chan struct{})
	p.Set(func(r *http.Request) azurite.Fault {
		switch image := isPagePut(r) && strings.HasSuffix(r.URL.Path, diskSuffix); {
		case image && strings.Contains(r.URL.Path, spec.Disks[0].ID.String()):
			n := stuck.Add(1)
			if others.Load() < 2*small/maxPut {
				most.Store(n)
			}
			<-release
		case image:
			others.Add(1)
		}
		return azurite.Fault{}
	})
	var g errgroup.Group
	g.Go(func() error {
		_, err := w.Apply(t.Context(), set.Cut(rt.Complete()))
		return err
	})
	require.Eventually(t, func() bool { return others.Load() == 2*small/maxPut }, time.Minute, time.Millisecond, "while nothing of the first is answered")
	require.LessOrEqual(t, most.Load(), int64(parallel/2), "half of them, while another disk is not done")
	require.Eventually(t, func() bool { return stuck.Load() >= parallel }, time.Minute, time.Millisecond, "alone it may have them all")
	close(release)
	require.NoError(t, g.Wait())
	require.Len(t, w.State().Points, 1)

	r, err := s.OpenReader(t.Context(), m)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	for i, d := range spec.Disks {
		disk, err := r.OpenDisk(t.Context(), w.State().Points[0].ID, d.ID)
		require.NoError(t, err)
		b := make([]byte, maxPut)
		for off := int64(0); off < d.Size; off += maxPut {
			_, err := disk.ReadAt(b, off)
			require.NoError(t, err)
			require.True(t, bytes.Equal(rt.Pattern(uint64(off)+uint64(i), maxPut), b)) //nolint:gosec // small
		}
		require.NoError(t, disk.Close())
	}
}
