package replicatest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Block is the unit of all writes.
const Block = checksum.BlockSize

// Spec describes a machine of two small disks, of which the second ends with a
// short block.
func Spec() replica.Spec {
	m := ident.NewMachineID("vcenter", "vm")
	disk := func(name string, size int64) replica.Disk {
		return replica.Disk{Name: name, BackingUUID: name, Disk: changeset.Disk{ID: ident.NewDiskID(m, name), Size: size}}
	}
	return replica.Spec{Machine: m, Name: "vm", KeyID: "key-1", Disks: []replica.Disk{
		disk("disk-1", 64*Block), disk("disk-2", 40*Block+1536),
	}}
}

// Pattern gives n bytes that are the same for the same seed and never zero blocks.
func Pattern(seed uint64, n int64) []byte {
	b := make([]byte, n+8)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := int64(0); i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64()|1)
	}
	return b[:n]
}

// machine is a replica with, in memory, what it should hold.
type machine struct {
	t      *testing.T
	store  replica.Store
	spec   replica.Spec
	writer replica.Writer
	now    [][]byte               // the disks as last written
	points map[ident.Seq][][]byte // the disks at each point
}

func newMachine(t *testing.T, store replica.Store, spec replica.Spec) *machine {
	t.Helper()
	m := &machine{t: t, store: store, spec: spec, points: map[ident.Seq][][]byte{}}
	m.reopen(1)
	for _, d := range spec.Disks {
		m.now = append(m.now, make([]byte, d.Size))
	}
	t.Cleanup(func() { require.NoError(t, m.writer.Close()) })
	return m
}

func (m *machine) reopen(epoch ident.Epoch) {
	m.t.Helper()
	if m.writer != nil {
		require.NoError(m.t, m.writer.Close())
	}
	w, err := m.store.OpenWriter(m.t.Context(), epoch, m.spec)
	require.NoError(m.t, err)
	m.writer = w
}

// base makes the initial copy: two sets, of which the second completes it.
func (m *machine) base() {
	m.t.Helper()
	require.NoError(m.t, m.writer.BeginGeneration(m.t.Context(), m.spec.Disks, false, nil))
	m.apply(m.after(changeset.Base).Write(0, 0, Pattern(1, 10*Block)).Cut(Partial()))
	m.apply(m.after(changeset.Base).Write(1, 30*Block, Pattern(2, 10*Block+1536)).Cut(Complete()))
}

func (m *machine) after(kind changeset.Kind) *Builder { return After(m.writer.State(), kind) }

// apply applies the set to the replica and to the memory.
func (m *machine) apply(cs *ChangeSet) replica.Point {
	m.t.Helper()
	p, err := m.writer.Apply(m.t.Context(), cs)
	require.NoError(m.t, err)
	m.remember(cs, p)
	return p
}

func (m *machine) remember(cs *ChangeSet, p replica.Point) {
	for _, e := range cs.extents {
		if e.Zero {
			clear(m.now[e.Disk][e.Offset : e.Offset+e.Length])
		} else {
			copy(m.now[e.Disk][e.Offset:], e.Data)
		}
	}
	if p.ID != 0 {
		var images [][]byte
		for _, d := range m.now {
			images = append(images, bytes.Clone(d))
		}
		m.points[p.ID] = images
	}
}

// delta applies one block of the seed's pattern.
func (m *machine) delta(disk int, block int64, seed uint64) replica.Point {
	m.t.Helper()
	n := min(Block, int64(len(m.now[disk]))-block*Block)
	return m.apply(m.after(changeset.Delta).Write(disk, block*Block, Pattern(seed, n)).Cut(Crash()))
}

// check compares every point with the memory, and the sums with the newest state.
func (m *machine) check() {
	m.t.Helper()
	m.checkPoints()
	for i, d := range m.writer.State().Spec.Disks {
		l, err := m.writer.Leaves(d.ID)
		require.NoError(m.t, err)
		got := make([]uint64, l.Len())
		require.NoError(m.t, l.ReadSums(0, got))
		require.Equal(m.t, checksum.SumAll(nil, d.Seed, 0, m.now[i]), got, "checksums of disk %d", i)
	}
}

func (m *machine) checkPoints() {
	m.t.Helper()
	r, err := m.store.OpenReader(m.t.Context(), m.spec.Machine)
	require.NoError(m.t, err)
	defer func() { require.NoError(m.t, r.Close()) }()
	s, err := r.State(m.t.Context())
	require.NoError(m.t, err)
	require.Len(m.t, s.Points, len(m.points))
	for _, p := range s.Points {
		want := m.points[p.ID]
		require.NotNil(m.t, want, "point %d", p.ID)
		require.Len(m.t, p.Disks, len(want))
		for i, d := range p.Disks {
			CheckDisk(m.t, r, p.ID, d.ID, want[i])
		}
	}
}

// ReadPoint gives what is on each disk of a point, in their order.
func ReadPoint(t *testing.T, r replica.Reader, p replica.Point) (out [][]byte) {
	t.Helper()
	for _, disk := range p.Disks {
		d, err := r.OpenDisk(t.Context(), p.ID, disk.ID)
		require.NoError(t, err)
		b := make([]byte, d.Size())
		_, err = d.ReadAt(b, 0)
		require.NoError(t, err)
		require.NoError(t, d.Close())
		out = append(out, b)
	}
	return out
}

// CheckDisk reads the disk at the point, by ReadAt, by NextData and by its checksums,
// and compares.
func CheckDisk(t *testing.T, r replica.Reader, point ident.Seq, disk ident.DiskID, want []byte) {
	t.Helper()
	d, err := r.OpenDisk(t.Context(), point, disk)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	require.Equal(t, int64(len(want)), d.Size())
	got := make([]byte, d.Size())
	n, err := d.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, len(got), n)
	require.True(t, bytes.Equal(want, got), "point %d, disk %s differs at block %d", point, disk, firstDifference(want, got))
	sparse := make([]byte, len(want))
	for offset := int64(0); ; {
		part, ok, err := d.NextData(offset)
		require.NoError(t, err)
		if !ok {
			break
		}
		require.GreaterOrEqual(t, part.Offset, offset)
		require.Positive(t, part.Length)
		_, err = d.ReadAt(sparse[part.Offset:part.End()], part.Offset)
		require.NoError(t, err)
		offset = part.End()
	}
	require.True(t, bytes.Equal(want, sparse), "point %d, disk %s read by its data differs at block %d", point, disk, firstDifference(want, sparse))
	checkSums(t, r, d, point, disk, want)
}

func checkSums(t *testing.T, r replica.Reader, d replica.DiskReader, point ident.Seq, disk ident.DiskID, want []byte) {
	t.Helper()
	st, err := r.State(t.Context())
	require.NoError(t, err)
	for _, p := range st.Points {
		for _, x := range p.Disks {
			if p.ID != point || x.ID != disk {
				continue
			}
			sums := checksum.SumAll(nil, x.Seed, 0, want)
			got := make([]uint64, len(sums))
			require.NoError(t, d.ReadSums(0, got))
			require.Equal(t, sums, got, "point %d, checksums of disk %s", point, disk)
			half := len(got) / 2
			require.NoError(t, d.ReadSums(int64(half), got[half:]))
			require.Equal(t, sums, got)
			require.Error(t, d.ReadSums(1, got), "past the end")
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i / Block
		}
	}
	return min(len(a), len(b)) / Block
}
