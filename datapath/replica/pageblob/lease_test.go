package pageblob

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"drover/datapath/azstorage"
	"drover/datapath/changeset"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// pageBlobs are those of the lab's machine, as they are past every proxy.
func (l *lab) pageBlobs() (out []*pages) {
	l.t.Helper()
	s := openStore(l.t, l.dir)
	m := s.machine(l.spec.Machine)
	for _, d := range l.spec.Disks {
		out = append(out, s.pages(m.diskName(d.ID)), s.pages(m.sumsName(d.ID)))
	}
	return out
}

// leaser has the id.
func leaser(t *testing.T, p *pages, id string) *lease.BlobClient {
	t.Helper()
	c, err := lease.NewBlobClient(p.c, &lease.BlobClientOptions{LeaseID: &id})
	require.NoError(t, err)
	return c
}

// leasedBy: every page blob has the lease of the epoch's owner, without an end.
func (l *lab) leasedBy(epoch ident.Epoch) {
	l.t.Helper()
	for _, p := range l.pageBlobs() {
		is, err := p.c.GetProperties(l.t.Context(), nil)
		require.NoError(l.t, err)
		require.Equal(l.t, lease.StateTypeLeased, *is.LeaseState, p.name)
		require.Equal(l.t, lease.DurationTypeInfinite, *is.LeaseDuration, p.name)
		_, err = leaser(l.t, p, uuid.NewString()).AcquireLease(l.t.Context(), forever, nil)
		require.True(l.t, bloberror.HasCode(err, bloberror.LeaseAlreadyPresent), "%v", err)
		_, err = leaser(l.t, p, leaseID(p.name, wordOf(epoch, 0))).AcquireLease(l.t.Context(), forever, nil)
		require.NoError(l.t, err, "%s is another's", p.name)
	}
}

// stealLeases gives all page blobs the lease that id names for each; "" leaves them without one.
func (l *lab) stealLeases(id func(p *pages) string) {
	l.t.Helper()
	for _, p := range l.pageBlobs() {
		_, err := leaser(l.t, p, uuid.NewString()).BreakLease(context.WithoutCancel(l.t.Context()), &lease.BlobBreakOptions{BreakPeriod: to.Ptr[int32](0)})
		require.NoError(l.t, err)
		if id := id(p); id != "" {
			_, err = leaser(l.t, p, id).AcquireLease(l.t.Context(), forever, nil)
			require.NoError(l.t, err)
		}
	}
}

func nobodys(*pages) string   { return "" }
func somebodys(*pages) string { return uuid.NewString() }
func ofEpoch(e ident.Epoch) func(*pages) string {
	return func(p *pages) string { return leaseID(p.name, wordOf(e, 0)) }
}

func isLease(r *http.Request, action string) bool {
	return r.URL.Query().Get("comp") == "lease" && (action == "" || r.Header.Get("x-ms-lease-action") == action)
}

// countLeases counts the requests for leases that pass from now on.
func countLeases(p *azurite.Proxy) *atomic.Int64 {
	n := new(atomic.Int64)
	p.Set(func(r *http.Request) azurite.Fault {
		if isLease(r, "") {
			n.Add(1)
		}
		return azurite.Fault{}
	})
	return n
}

