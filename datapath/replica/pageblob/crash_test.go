package pageblob

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
)

const block = checksum.BlockSize

var errCrash = errors.New("crash")

// lab is a replica on which a crash can be made at any durable step.
type lab struct {
	t      *testing.T
	dir    string
	store  *Store
	w      replica.Writer
	spec   replica.Spec
	images map[ident.Seq][][]byte // what each point must read as
}

func newLab(t *testing.T) *lab {
	return newLabAt(t, func(l *lab) *Store { return openStore(t, l.dir) })
}

// newLabAt opens the store in another way, the first time.
func newLabAt(t *testing.T, open func(*lab) *Store) *lab {
	l := &lab{t: t, dir: t.TempDir(), spec: rt.Spec(), images: map[ident.Seq][][]byte{}}
	l.store = open(l)
	l.openWriter(1)
	t.Cleanup(func() { require.NoError(t, l.w.Close()) })
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
	l.must(l.set(changeset.Base, 1).Cut(rt.Complete()))
	for i := range uint64(3) {
		l.must(l.set(changeset.Delta, 2+i).Cut(rt.Crash()))
	}
	return l
}

// set overwrites one block for all, one of its own, and zeros a third.
func (l *lab) set(kind changeset.Kind, n uint64) *rt.Builder {
	return rt.After(l.w.State(), kind).
		Write(0, 0, rt.Pattern(n, 2*block)).
		Write(1, int64(n%16)*block, rt.Pattern(100+n, block)).
		Zero(0, int64(1+n%5)*block, block)
}

func (l *lab) openWriter(epoch ident.Epoch) {
	l.t.Helper()
	if l.w != nil {
		require.NoError(l.t, l.w.Close())
	}
	var err error
	l.w, err = l.store.OpenWriter(l.t.Context(), epoch, l.spec)
	require.NoError(l.t, err)
}

func (l *lab) reopen() {
	l.t.Helper()
	l.store = openStore(l.t, l.dir)
	l.openWriter(1)
}

func (l *lab) must(cs replica.ChangeSet) {
	l.t.Helper()
	p, err := l.w.Apply(l.t.Context(), cs)
	require.NoError(l.t, err)
	l.images[p.ID] = rt.ReadPoint(l.t, l.reader(), p)
}

func (l *lab) reader() replica.Reader {
	l.t.Helper()
	r, err := l.store.OpenReader(l.t.Context(), l.spec.Machine)
	require.NoError(l.t, err)
	return r
}

// check reads all points; those of the memory, and no others, must be there.
func (l *lab) check() { l.t.Helper(); l.checkNewest(maxSteps) }

func (l *lab) checkNewest(n int) {
	l.t.Helper()
	s, err := l.reader().State(l.t.Context())
	require.NoError(l.t, err)
	require.Len(l.t, s.Points, len(l.images))
	for _, p := range s.Points[max(0, len(s.Points)-n):] {
		for i, d := range p.Disks {
			rt.CheckDisk(l.t, l.reader(), p.ID, d.ID, l.images[p.ID][i])
		}
	}
}

// noLitter: after a session, the container has what the state lists and nothing else.
func (l *lab) noLitter() {
	l.t.Helper()
	w, _ := l.w.(*Writer)
	have := map[string]bool{}
	require.NoError(l.t, l.store.c.Each(l.t.Context(), w.m.prefix(), listAll, func(b *item) error {
		have[itemName(b)] = true
		return nil
	}))
	require.Equal(l.t, w.listed(), have)
}

// crashAt makes the store break off at its n-th step; it reports the step's name.
func (l *lab) crashAt(n int) *string {
	name := new(string)
	var at atomic.Int64
	l.store.failpoint = func(step string) error {
		reached := at.Add(1)
		if reached == int64(n) {
			*name = step
		}
		if reached >= int64(n) {
			return errCrash
		}
		return nil
	}
	return name
}

// maxSteps is more than any operation under test has.
const maxSteps = 40

func TestCrashInApply(t *testing.T) {
	seen := map[string]bool{}
	l := newLab(t)
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		before := l.w.State()
		cs := l.set(changeset.Delta, 9).Cut(rt.Crash()) // the same steps each time
		step := l.crashAt(n)
		_, err := l.w.Apply(t.Context(), cs)
		l.store.failpoint = nil
		if err == nil {
			l.must(cs)
			break
		}
		require.ErrorIs(t, err, errCrash)
		seen[*step] = true
		s, err := l.reader().State(t.Context())
		require.NoError(t, err)
		if len(s.Points) == len(before.Points) {
			l.checkNewest(2)
		}
		if n%2 == 0 { // the same process goes on, or another
			l.reopen()
			l.noLitter()
		}
		l.must(cs)
	}
	l.reopen()
	l.noLitter()
	l.checkNewest(6)
	for _, step := range []string{"pending", "image-written", "sums-synced", "snapshot-made", "point-written", "manifest", "published"} {
		require.True(t, seen[step], step)
	}
}

