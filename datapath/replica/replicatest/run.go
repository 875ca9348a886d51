package replicatest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Run checks a store. open opens the store in the directory; it may be called
// several times for one directory, and each is then used as another process's.
func Run(t *testing.T, open func(t *testing.T, dir string) replica.Store) {
	tests := map[string]func(*testing.T, func(*testing.T, string) replica.Store){
		"base copy makes no points until complete":    testBase,
		"points keep what they were":                  testPoints,
		"a set applied again changes nothing":         testAgain,
		"a gap is refused":                            testGap,
		"a wrong checksum changes nothing":            testCorrupt,
		"an old epoch is refused at every call":       testFence,
		"resync keeps the old points":                 testResync,
		"deleting points keeps the others":            testDelete,
		"merged undo never hides older undo":          testMerge,
		"held points stay":                            testHold,
		"disks grow, shrink, go and come":             testDisks,
		"removal":                                     testRemove,
		"documents":                                   testDocuments,
		"a store is known by its identity":            testIdentity,
		"not found":                                   testNotFound,
		"readers in another handle see what is new":   testReaders,
		"model: all kept points read as they were":    testModel,
		"what was written in part must be finished":   testBroken,
		"extents outside the disk are refused":        testBounds,
		"sums survive, seeds stay, epochs are raised": testReopen,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

type opener = func(*testing.T, string) replica.Store

func testBase(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	s := m.writer.State()
	require.True(t, s.Empty)
	require.False(t, s.Complete)
	require.True(t, s.Position.IsZero())
	for _, d := range s.Spec.Disks {
		require.NotZero(t, d.Seed)
	}
	require.NoError(t, m.writer.BeginGeneration(t.Context(), s.Spec.Disks, false, nil))
	require.True(t, m.writer.State().Empty)
	p := m.apply(m.after(changeset.Base).Write(0, 0, Pattern(1, 3*Block)).Cut(Crash()))
	require.Zero(t, p.ID, "an incomplete base is no point, whatever its cut says")
	s = m.writer.State()
	require.False(t, s.Empty)
	require.Empty(t, s.Points)
	cut := Complete()
	cut.SourceTime, cut.ClockOffset = time.Unix(1000, 0).UTC(), 5*time.Second
	p = m.apply(m.after(changeset.Base).Zero(0, Block, Block).Cut(cut))
	require.Equal(t, ident.Seq(2), p.ID)
	require.Equal(t, time.Unix(1005, 0).UTC(), p.Time)
	s = m.writer.State()
	require.True(t, s.Complete)
	require.Len(t, s.Points, 1)
	require.Equal(t, s.Position, s.Points[0].Position)
	p = m.apply(m.after(changeset.Delta).Write(0, 0, Pattern(9, Block)).Cut(Partial()))
	require.Zero(t, p.ID, "a cut of no consistency is no point")
	m.check()
}

func testPoints(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	for i := range uint64(6) {
		m.delta(int(i%2), int64(i)*3, 100+i)
		m.delta(int(i%2), 40-int64(40*(1-i%2)), 200+i)
	}
	m.apply(m.after(changeset.Delta).Zero(0, 2*Block, 20*Block).Zero(1, 0, m.spec.Disks[1].Size).Cut(Crash()))
	m.apply(m.after(changeset.Delta).Write(0, 0, Pattern(5, 2*Block)).Write(0, Block, Pattern(6, 2*Block)).Zero(0, 2*Block, Block).Cut(Crash()))
	m.apply(m.after(changeset.Delta).Cut(Crash())) // nothing changed: still a point
	m.check()
	require.Positive(t, m.writer.State().UsedBytes)
}

func testAgain(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	cs := m.after(changeset.Delta).Write(0, 0, Pattern(3, Block)).Cut(Crash())
	p := m.apply(cs)
	before := m.writer.State()
	for range 2 {
		again, err := m.writer.Apply(t.Context(), cs)
		require.NoError(t, err)
		require.Equal(t, p.Position, again.Position)
		require.Equal(t, before.Points, m.writer.State().Points)
		m.reopen(1)
	}
	m.check()
}

func testGap(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	wrong := map[string]func(h *changeset.Header){
		"a set is missing":   func(h *changeset.Header) { h.Seq++ },
		"another history":    func(h *changeset.Header) { h.Prev[0] ^= 1 },
		"another generation": func(h *changeset.Header) { h.Generation++ },
		"another disk":       func(h *changeset.Header) { h.Disks[0].ID[0] ^= 1 },
		"another size":       func(h *changeset.Header) { h.Disks[0].Size += Block },
	}
	for name, spoil := range wrong {
		b := m.after(changeset.Delta).Write(0, 0, Pattern(4, Block))
		spoil(b.Header())
		_, err := m.writer.Apply(t.Context(), b.Cut(Crash()))
		require.ErrorIs(t, err, replica.ErrGap, name)
	}
	b := m.after(changeset.Delta)
	b.Header().Machine[0] ^= 1
	_, err := m.writer.Apply(t.Context(), b.Cut(Crash()))
	require.Error(t, err)
	m.check()
}

func testCorrupt(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	before := m.writer.State()
	cs := m.after(changeset.Delta).Write(0, 0, Pattern(4, 2*Block)).Write(1, 0, Pattern(5, Block)).Cut(Crash())
	cs.Spoil(1)
	_, err := m.writer.Apply(t.Context(), cs)
	require.ErrorIs(t, err, replica.ErrCorrupt)
	require.Equal(t, before.Position, m.writer.State().Position)
	m.check()
	m.delta(0, 1, 8)
	m.check()
}

func testBounds(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	size := m.spec.Disks[1].Size
	for _, b := range []*Builder{
		m.after(changeset.Delta).Zero(0, 64*Block, Block),
		m.after(changeset.Delta).Zero(0, -Block, Block),
		m.after(changeset.Delta).Zero(0, 512, Block),
		m.after(changeset.Delta).Zero(0, 0, 512),
		m.after(changeset.Delta).Zero(0, 0, 0),
		m.after(changeset.Delta).Zero(1, 40*Block, Block),
		m.after(changeset.Delta).Zero(2, 0, Block),
		m.after(changeset.Delta).Write(1, 40*Block, Pattern(1, Block)),
	} {
		_, err := m.writer.Apply(t.Context(), b.Cut(Crash()))
		require.Error(t, err)
	}
	m.apply(m.after(changeset.Delta).Zero(1, 40*Block, size-40*Block).Cut(Crash()))
	m.check()
}

func testFence(t *testing.T, open opener) {
	dir := t.TempDir()
	m := newMachine(t, open(t, dir), Spec())
	m.base()
	other := open(t, dir)
	ctx := t.Context()
	require.NoError(t, other.Fence(ctx, m.spec.Machine, 1))
	m.delta(0, 0, 3)
	require.NoError(t, other.Fence(ctx, m.spec.Machine, 3))
	require.ErrorIs(t, other.Fence(ctx, m.spec.Machine, 2), replica.ErrFenced)
	cs := m.after(changeset.Delta).Write(0, 0, Pattern(4, Block)).Cut(Crash())
	_, err := m.writer.Apply(ctx, cs)
	require.ErrorIs(t, err, replica.ErrFenced)
	require.ErrorIs(t, m.writer.BeginGeneration(ctx, m.spec.Disks, false, nil), replica.ErrFenced)
	require.ErrorIs(t, m.writer.SetDocuments(ctx, nil), replica.ErrFenced)
	_, err = m.writer.Delete(ctx, []ident.Seq{2})
	require.ErrorIs(t, err, replica.ErrFenced)
	require.ErrorIs(t, m.store.Remove(ctx, m.spec.Machine, 2), replica.ErrFenced)
	_, err = other.OpenWriter(ctx, 2, m.spec)
	require.ErrorIs(t, err, replica.ErrFenced)
	m.checkPoints()
	m.reopen(3)
	m.delta(0, 0, 5)
	m.reopen(4)
	m.delta(0, 0, 6)
	require.Equal(t, ident.Epoch(4), m.writer.State().Position.Epoch)
	m.check()
}

func testResync(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	m.delta(0, 5, 3)
	old := m.after(changeset.Delta).Write(0, 0, Pattern(4, Block)).Cut(Crash())
	var done, total int64
	require.NoError(t, m.writer.BeginGeneration(t.Context(), m.spec.Disks, true, func(d, n int64) { done, total = d, n }))
	require.Equal(t, m.spec.Disks[0].Size+m.spec.Disks[1].Size, total)
	require.Equal(t, total, done)
	m.check()
	s := m.writer.State()
	require.False(t, s.Complete)
	require.Equal(t, uint32(2), s.Generation)
	_, err := m.writer.Apply(t.Context(), old)
	require.ErrorIs(t, err, replica.ErrGap, "the set was cut for the generation before")
	m.apply(m.after(changeset.Base).Write(0, 4*Block, Pattern(50, 4*Block)).Cut(Partial()))
	m.apply(m.after(changeset.Delta).Write(0, 4*Block, Pattern(51, Block)).Cut(Crash()))
	require.Len(t, m.writer.State().Points, 2)
	m.reopen(1)
	m.check()
	p := m.apply(m.after(changeset.Base).Write(1, 0, Pattern(52, Block)).Cut(Complete()))
	require.Equal(t, uint32(2), p.Generation)
	require.True(t, m.writer.State().Complete)
	m.delta(0, 4, 53)
	m.check()
}