// TestLeaseKeepsOthersAway: whoever has all rights, and no business with a seed disk, can
// neither overwrite nor delete it by mistake, while the store goes on and points are read.
func TestLeaseKeepsOthersAway(t *testing.T) {
	l := newLab(t)
	l.leasedBy(1)
	for _, p := range l.pageBlobs() {
		for name, f := range map[string]func() error{
			"delete": func() error {
				_, err := p.c.Delete(t.Context(), &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
				return err
			},
			"put page": func() error {
				_, err := p.c.UploadPages(t.Context(), streaming.NopCloser(strings.NewReader(strings.Repeat("x", pageBytes))), blob.HTTPRange{Count: pageBytes}, nil)
				return err
			},
			"clear pages": func() error {
				_, err := p.c.ClearPages(t.Context(), blob.HTTPRange{Count: pageBytes}, nil)
				return err
			},
			"overwrite": func() error {
				_, err := p.c.Create(t.Context(), 1<<20, nil)
				return err
			},
			"resize": func() error {
				_, err := p.c.Resize(t.Context(), pageBytes, nil)
				return err
			},
			"sequence number": func() error {
				_, err := p.c.UpdateSequenceNumber(t.Context(), &sdk.UpdateSequenceNumberOptions{ActionType: to.Ptr(sdk.SequenceNumberActionTypeUpdate), SequenceNumber: to.Ptr[int64](0)})
				return err
			},
			"metadata": func() error {
				_, err := p.c.SetMetadata(t.Context(), map[string]*string{"a": to.Ptr("b")}, nil)
				return err
			},
		} {
			err := f()
			require.True(t, bloberror.HasCode(err, bloberror.LeaseIDMissing), "%s of %s: %v", name, p.name, err)
		}
	}
	l.must(l.set(changeset.Delta, 20).Cut(rt.Crash()))
	l.check()
}

// TestLeaseIsKnownAgain: an owner that is started again has its lease, and asks for nothing.
func TestLeaseIsKnownAgain(t *testing.T) {
	l, p := newFaultLab(t)
	n := countLeases(p)
	l.openWriter(1)
	l.must(l.set(changeset.Delta, 20).Cut(rt.Crash()))
	require.Zero(t, n.Load())
	l.leasedBy(1)
}

// TestNewOwnerTakesTheLease: the new owner takes it once for each blob, the old one is fenced as
// ever and does not touch it any more.
func TestNewOwnerTakesTheLease(t *testing.T) {
	l, p := newFaultLab(t)
	old, _ := l.w.(*Writer)
	l.w, l.store = nil, openStore(t, l.dir)
	l.openWriter(2)
	l.leasedBy(2)
	n := countLeases(p)
	cs := rt.After(old.State(), changeset.Delta).Write(0, 0, rt.Pattern(9, block)).Cut(rt.Crash())
	_, err := old.Apply(t.Context(), cs)
	require.ErrorIs(t, err, replica.ErrFenced)
	_, err = old.open[l.spec.Disks[0].ID].vhd.put(t.Context(), old.mf.word(), 0, make([]byte, block))
	require.ErrorIs(t, err, replica.ErrFenced)
	require.ErrorIs(t, old.open[l.spec.Disks[0].ID].vhd.take(t.Context(), old.mf.word()), replica.ErrFenced, "it looks first")
	_, err = old.m.store.OpenWriter(t.Context(), 1, l.spec)
	require.ErrorIs(t, err, replica.ErrFenced)
	require.Zero(t, n.Load())
	p.Set(func(r *http.Request) azurite.Fault { // as Azure may, which could look at the lease first
		require.False(t, isLease(r, ""))
		if isPagePut(r) {
			return azurite.Fault{Status: http.StatusConflict, Code: string(bloberror.LeaseIDMismatchWithBlobOperation)}
		}
		return azurite.Fault{}
	})
	_, err = old.open[l.spec.Disks[0].ID].vhd.put(t.Context(), old.mf.word(), 0, make([]byte, block))
	require.ErrorIs(t, err, replica.ErrFenced)
	require.NoError(t, old.Close())
	l.must(l.set(changeset.Delta, 20).Cut(rt.Crash()))
	l.leasedBy(2)
	l.check()
}

// TestLeaseIsTakenBack: whatever becomes of the lease while a change set is written, the set
// is written, and the lease is the owner's again.
func TestLeaseIsTakenBack(t *testing.T) {
	for name, whose := range map[string]func(*pages) string{"broken by hand": nobodys, "somebody's": somebodys, "an old owner's": ofEpoch(1)} {
		t.Run(name, func(t *testing.T) {
			l, p := newFaultLab(t)
			l.openWriter(2)
			for at := int64(1); at <= 4; at++ {
				var puts, leases atomic.Int64
				var theft sync.Mutex // nothing is taken back before all is stolen
				p.Set(func(r *http.Request) azurite.Fault {
					theft.Lock()
					defer theft.Unlock()
					if isPagePut(r) && puts.Add(1) == at {
						l.stealLeases(whose)
					}
					if isLease(r, "") {
						leases.Add(1)
					}
					return azurite.Fault{}
				})
				set := l.set(changeset.Delta, 20+uint64(at)) //nolint:gosec // four
				for off := int64(8); off < 40; off += 4 {    // many requests at once
					set.Write(0, off*block, rt.Pattern(uint64(off)+uint64(at), block)) //nolint:gosec // small
				}
				l.must(set.Cut(rt.Crash()))
				p.Set(nil)
				require.Positive(t, leases.Load())
				require.LessOrEqual(t, leases.Load(), int64(3*2*len(l.spec.Disks)+2*defaultParallel), "once for each blob, and for each request that was under way")
			}
			l.openWriter(2) // what was not written since takes it now
			l.leasedBy(2)
			l.noLitter()
			l.check()
		})
	}
}

// TestLeaseIsNotFoughtFor without end: the change set fails for now, and nobody is fenced.
func TestLeaseIsNotFoughtFor(t *testing.T) {
	l, p := newFaultLab(t)
	var puts atomic.Int64
	p.Set(func(r *http.Request) azurite.Fault {
		if isPagePut(r) {
			puts.Add(1)
			return azurite.Fault{Status: http.StatusPreconditionFailed, Code: string(bloberror.LeaseIDMismatchWithBlobOperation)}
		}
		return azurite.Fault{}
	})
	cs := rt.After(l.w.State(), changeset.Delta).Write(0, 0, rt.Pattern(9, block)).Cut(rt.Crash())
	_, err := l.w.Apply(t.Context(), cs)
	require.ErrorContains(t, err, string(bloberror.LeaseIDMismatchWithBlobOperation))
	require.NotErrorIs(t, err, replica.ErrFenced)
	require.LessOrEqual(t, puts.Load(), int64(2*(1+maxTakes)), "of disk and checksums")
	p.Set(nil)
	l.must(cs)
	l.check()
}

// TestReplicaWithoutLeases is one of an earlier release: the next session takes them, and so
// does the next write.
func TestReplicaWithoutLeases(t *testing.T) {
	l := newLab(t)
	for _, p := range l.pageBlobs() {
		_, err := leaser(t, p, leaseID(p.name, wordOf(1, 0))).ReleaseLease(t.Context(), nil)
		require.NoError(t, err)
	}
	l.must(l.set(changeset.Delta, 20).Cut(rt.Crash()))
	l.leasedBy(1)
	l.stealLeases(nobodys)
	l.reopen()
	l.leasedBy(1)
	l.check()
}

// TestCrashWhileTheOwnerChanges: wherever the new owner ends, before the word is raised the old
// one's lease does not stand in its way, the old one can commit nothing, and the next try of the new one
// has all.
func TestCrashWhileTheOwnerChanges(t *testing.T) {
	seen := map[string]bool{}
	l := newLab(t)
	for n, epoch := 1, ident.Epoch(2); ; n, epoch = n+1, epoch+1 {
		require.Less(t, n, maxSteps)
		old, _ := l.w.(*Writer)
		state := old.State()
		step := l.crashAt(n)
		_, err := l.store.OpenWriter(t.Context(), epoch, l.spec)
		l.store.failpoint = nil
		if err != nil {
			require.ErrorIs(t, err, errCrash)
			seen[*step] = true
			image := old.open[l.spec.Disks[0].ID].vhd
			is, err := image.props(t.Context())
			require.NoError(t, err)
			_, err = image.put(t.Context(), old.mf.word(), 30*block, rt.Pattern(3, block))
			if is.word == old.mf.word() {
				require.NoError(t, err, "no lease is in the way of who has the word")
				_, err = image.put(t.Context(), old.mf.word(), 30*block, make([]byte, block))
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, replica.ErrFenced)
			}
		}
		_, applied := old.Apply(t.Context(), rt.After(state, changeset.Delta).Write(0, 0, rt.Pattern(5, block)).Cut(rt.Crash()))
		require.ErrorIs(t, applied, replica.ErrFenced)
		l.store = openStore(t, l.dir)
		l.openWriter(epoch)
		l.leasedBy(epoch)
		l.must(l.set(changeset.Delta, 20+uint64(n)).Cut(rt.Crash())) //nolint:gosec // small
		if err == nil {
			break
		}
	}
	l.noLitter()
	l.checkNewest(6)
	for _, step := range []string{failpoint.LeaseBroken, failpoint.LeaseTaken} {
		require.True(t, seen[step], step)
	}
}

