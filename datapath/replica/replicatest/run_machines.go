package replicatest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// resize changes the memory's disk as the replica's is changed.
func (m *machine) resize(disk int, size int64) {
	m.spec.Disks[disk].Size = size
	now := make([]byte, size)
	copy(now, m.now[disk])
	m.now[disk] = now
}

func testDisks(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	m.delta(1, 40, 3)
	ctx := t.Context()

	m.resize(1, 50*Block+512) // grown: the writer is opened with the new size
	m.reopen(1)
	m.check()
	m.delta(1, 40, 4)
	m.delta(1, 50, 5)
	m.check()

	m.resize(1, 35*Block+1024) // shrunk: a new generation
	m.reopen(1)
	require.NotEqual(t, m.spec.Disks[1].Size, m.writer.State().Spec.Disks[1].Size)
	require.NoError(t, m.writer.BeginGeneration(ctx, m.spec.Disks, false, nil))
	m.check()
	m.apply(m.after(changeset.Base).Zero(0, 0, Block).Cut(Complete()))
	m.delta(1, 35, 6)
	m.check()

	m.resize(1, 60*Block)
	m.reopen(1)
	m.delta(1, 35, 7)
	m.check()

	gone, image := m.spec.Disks[0], m.now[0] // the first disk goes, another comes
	fresh := replica.Disk{Name: "disk-3", Disk: changeset.Disk{ID: ident.NewDiskID(m.spec.Machine, "disk-3"), Size: 8 * Block}}
	m.spec.Disks = []replica.Disk{m.spec.Disks[1], fresh}
	m.now = [][]byte{m.now[1], make([]byte, fresh.Size)}
	m.reopen(1)
	require.NoError(t, m.writer.BeginGeneration(ctx, m.spec.Disks, false, nil))
	m.check()
	m.apply(m.after(changeset.Base).Write(1, 0, Pattern(8, Block)).Cut(Complete()))
	m.check()

	m.spec.Disks, m.now = append(m.spec.Disks, gone), append(m.now, image) // and comes back
	require.NoError(t, m.writer.BeginGeneration(ctx, m.spec.Disks, true, nil))
	m.apply(m.after(changeset.Base).Write(2, 0, Pattern(9, Block)).Cut(Complete()))
	m.check()
	points := m.writer.State().Points
	for _, p := range points[:len(points)-1] {
		m.remove(p.ID)
	}
	m.check()
}

func testRemove(t *testing.T, open opener) {
	dir := t.TempDir()
	m := newMachine(t, open(t, dir), Spec())
	m.base()
	ctx := t.Context()
	ids, err := open(t, dir).Machines(ctx)
	require.NoError(t, err)
	require.Equal(t, []ident.MachineID{m.spec.Machine}, ids)
	require.NoError(t, m.store.Remove(ctx, m.spec.Machine, 1))
	require.NoError(t, m.store.Remove(ctx, m.spec.Machine, 1))
	ids, err = m.store.Machines(ctx)
	require.NoError(t, err)
	require.Empty(t, ids)
	_, err = m.writer.Apply(ctx, m.after(changeset.Delta).Cut(Crash()))
	require.ErrorIs(t, err, replica.ErrNotFound)
	m.reopen(1)
	require.True(t, m.writer.State().Empty)
	m.points = map[ident.Seq][][]byte{}
	for i := range m.now {
		clear(m.now[i])
	}
	m.base()
	m.check()
}

func testDocuments(t *testing.T, open opener) {
	dir := t.TempDir()
	s, ctx := open(t, dir), t.Context()
	require.NoError(t, s.PutDocument(ctx, "plan-1", []byte("first")))
	require.NoError(t, s.PutDocument(ctx, "plan-1", []byte("second")))
	require.NoError(t, s.PutDocument(ctx, "vault", []byte{}))
	for _, name := range []string{"", "../x", "A", "a/b", ".hidden", string(make([]byte, 81))} {
		require.Error(t, s.PutDocument(ctx, name, nil), "name %q", name)
	}
	docs, err := open(t, dir).Documents(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"plan-1": []byte("second"), "vault": {}}, docs)
	require.Error(t, s.PutDocument(ctx, "large", make([]byte, replica.MaxDocument+1)))
	require.NoError(t, s.RemoveDocument(ctx, "vault"))
	require.NoError(t, s.RemoveDocument(ctx, "vault"), "again")
	require.Error(t, s.RemoveDocument(ctx, "../x"))
	docs, err = open(t, dir).Documents(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"plan-1": []byte("second")}, docs)
}

func testNotFound(t *testing.T, open opener) {
	m := newMachine(t, open(t, t.TempDir()), Spec())
	m.base()
	ctx := t.Context()
	other := ident.NewMachineID("vcenter", "other")
	_, err := m.store.OpenReader(ctx, other)
	require.ErrorIs(t, err, replica.ErrNotFound)
	require.ErrorIs(t, m.store.Fence(ctx, other, 1), replica.ErrNotFound)
	r, err := m.store.OpenReader(ctx, m.spec.Machine)
	require.NoError(t, err)
	_, err = r.OpenDisk(ctx, 1, m.spec.Disks[0].ID)
	require.ErrorIs(t, err, replica.ErrNotFound, "the first set was no point")
	_, err = r.OpenDisk(ctx, 2, ident.DiskID{1})
	require.ErrorIs(t, err, replica.ErrNotFound)
	require.ErrorIs(t, r.Hold(ctx, 1, replica.Hold{Owner: "x", Expires: time.Now().Add(time.Hour)}), replica.ErrNotFound)
	require.NoError(t, r.Close())
	for _, spec := range []replica.Spec{
		{}, {Machine: other}, {Machine: other, Disks: []replica.Disk{{}}},
		{Machine: other, Disks: []replica.Disk{m.spec.Disks[0], m.spec.Disks[0]}},
		{Machine: other, Disks: []replica.Disk{{Disk: changeset.Disk{ID: ident.DiskID{1}, Size: 100}}}},
	} {
		_, err = m.store.OpenWriter(ctx, 1, spec)
		require.Error(t, err)
	}
	ids, err := m.store.Machines(ctx)
	require.NoError(t, err)
	require.Len(t, ids, 1)
}

func testIdentity(t *testing.T, open opener) {
	dir := t.TempDir()
	id, err := open(t, dir).ID(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, id)
	again, err := open(t, dir).ID(t.Context())
	require.NoError(t, err)
	require.Equal(t, id, again)
	other, err := open(t, t.TempDir()).ID(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, id, other)
}
