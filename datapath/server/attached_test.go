package server_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// attach makes files that stand for disks attached to a master target, with the
// content that the machine had some time ago, and a grant for them.
func (r *rig) attach() (stream.Grant, func(*server.Config)) {
	r.t.Helper()
	dir := filepath.Join(r.dir, "by-id")
	require.NoError(r.t, os.MkdirAll(dir, 0o700))
	g := grant(1)
	g.Attached = true
	g.Spec.Disks = slices.Clone(g.Spec.Disks)
	for i := range g.Spec.Disks {
		d := &g.Spec.Disks[i]
		d.BackingUUID = d.Name[len(d.Name)-1:]
		require.NoError(r.t, os.WriteFile(filepath.Join(dir, d.BackingUUID), r.src.disks[i], 0o600))
	}
	return g, func(c *server.Config) { c.DiskByID = dir }
}

// cutShort lets BeginGeneration be interrupted while it reads the disks, as a crash
// does.
type cutShort struct{ replica.Store }

type cutShortWriter struct{ replica.Writer }

func (c cutShort) OpenWriter(ctx context.Context, epoch ident.Epoch, spec replica.Spec) (replica.Writer, error) {
	w, err := c.Store.OpenWriter(ctx, epoch, spec)
	return cutShortWriter{w}, err
}

func (c cutShortWriter) BeginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, _ func(done, total int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	return c.Writer.BeginGeneration(ctx, disks, rescan, func(int64, int64) { cancel() })
}

func TestAttachedDisks(t *testing.T) {
	r := newRig(t)
	g, attached := r.attach()
	s := r.start(attached)
	require.NoError(t, s.Grant(t.Context(), g))
	_, refusal := s.tryConnect(agentPeer, r.greeting())
	require.Equal(t, wire.CodeBusy, refusal.Code, "their content is not known yet")
	require.NoError(t, s.StartBase(t.Context(), machineID, 1, "reprotect", true))
	r.sameAsAttached(s)
}

// A master target that dies while it reads the attached disks reads them when it is
// back, without being asked again.
func TestAttachedDisksAreReadAfterACrash(t *testing.T) {
	r := newRig(t)
	g, attached := r.attach()
	s := r.start(attached, func(c *server.Config) { c.Store = cutShort{c.Store} })
	require.NoError(t, s.Grant(t.Context(), g))
	require.Error(t, s.StartBase(t.Context(), machineID, 1, "reprotect", true))
	s.stop()
	r.sameAsAttached(r.start(attached))
}

// A reboot of a master target may give its disks other device names. What they are known
// by stays, and so do the replica and its points.
func TestAttachedDisksUnderOtherNames(t *testing.T) {
	r := newRig(t)
	g, attached := r.attach()
	names := func(devices ...string) { // as udev names them
		for i, d := range g.Spec.Disks {
			link := filepath.Join(r.dir, "by-id", d.BackingUUID)
			if _, err := os.Readlink(link); err != nil {
				require.NoError(t, os.Rename(link, filepath.Join(r.dir, devices[i])))
			} else {
				require.NoError(t, os.Remove(link))
			}
			require.NoError(t, os.Symlink(filepath.Join(r.dir, devices[i]), link))
		}
	}
	names("sdb", "sdc")
	s := r.start(attached)
	require.NoError(t, s.Grant(t.Context(), g))
	require.NoError(t, s.StartBase(t.Context(), machineID, 1, "reprotect", true))
	r.sameAsAttached(s)
	s.stop()
	for _, move := range [][2]string{{"sdb", "aside"}, {"sdc", "sdb"}, {"aside", "sdc"}} {
		require.NoError(t, os.Rename(filepath.Join(r.dir, move[0]), filepath.Join(r.dir, move[1])))
	}
	names("sdc", "sdb")
	s = r.start(attached)
	a := s.connect()
	require.Equal(t, wire.ModeDelta, a.welcome.Mode)
	a.delta(r.src.change(0, 1, r.noise(4096)))
	a.await(wire.Applied, a.tail.Seq)
	require.Equal(t, uint32(1), r.state().Generation)
	r.holds(a.tail.Seq, r.src)
}

// sameAsAttached expects the checksums of the attached disks, and completes a base
// that has nothing to send.
func (r *rig) sameAsAttached(s *running) {
	r.t.Helper()
	a := s.connect()
	require.Equal(r.t, wire.ModeCompare, a.welcome.Mode)
	for i, d := range a.welcome.Disks {
		want := sumsOf(d.Seed, r.src.disks[i])
		require.Equal(r.t, want, a.query(&wire.SumsQuery{Disk: i, Count: len(want)}))
	}
	cut := crash()
	cut.Complete = true
	require.Nil(r.t, a.set(changeset.Base, cut))
	a.await(wire.Applied, 1)
	require.True(r.t, s.status().Complete)
}
