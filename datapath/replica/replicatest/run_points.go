package replicatest

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// remove deletes the points from the replica and from the memory.
func (m *machine) remove(points ...ident.Seq) {
	m.t.Helper()
	held, err := m.writer.Delete(m.t.Context(), points)
	require.NoError(m.t, err)
	require.Empty(m.t, held)
	for _, p := range points {
		delete(m.points, p)
	}
}

func testDelete(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	for i := range uint64(12) {
		m.delta(0, int64(i*i%7), 100+i)
		m.apply(m.after(changeset.Delta).Zero(1, int64(30+i%5)*Block, Block).Write(1, int64(i%3)*Block, Pattern(i, 2*Block)).Cut(Crash()))
	}
	var ids []ident.Seq
	for _, p := range m.writer.State().Points {
		ids = append(ids, p.ID)
	}
	newest := ids[len(ids)-1]
	_, err := m.writer.Delete(t.Context(), []ident.Seq{newest})
	require.Error(t, err)
	m.remove(ids[3])
	m.check()
	m.remove(ids[7], ids[5], ids[6], ids[9])
	m.check()
	m.remove(ids[0], ids[1])
	m.check()
	m.remove(ids[0], 9999) // gone, and never there
	m.delta(0, 3, 500)
	m.reopen(1)
	m.check()
	m.delta(0, 3, 501)
	for _, p := range m.writer.State().Points {
		if p.ID < newest {
			m.remove(p.ID)
		}
	}
	m.check()
}

// testMerge deletes points whose changes overlap those before in every way.
func testMerge(t *testing.T, open opener) {
	for _, r := range [][2]int64{{3, 8}, {7, 12}, {3, 12}, {6, 8}, {5, 10}, {0, 5}, {10, 12}} {
		m := newMachine(t, open(t, t.TempDir()), Spec())
		m.base()
		write := func(from, to int64, seed uint64) replica.Point {
			return m.apply(m.after(changeset.Delta).Write(0, from*Block, Pattern(seed, (to-from)*Block)).Cut(Crash()))
		}
		first := write(5, 10, 70)
		second := write(r[0], r[1], 71)
		write(0, 14, 72)
		m.remove(first.ID)
		m.check()
		m.remove(second.ID)
		m.check()
	}
}

func testHold(t *testing.T, open opener) {
	dir := t.TempDir()
	m := newMachine(t, open(t, dir), Spec())
	m.base()
	a, b := m.delta(0, 1, 10), m.delta(0, 1, 11)
	m.delta(0, 1, 12)
	ctx := t.Context()
	r, err := open(t, dir).OpenReader(ctx, m.spec.Machine)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	until := time.Now().Add(time.Hour)
	require.NoError(t, r.Hold(ctx, a.ID, replica.Hold{Owner: "test-failover", Expires: until}))
	require.NoError(t, r.Hold(ctx, a.ID, replica.Hold{Owner: "test-failover", Expires: until.Add(time.Hour)}))
	require.NoError(t, r.Hold(ctx, a.ID, replica.Hold{Owner: "verify", Expires: until}))
	require.ErrorIs(t, r.Hold(ctx, 999, replica.Hold{Owner: "x", Expires: until}), replica.ErrNotFound)
	require.Error(t, r.Hold(ctx, a.ID, replica.Hold{Owner: "x", Expires: time.Now().Add(-time.Second)}))
	for _, p := range m.writer.State().Points {
		if p.ID == a.ID {
			require.Len(t, p.Holds, 2)
		} else {
			require.Empty(t, p.Holds)
		}
	}
	held, err := m.writer.Delete(ctx, []ident.Seq{a.ID, b.ID})
	require.NoError(t, err)
	require.Equal(t, []ident.Seq{a.ID}, held)
	delete(m.points, b.ID)
	m.check()
	require.ErrorIs(t, m.store.Remove(ctx, m.spec.Machine, 1), replica.ErrHeld)
	require.NoError(t, r.Release(ctx, a.ID, "verify"))
	require.NoError(t, r.Release(ctx, a.ID, "nobody"))
	require.NoError(t, r.Release(ctx, 999, "nobody"))
	held, err = m.writer.Delete(ctx, []ident.Seq{a.ID})
	require.NoError(t, err)
	require.Equal(t, []ident.Seq{a.ID}, held)
	require.NoError(t, r.Release(ctx, a.ID, "test-failover"))
	m.remove(a.ID)
	m.check()
	require.ErrorIs(t, r.Hold(ctx, a.ID, replica.Hold{Owner: "late", Expires: until}), replica.ErrNotFound)
}