// TestEveryReplyOfALeaseIsLost while the owner changes, and while a lease is taken back.
func TestEveryReplyOfALeaseIsLost(t *testing.T) {
	l, p := newFaultLab(t)
	for _, action := range []string{"acquire", "break"} {
		var lost atomic.Int64
		lose := func() {
			lost.Store(0)
			p.Set(func(r *http.Request) azurite.Fault {
				if isLease(r, action) {
					return azurite.Fault{LoseReply: lost.Add(1)%2 == 1} // each once
				}
				return azurite.Fault{}
			})
		}
		epoch := l.w.State().Epoch + 1
		lose()
		l.openWriter(epoch)
		require.Positive(t, lost.Load(), action)
		l.leasedBy(epoch)
		l.stealLeases(somebodys)
		lose()
		l.must(l.set(changeset.Delta, uint64(20+epoch)).Cut(rt.Crash()))
		require.Positive(t, lost.Load(), action)
		p.Set(nil)
		l.leasedBy(epoch)
		l.noLitter()
	}
	l.check()
}

// TestLateBreakIsRefused: an old owner wants its lease back while a new one has it and not the word
// yet. Its request to break the new owner's lease is done when the word has risen.
func TestLateBreakIsRefused(t *testing.T) {
	l, p := newFaultLab(t)
	old, _ := l.w.(*Writer)
	l.w, l.store = nil, openStore(t, l.dir)
	l.store.failpoint = func(step string) error {
		if step == failpoint.LeaseTaken {
			return errCrash
		}
		return nil
	}
	_, err := l.store.OpenWriter(t.Context(), 2, l.spec)
	require.ErrorIs(t, err, errCrash)
	l.store.failpoint = nil
	l.stealLeases(ofEpoch(2)) // the other blobs', too

	late := make(chan struct{})
	var caught atomic.Bool
	p.Set(func(r *http.Request) azurite.Fault {
		if isLease(r, "break") && !caught.Swap(true) {
			return azurite.Fault{Late: late}
		}
		return azurite.Fault{}
	})
	image := old.open[l.spec.Disks[0].ID].vhd
	_, err = image.put(t.Context(), old.mf.word(), 30*block, make([]byte, block))
	require.NoError(t, err)
	require.True(t, caught.Load())
	require.NoError(t, old.Close())
	l.openWriter(2)
	close(late)
	p.Late()
	l.leasedBy(2)
	l.must(l.set(changeset.Delta, 20).Cut(rt.Crash()))
	l.check()
}