func TestCrashInDelete(t *testing.T) {
	seen := map[string]bool{}
	l := newLab(t)
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		l.must(l.set(changeset.Delta, 20+uint64(n)).Cut(rt.Crash()))
		l.must(l.set(changeset.Delta, 60+uint64(n)).Cut(rt.Crash()))
		points := l.w.State().Points
		gone := []ident.Seq{points[0].ID, points[len(points)-2].ID}
		step := l.crashAt(n)
		_, err := l.w.Delete(t.Context(), gone)
		l.store.failpoint = nil
		if err != nil {
			require.ErrorIs(t, err, errCrash)
			seen[*step] = true
			l.reopen()
		}
		_, again := l.w.Delete(t.Context(), gone)
		require.NoError(t, again)
		for _, id := range gone {
			delete(l.images, id)
		}
		l.checkNewest(2)
		if err == nil {
			break
		}
	}
	l.reopen()
	l.noLitter()
	l.check()
	for _, step := range []string{"manifest", "published", "delete-planned", "delete-published", "delete-files"} {
		require.True(t, seen[step], step)
	}
}

// TestPointsInAPlanCannotBeHeld: a deletion that broke off is finished, whatever is
// asked meanwhile, and a point that was held before stays.
func TestPointsInAPlanCannotBeHeld(t *testing.T) {
	l := newLab(t)
	points := l.w.State().Points
	l.store.failpoint = func(step string) error {
		if step == "delete-planned" {
			return errCrash
		}
		return nil
	}
	_, err := l.w.Delete(t.Context(), []ident.Seq{points[0].ID})
	require.ErrorIs(t, err, errCrash)
	l.store.failpoint = nil
	hold := replica.Hold{Owner: "late", Expires: l.store.now().Add(1e12)}
	require.ErrorIs(t, l.reader().Hold(t.Context(), points[0].ID, hold), replica.ErrNotFound)
	require.NoError(t, l.reader().Hold(t.Context(), points[1].ID, hold))
	l.reopen()
	delete(l.images, points[0].ID)
	l.check()
	held, err := l.w.Delete(t.Context(), []ident.Seq{points[1].ID})
	require.NoError(t, err)
	require.Equal(t, []ident.Seq{points[1].ID}, held)
	l.check()
}

// TestTornSetIsReadAgain: a set that was written in part leaves data where the sums say
// zeros; a new generation finds out what is there.
func TestTornSetIsReadAgain(t *testing.T) {
	l := newLab(t)
	torn := rt.After(l.w.State(), changeset.Delta).Write(0, 40*block, rt.Pattern(77, 4*block)).Cut(rt.Crash())
	l.store.failpoint = func(step string) error {
		if step == "image-written" {
			return errCrash
		}
		return nil
	}
	_, err := l.w.Apply(t.Context(), torn)
	require.ErrorIs(t, err, errCrash)
	l.store.failpoint = nil
	l.check()
	l.reopen()
	_, err = l.w.Apply(t.Context(), l.set(changeset.Delta, 5).Cut(rt.Crash()))
	require.ErrorIs(t, err, replica.ErrGap)
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
	d := l.w.State().Spec.Disks[0]
	leaves, err := l.w.Leaves(d.ID)
	require.NoError(t, err)
	got := make([]uint64, 4)
	require.NoError(t, leaves.ReadSums(40, got))
	require.Equal(t, checksum.SumAll(nil, d.Seed, 40*block, rt.Pattern(77, 4*block)), got)
	l.check()
	// And zeros are zeros again, which the sums alone would not have asked for.
	l.must(rt.After(l.w.State(), changeset.Base).Zero(0, 40*block, 4*block).Cut(rt.Complete()))
	p := l.w.State().Points
	rt.CheckDisk(t, l.reader(), p[len(p)-1].ID, d.ID, l.images[p[len(p)-1].ID][0])
}

// TestSnapshotURL names what a managed disk is made from: the point's own snapshot.
func TestSnapshotURL(t *testing.T) {
	l := newLab(t)
	p, d := l.w.State().Points[1], l.spec.Disks[0].ID
	w, _ := l.w.(*Writer)
	url, size, err := l.store.SnapshotURL(t.Context(), l.spec.Machine, p, d)
	require.NoError(t, err)
	require.Equal(t, l.store.c.Name()+"/"+w.m.diskName(d)+"?snapshot="+w.mf.Snapshots[1].Disks[d].Disk, url)
	require.Equal(t, int64(1<<20), size)
	p.Position.Digest[0] ^= 1
	_, _, err = l.store.SnapshotURL(t.Context(), l.spec.Machine, p, d)
	require.ErrorIs(t, err, replica.ErrNotFound, "a point of another history")
	_, _, err = l.store.SnapshotURL(t.Context(), l.spec.Machine, l.w.State().Points[1], ident.DiskID{1})
	require.ErrorIs(t, err, replica.ErrNotFound)
}
