package fault

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/wire"
	"drover/tests/rig"
)

// keep gives what all points are now, for later.
func keep(r *rig.Rig) map[ident.Seq]string {
	out := map[ident.Seq]string{}
	for _, p := range r.Points() {
		out[p.ID] = r.DigestAt(p)
	}
	return out
}

// kept checks that they are still that.
func kept(r *rig.Rig, before map[ident.Seq]string) {
	r.T.Helper()
	points := map[ident.Seq]replica.Point{}
	for _, p := range r.Points() {
		points[p.ID] = p
	}
	for id, want := range before {
		require.Contains(r.T, points, id, "point %d from before", id)
		require.Equal(r.T, want, r.DigestAt(points[id]), "point %d from before", id)
	}
}

func text(s string) []byte { return []byte(strings.Repeat(s, rig.Block)) }

// resize changes a disk's size under a running agent, and gives what is to be granted.
func resize(r *rig.Rig, disk int, size int64) {
	r.T.Helper()
	require.NoError(r.T, os.Truncate(r.Path(r.Disks[disk].BackingUUID), size))
}

// TestCase24DisksChange: disks of a machine whose agent runs grow, shrink, come and go.
// Until the new shape is granted nothing is taken; old points stay what they are.
func TestCase24DisksChange(t *testing.T) {
	const size = 64 * rig.Block
	for _, c := range []struct {
		name       string
		change     func(r *rig.Rig) // at the source; the agent runs
		shape      func(r *rig.Rig) // what is granted then
		generation uint32           // 1: only the difference is sent on, else compared as a whole
	}{
		{"grown", func(r *rig.Rig) { resize(r, 0, size+3*rig.Block+512) }, func(r *rig.Rig) { r.Disks[0].Size = size + 3*rig.Block + 512 }, 1},
		{"shrunk", func(r *rig.Rig) { resize(r, 0, size-3*rig.Block-512) }, func(r *rig.Rig) { r.Disks[0].Size = size - 3*rig.Block - 512 }, 2},
		{"shrunk and grown again", func(r *rig.Rig) { resize(r, 0, size/2); resize(r, 0, size) }, func(*rig.Rig) {}, 1},
		{"added", func(r *rig.Rig) {}, func(r *rig.Rig) { r.AddDisk("z", 8*rig.Block); r.Write(2, 1, text("z")) }, 2},
		{"removed", func(r *rig.Rig) {}, func(r *rig.Rig) { r.Disks = r.Disks[1:] }, 2},
		{"replaced by another disk", func(r *rig.Rig) {}, func(r *rig.Rig) {
			r.AddDisk("z", size)
			r.Write(2, 5, text("z"))
			r.Disks = []controlapi.Disk{r.Disks[2], r.Disks[1]}
		}, 2},
		{"in another order", func(r *rig.Rig) {}, func(r *rig.Rig) { r.Disks = []controlapi.Disk{r.Disks[1], r.Disks[0]} }, 2},
		{"replaced under its name", func(r *rig.Rig) { replace(r, "other") }, func(*rig.Rig) {}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, size, 20*rig.Block)
			for at := range int64(60) {
				r.Write(0, at, text(string(rune('a'+at%20))))
			}
			r.StartServer()
			r.Grant(1, cut)
			r.StartAgent(1)
			r.AfterNow()
			r.Write(0, 7, text("x"))
			r.AfterNow()
			before := keep(r)

			c.change(r)
			disks := slices.Clone(r.Disks)
			c.shape(r)
			if disks[0].ID == r.Disks[0].ID && disks[0].Size != r.Disks[0].Size {
				require.Eventually(t, func() bool { refused := refusal(r.Ended()); return refused != nil && refused.Code == wire.CodeDisks }, soon, often)
				require.False(t, r.Status().Connected, "nothing is taken")
			}
			r.Grant(1, cut)
			r.Assign(1)
			p := r.AfterNow()
			require.Equal(t, r.Digest(), r.DigestAt(p), "the replica is the source")
			require.Len(t, p.Disks, len(r.Disks))
			r.Write(0, r.Disks[0].Size/rig.Block-1, text("y")) // the last whole block
			require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
			st := r.Status()
			require.Equal(t, c.generation, st.Generation)
			require.Nil(t, st.Broken)
			kept(r, before)
		})
	}
}

// replace puts another disk of the same size in the place of the first.
func replace(r *rig.Rig, content string) {
	r.T.Helper()
	path := r.Path(r.Disks[0].BackingUUID)
	require.NoError(r.T, os.WriteFile(path+".new", text(content)[:2*rig.Block], 0o600))
	require.NoError(r.T, os.Truncate(path+".new", r.Disks[0].Size))
	require.NoError(r.T, os.Rename(path+".new", path))
}

// TestCase24DiskThatIsGone: while it is, no points are made of what is left; when it is
// back, with whatever in it, all goes on.
func TestCase24DiskThatIsGone(t *testing.T) {
	r := rig.New(t, 64*rig.Block, 20*rig.Block)
	r.Write(0, 3, text("a"))
	r.StartServer()
	r.Grant(1, cut)
	r.StartAgent(1)
	r.AfterNow()
	path := r.Path(r.Disks[1].BackingUUID)
	require.NoError(t, os.Rename(path, path+".away"))
	require.Eventually(t, func() bool { return strings.Contains(r.State().Detail, "disk-b") }, soon, often, "the agent says which one")
	ended, last := len(r.Ended()), r.Status().Spooled
	require.Eventually(t, func() bool { return len(r.Ended()) > ended+3 }, soon, often)
	require.Equal(t, last, r.Status().Spooled)
	before := keep(r)
	require.NoError(t, os.Rename(path+".away", path))
	r.Write(1, 2, text("b"))
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Equal(t, uint32(1), r.Status().Generation)
	kept(r, before)
}