// TestRemoveLeased: what is removed is gone, whoever has leases on it, and a removal that broke
// off is finished by the next.
func TestRemoveLeased(t *testing.T) {
	l := newLab(t)
	l.stealLeases(somebodys)
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		l.crashAt(n)
		err := l.store.Remove(t.Context(), l.spec.Machine, 2)
		l.store.failpoint = nil
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errCrash)
	}
	require.NoError(t, l.store.c.Each(t.Context(), "", listAll, func(b *item) error { return errors.New(*b.Name + " is left") }))
}

// TestMakingDeletesNobodysDisk: a writer that saw no replica, and went on when another had made
// one, takes that one as it is.
func TestMakingDeletesNobodysDisk(t *testing.T) {
	l, p := newFaultLab(t)
	require.NoError(t, l.store.Remove(t.Context(), l.spec.Machine, 1))
	l.images = map[ident.Seq][][]byte{}
	other := openStore(t, l.dir)
	var made atomic.Bool
	p.Set(func(r *http.Request) azurite.Fault {
		if r.Header.Get("x-ms-blob-type") == "PageBlob" && !made.Swap(true) {
			w, err := other.OpenWriter(t.Context(), 1, l.spec)
			require.NoError(t, err)
			require.NoError(t, w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
			_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Base).Write(0, 0, rt.Pattern(4, block)).Cut(rt.Complete()))
			require.NoError(t, err)
			require.NoError(t, w.Close())
		}
		return azurite.Fault{}
	})
	l.openWriter(1)
	p.Set(nil)
	require.True(t, made.Load())
	points := l.w.State().Points
	require.Len(t, points, 1, "the other's point is there")
	require.Equal(t, rt.Pattern(4, block), rt.ReadPoint(t, l.reader(), points[0])[0][:block])
}

// TestStateDeletedByHand: the error says what stands in the way of making the replica anew.
func TestStateDeletedByHand(t *testing.T) {
	l := newLab(t)
	w, _ := l.w.(*Writer)
	require.NoError(t, l.store.c.Remove(t.Context(), w.m.stateName(), azstorage.If{}))
	_, err := l.store.OpenWriter(t.Context(), 1, l.spec)
	require.ErrorContains(t, err, "break the lease")
	require.NotErrorIs(t, err, replica.ErrFenced)
	l.stealLeases(nobodys)
	l.openWriter(1)
	l.leasedBy(1)
}
