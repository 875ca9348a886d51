package stream

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"drover/agent/quiesce/freeze"
	"drover/agent/session"
	"drover/agent/tracker"
	"drover/datapath/ident"
	"drover/datapath/replica"
	pipe "drover/datapath/stream"
	"drover/tests/loop"
	"drover/tests/rig"
)

const (
	freeDisk = 64 << 20
	garbage  = 24 << 20 // deleted before the machine is protected
	kept     = 3 << 20
)

// freeRig is a machine with a real file system on a block device, whose free blocks are
// full of what was deleted.
type freeRig struct {
	*rig.Rig
	mount    string
	check    []string
	options  string
	registry *prometheus.Registry
}

var freeKinds = map[string][2][]string{
	"ext4": {{"mke2fs", "-q", "-F", "-t", "ext4"}, {"e2fsck", "-fn"}},
	"xfs":  {{"mkfs.xfs", "-q", "-f"}, {"xfs_repair", "-n"}},
}

func newFreeRig(t *testing.T, kind string) *freeRig {
	t.Helper()
	r := &freeRig{Rig: rig.New(t, freeDisk), mount: t.TempDir(), registry: prometheus.NewRegistry(), options: "loop"}
	if kind == "xfs" {
		r.options = "loop,nouuid"
		for _, v := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} { // a small one
			t.Setenv(v, "t")
		}
	}
	r.Device = loop.Attach(t, r.Path("a")).Path
	mkfs := freeKinds[kind][0]
	r.check = freeKinds[kind][1]
	run(t, mkfs[0], append(mkfs[1:], r.Device)...)
	run(t, "mount", r.Device, r.mount)
	t.Cleanup(func() { loop.Unmount(t, r.mount) })
	t.Cleanup(r.StopAgent)
	for i := range garbage >> 20 {
		r.file(fmt.Sprintf("deleted-%d", i), 1<<20)
	}
	r.file("kept", kept)
	run(t, "sync")
	for i := range garbage >> 20 {
		require.NoError(t, os.Remove(filepath.Join(r.mount, fmt.Sprintf("deleted-%d", i))))
	}
	run(t, "sync")
	r.Hooks.Freezer = &freeze.Freezer{Limit: 20 * time.Second}
	r.SkipFree, r.Metrics = true, session.NewMetrics(r.registry)
	return r
}

func (r *freeRig) file(name string, size int) {
	b := make([]byte, 0, size)
	for seed := uint64(len(name)) << 8; len(b) < size; seed++ {
		b = append(b, noiseBlock(seed+uint64(name[len(name)-1]))...)
	}
	require.NoError(r.T, os.WriteFile(filepath.Join(r.mount, name), b[:size], 0o600))
}