func testReaders(t *testing.T, open opener) {
	dir := t.TempDir()
	m := newMachine(t, open(t, dir), Spec())
	m.base()
	first := m.delta(0, 0, 10)
	r, err := open(t, dir).OpenReader(t.Context(), m.spec.Machine)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	d, err := r.OpenDisk(t.Context(), first.ID, m.spec.Disks[0].ID)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	want := m.points[first.ID][0]
	buf := make([]byte, 5000)
	for i := range uint64(10) { // the open disk stays as it was while all changes
		m.delta(0, int64(i%3), 20+i)
		if i%3 == 2 {
			points := m.writer.State().Points
			m.remove(points[len(points)-2].ID, points[len(points)-3].ID)
		}
		off := int64(i)*1000 + 7
		n, err := d.ReadAt(buf, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want[off:off+int64(n)], buf[:n]), "round %d", i)
	}
	s, err := r.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, m.writer.State().Position, s.Position)
	n, err := d.ReadAt(buf, d.Size()-100)
	require.Error(t, err)
	require.Equal(t, 100, n)
}

// failing is a change set that cannot be read to its end a second time.
type failing struct {
	*ChangeSet
	rewinds int
}

var errBroken = errors.New("the cache went away")

func (f *failing) Rewind() error { f.rewinds++; return f.ChangeSet.Rewind() }

// Disk gives nothing of the disk that the last extent is of.
func (f *failing) Disk(disk int) changeset.Extents {
	if disk == f.extents[len(f.extents)-1].Disk {
		return broken{}
	}
	return f.ChangeSet.Disk(disk)
}

type broken struct{}

func (broken) Next() (changeset.Extent, error) { return changeset.Extent{}, errBroken }

func (f *failing) Next() (changeset.Extent, error) {
	if f.rewinds > 1 && f.next == len(f.extents)-1 {
		return changeset.Extent{}, errBroken
	}
	return f.ChangeSet.Next()
}

func testBroken(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	m.delta(0, 0, 3)
	before := m.writer.State()
	part := m.after(changeset.Delta).Write(0, 0, Pattern(20, 2*Block)).Write(1, 0, Pattern(21, Block)).Cut(Crash())
	_, err := m.writer.Apply(t.Context(), &failing{ChangeSet: part})
	if err == nil {
		t.Skip("the store reads a change set once")
	}
	require.ErrorIs(t, err, errBroken)
	for range 2 {
		require.Equal(t, before.Position, m.writer.State().Position)
		m.checkPoints()
		other := m.after(changeset.Delta).Write(1, 3*Block, Pattern(22, Block)).Cut(Crash())
		_, err = m.writer.Apply(t.Context(), other)
		require.ErrorIs(t, err, replica.ErrGap, "another set would leave a part of the first in place")
		m.reopen(1)
	}
	require.NoError(t, m.writer.BeginGeneration(t.Context(), m.spec.Disks, false, nil))
	m.checkPoints()
	// The sums now tell what is really there, so that the source can send the rest.
	d := m.writer.State().Spec.Disks[0]
	l, err := m.writer.Leaves(d.ID)
	require.NoError(t, err)
	sums := make([]uint64, 2)
	require.NoError(t, l.ReadSums(0, sums))
	if written := Pattern(20, 2*Block); slices.Equal(checksum.SumAll(nil, d.Seed, 0, written), sums) {
		copy(m.now[0], written)
	} else { // a store that gathers blocks had written nothing yet
		require.Equal(t, checksum.SumAll(nil, d.Seed, 0, m.now[0][:2*Block]), sums)
	}
	m.apply(m.after(changeset.Base).Zero(1, 0, Block).Cut(Complete()))
	m.check()
}

func testReopen(t *testing.T, open opener) {
	dir := t.TempDir()
	m := newMachine(t, open(t, dir), Spec())
	m.spec.Documents = map[string]string{"policy": "{}"}
	seeds := m.writer.State().Spec.Disks
	m.base()
	m.reopen(7)
	s := m.writer.State()
	require.Equal(t, ident.Epoch(7), s.Epoch)
	require.Equal(t, "{}", s.Spec.Documents["policy"])
	for i := range seeds {
		require.Equal(t, seeds[i].Seed, s.Spec.Disks[i].Seed)
	}
	require.NoError(t, m.writer.SetDocuments(t.Context(), map[string]string{"target": "{}"}))
	require.Error(t, m.writer.SetDocuments(t.Context(), map[string]string{"large": string(make([]byte, 70<<10))}))
	m.spec.Documents = nil
	m.store = open(t, dir)
	m.reopen(7)
	require.Equal(t, map[string]string{"target": "{}"}, m.writer.State().Spec.Documents)
	m.check()
	_, err := m.writer.Leaves(ident.DiskID{1})
	require.ErrorIs(t, err, replica.ErrNotFound)
}