// sent is how many bytes of blocks went over the line.
func (r *freeRig) sent() int64 {
	all, err := r.registry.Gather()
	require.NoError(r.T, err)
	for _, f := range all {
		if f.GetName() == "drover_agent_data_bytes_total" {
			return int64(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return 0
}

// recovered gives the files on the disk of a point, after its check found nothing.
func (r *freeRig) recovered(p replica.Point) map[string]string {
	t := r.T
	t.Helper()
	disk, err := r.Reader().OpenDisk(t.Context(), p.ID, r.Disks[0].ID)
	require.NoError(t, err)
	path, at := filepath.Join(t.TempDir(), "recovered"), t.TempDir()
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = io.Copy(f, io.NewSectionReader(disk, 0, disk.Size()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, disk.Close())
	run(t, "mount", "-o", r.options, path, at) // plays the journal back
	got := loop.Digests(t, at)
	loop.Unmount(t, at)
	run(t, r.check[0], append(r.check[1:], path)...)
	return got
}

// same compares source and replica, and gives what was left out because it is free. A
// freeze writes to a file system's first blocks, which are busy then.
func (r *freeRig) same() int64 {
	r.T.Helper()
	d := verify(r.T, r.Rig, pipe.VerifyOrder{}).Disks[0]
	require.Zero(r.T, d.Differed, "%+v", d)
	require.LessOrEqual(r.T, d.Busy, int64(8*rig.Block))
	return d.Free
}

// during calls do once, while the first pass over the disks is half done.
type during struct {
	tracker.Tracker
	once sync.Once
	do   func()
}

func (d *during) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	return d.Tracker.Pass(ctx, disk, emit, func(done int64) {
		if done > freeDisk/2 {
			d.once.Do(d.do)
		}
		if p != nil {
			p(done)
		}
	})
}

// TestFreeBlocksAreNotSent: what was deleted is neither sent nor compared; what is written
// into free space meanwhile, up to the last moment before the freeze, is on the recovered
// disk, and so is everything else.
func TestFreeBlocksAreNotSent(t *testing.T) {
	for kind := range freeKinds {
		t.Run(kind, func(t *testing.T) {
			r := newFreeRig(t, kind)
			r.Track = func(inner tracker.Tracker) tracker.Tracker {
				return &during{Tracker: inner, do: func() { r.file("while-it-is-copied", 5<<20); run(t, "sync") }}
			}
			// Just before the freeze, and after all maps but its own.
			pre, _ := hook(r.Rig, "late", "dd if=/dev/urandom of="+r.mount+"/late-$DROVER_SEQ bs=64k count=4 status=none; sync")
			r.Hooks.Pre, r.Hooks.Post, r.Hooks.Timeout = []string{pre}, []string{"/bin/true"}, rig.Limit
			r.StartServer()
			r.Grant(1, rig.Limit)
			r.StartAgent(1)
			r.Await("complete", complete)
			require.Less(t, r.sent(), int64(garbage/2), "what was deleted is not sent")
			require.Equal(t, loop.Digests(t, r.mount), r.recovered(r.Points()[0]))

			// Files grow into free space, go, and take room without writing to it.
			r.file("later-1", 4<<20)
			r.file("later-2", 4<<20)
			run(t, "fallocate", "-l", "6MiB", filepath.Join(r.mount, "reserved"))
			require.NoError(t, os.Remove(filepath.Join(r.mount, "kept")))
			p := r.AfterNow()
			require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
			want := loop.Digests(t, r.mount)
			require.Contains(t, want, "/later-2")
			require.Equal(t, want, r.recovered(p))
			require.Greater(t, r.same(), int64(freeDisk/4))
		})
	}
}

// TestFreeBlocksAfterARestart: an agent that knows nothing compares, and neither takes what
// is free for a difference nor sends it.
func TestFreeBlocksAfterARestart(t *testing.T) {
	r := newFreeRig(t, "ext4")
	r.StartServer()
	r.Grant(1, rig.Limit)
	r.StartAgent(1)
	r.Await("complete", complete)
	r.StopAgent()
	before := r.sent()
	r.file("written-while-it-was-away", 2<<20)
	r.StartAgent(1)
	require.Greater(t, r.same(), int64(garbage/2))
	p := r.AfterNow()
	require.Less(t, r.sent()-before, int64(8<<20))
	require.Equal(t, loop.Digests(t, r.mount), r.recovered(p))
}

// TestFreeBlocksWithoutAFreeze: where nobody holds the file system still, points have all
// blocks; they are the disk, byte for byte.
func TestFreeBlocksWithoutAFreeze(t *testing.T) {
	r := newFreeRig(t, "ext4")
	freezer := r.Hooks.Freezer
	r.Hooks.Freezer = nil
	r.StartServer()
	r.Grant(1, rig.Limit)
	r.StartAgent(1)
	r.Await("complete", complete)
	require.Greater(t, r.sent(), int64(garbage))
	p := r.AfterNow()
	require.Equal(t, ident.CrashConsistent, p.Consistency)
	require.Equal(t, r.Digest(), r.DigestAt(p))
	require.Zero(t, r.same())
	r.StopAgent()
	r.Hooks.Freezer = freezer
	r.StartAgent(1)
	p = r.AfterNow()
	require.Equal(t, ident.FileSystemConsistent, p.Consistency, p.Note)
	require.Equal(t, loop.Digests(t, r.mount), r.recovered(p))
	require.Greater(t, r.same(), int64(garbage/2))
}
