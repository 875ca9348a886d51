package cuts

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/live"
	"drover/agent/tracker/trace"
	"drover/datapath/checksum"
	"drover/datapath/replica"
	pipe "drover/datapath/stream"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

// seconds is how long all proofs together take, about.
var seconds = flag.Int("seconds", 8, "how long the proof that nothing is missed takes")

const size = 192 << 20

// sources are the ways of tracking.
func sources(t *testing.T) map[string]func() (changes.Source, error) {
	return map[string]func() (changes.Source, error){
		"ebpf":  func() (changes.Source, error) { return ebpf.Open("") },
		"trace": func() (changes.Source, error) { return trace.Open(trace.Options{}) },
	}
}

// need skips the test where the tools it takes are missing; in CI it fails.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, name := range tools {
		if _, err := exec.LookPath(guest.Tool(name)); err != nil {
			loop.Missing(t, name+" is not installed")
		}
	}
}

// world is a machine with one real disk that is replicated.
type world struct {
	*rig.Rig
	t    *testing.T
	disk *loop.Device
}

// newWorld protects a device, its changes found by the source.
func newWorld(t *testing.T, source changes.Source) *world {
	t.Helper()
	w := &world{Rig: rig.New(t, size), t: t, disk: loop.New(t, size)}
	w.Device = w.disk.Path
	w.Track = func(tracker.Tracker) tracker.Tracker { return live.New(source) }
	return w
}

// start begins with the hooks, which make the device still and let it go.
func (w *world) start(still, letGo string) {
	w.t.Helper()
	w.Hooks.Pre, w.Hooks.Post, w.Hooks.Timeout = []string{w.script("still", still)}, []string{w.script("go", letGo)}, 20*time.Second
	w.StartServer()
	w.Grant(1, 300*time.Millisecond)
	w.StartAgent(1)
	w.t.Cleanup(w.StopAgent) // before what it is frozen for is gone
	w.Await("complete", func(st pipe.Status) bool { return st.Complete && st.Points > 0 })
}

func (w *world) script(name, body string) string {
	w.t.Helper()
	path := filepath.Join(w.Dir, name)
	require.NoError(w.t, os.WriteFile(path, []byte("#!/bin/sh\nset -e\n"+body+"\n"), 0o700)) //nolint:gosec // it is run
	return path
}

// prove cuts again and again, and compares all of the device with the replica while it
// is still. It gives the number of cuts.
func (w *world) prove(lasts time.Duration) (cuts int) {
	w.t.Helper()
	for begin := time.Now(); time.Since(begin) < lasts || cuts < 2; cuts++ {
		time.Sleep(200 * time.Millisecond)
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*rig.Limit)
		p, err := w.Server.Cut(ctx, w.Machine, 1, true)
		require.NoError(w.t, err)
		require.Empty(w.t, w.differ(p), "cut %d: blocks of the device that the replica does not have", cuts)
		require.NoError(w.t, w.Server.Release(ctx, w.Machine, 1))
		cancel()
	}
	require.Equal(w.t, uint32(1), w.Status().Generation)
	return cuts
}

// differ compares all of the device, read around all caches, with the replica at a
// point, and gives the blocks that differ.
func (w *world) differ(p replica.Point) (blocks []int64) {
	w.t.Helper()
	d, err := disk.Open(w.disk.Path)
	require.NoError(w.t, err)
	defer func() { require.NoError(w.t, d.Close()) }()
	r, err := w.Reader().OpenDisk(w.t.Context(), p.ID, w.Disks[0].ID)
	require.NoError(w.t, err)
	defer func() { require.NoError(w.t, r.Close()) }()
	here, there := disk.Buffer(4<<20), make([]byte, 4<<20)
	for at := int64(0); at < size; at += int64(len(here)) {
		_, err := d.ReadAt(here, at)
		require.NoError(w.t, err)
		_, err = r.ReadAt(there, at)
		require.NoError(w.t, err)
		for i := 0; i < len(here); i += rig.Block {
			if !bytes.Equal(here[i:i+rig.Block], there[i:i+rig.Block]) {
				blocks = append(blocks, (at+int64(i))/rig.Block)
			}
		}
	}
	return blocks
}

// run starts a program in a process group of its own, which is killed when the test
// ends, and gives its number.
func run(t *testing.T, name string, args ...string) int {
	t.Helper()
	cmd := exec.Command(guest.Tool(name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = io.Discard, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out.String())
		}
	})
	return cmd.Process.Pid
}

// fio writes until the test ends.
func fio(t *testing.T, name, file string, how ...string) int {
	t.Helper()
	return run(t, "fio", append([]string{"--name=" + name, "--filename=" + file, "--thread", "--time_based", "--runtime=3600", "--norandommap",
		"--randrepeat=0", "--refill_buffers", "--size=" + fmt.Sprint(size)}, how...)...)
}

// TestNothingIsMissed: after each cut the replica is the device.
func TestNothingIsMissed(t *testing.T) {
	need(t, "fio", "mkfs.ext4", "fsfreeze")
	each := time.Duration(*seconds) * time.Second / 4
	for name, open := range sources(t) {
		t.Run(name+"/raw", func(t *testing.T) { provedRaw(t, open, each) })
		t.Run(name+"/ext4", func(t *testing.T) { provedExt4(t, open, each) })
	}
}

// opened opens a source, if it works here.
func opened(t *testing.T, open func() (changes.Source, error)) changes.Source {
	t.Helper()
	loop.Need(t)
	source, err := open()
	if err != nil {
		loop.Missing(t, err.Error())
	}
	return source
}

// provedRaw writes to the device itself: direct and through the page cache, in all
// sizes, and discards.
func provedRaw(t *testing.T, open func() (changes.Source, error), lasts time.Duration) {
	w := newWorld(t, opened(t, open))
	writers := []int{
		fio(t, "sizes", w.disk.Path, "--rw=randwrite", "--bsrange=512-192k", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rate=10m"),
		fio(t, "small", w.disk.Path, "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=32", "--rate_iops=1500"),
		fio(t, "cached", w.disk.Path, "--rw=randwrite", "--bs=2k", "--fsync=64", "--rate_iops=500"),
		fio(t, "trim", w.disk.Path, "--rw=randtrim", "--bsrange=4k-256k", "--direct=1", "--rate_iops=20"),
	}
	still, letGo := w.stopping(writers...)
	w.start(still, letGo)
	t.Logf("%d cuts", w.prove(lasts))
}

// stopping gives what stops writers and waits until the device is still, and what lets
// them go on.
func (w *world) stopping(writers ...int) (still, letGo string) {
	for _, pid := range writers {
		still += fmt.Sprintf("kill -STOP %d\n", pid)
		// A thread stops when the system call it is in is done.
		still += fmt.Sprintf("while cat /proc/%d/task/*/stat | sed 's/.*) //' | grep -qv '^T'; do sleep 0.01; done\n", pid)
		letGo += fmt.Sprintf("kill -CONT %d\n", pid)
	}
	// What is in the page cache goes to the device, and what is on its way arrives.
	still += fmt.Sprintf("sync %s\nwhile grep -q '[1-9]' /sys/block/%s/inflight; do sleep 0.01; done\n", w.disk.Path, filepath.Base(w.disk.Path))
	return still, letGo
}

// provedExt4 writes to files of a file system, and makes and removes files. It is not
// mounted with discard: then ext4 discards free blocks while it is frozen.
func provedExt4(t *testing.T, open func() (changes.Source, error), lasts time.Duration) {
	w := newWorld(t, opened(t, open))
	out, err := exec.Command(guest.Tool("mkfs.ext4"), "-q", w.disk.Path).CombinedOutput()
	require.NoError(t, err, string(out))
	mount := t.TempDir()
	require.NoError(t, syscall.Mount(w.disk.Path, mount, "ext4", 0, ""))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(mount, syscall.MNT_DETACH)) })
	const file = 40 << 20
	run(t, "fio", "--name=files", "--thread", "--directory="+mount, fmt.Sprintf("--size=%d", file), "--numjobs=2", "--rw=randwrite", "--bsrange=512-64k",
		"--time_based", "--runtime=3600", "--fsync=32", "--rate_iops=500")
	run(t, "sh", "-c", fmt.Sprintf(`cd %s; while :; do for i in 1 2 3 4; do head -c $((i*777777)) /dev/urandom > f$i; done; sync; rm -f f?; sleep 0.1; done`, mount))
	w.start(guest.Tool("fsfreeze")+" --freeze "+mount, guest.Tool("fsfreeze")+" --unfreeze "+mount)
	t.Logf("%d cuts", w.prove(lasts))
}

// deaf does not hear every write.
type deaf struct {
	changes.Source
	n int
}

func (d *deaf) Drain(device int, into changes.Bitmap) error {
	heard := make(changes.Bitmap, len(into))
	err := d.Source.Drain(device, heard)
	for b, end := heard.Next(0, 1); b < end; b, end = heard.Next(end, 1) {
		if d.n++; d.n%100 > 0 {
			into.Set(b, b+1)
		}
	}
	return err
}

// TestAMissIsSeen: the proof fails when a source misses one block of a hundred.
func TestAMissIsSeen(t *testing.T) {
	need(t, "fio")
	w := newWorld(t, &deaf{Source: opened(t, sources(t)["trace"])})
	pid := fio(t, "small", w.disk.Path, "--rw=randwrite", "--bs=4k", "--direct=1", "--rate_iops=2000")
	w.start(w.stopping(pid))
	time.Sleep(time.Second)
	p, err := w.Server.Cut(t.Context(), w.Machine, 1, true)
	require.NoError(t, err)
	require.NotEmpty(t, w.differ(p))
	require.NoError(t, w.Server.Release(t.Context(), w.Machine, 1))
}

// learning counts how often all of a disk is compared with the replica.
type learning struct {
	tracker.Tracker
	n *atomic.Int32
}

func (l learning) Learn(ctx context.Context, disk int, compare func(checksum.Window) error, p tracker.Progress) error {
	l.n.Add(1)
	return l.Tracker.Learn(ctx, disk, compare, p)
}

func (l learning) Close() error { return l.Tracker.(io.Closer).Close() } //nolint:forcetypeassert // it is a live one

// telling keeps what a source says of writes that it may have missed.
type telling struct {
	changes.Source
	gap atomic.Value // string
}

func (g *telling) Gap() (string, error) {
	why, err := g.Source.Gap()
	if why != "" {
		g.gap.Store(why)
	}
	return why, err
}

// TestNextAgentGoesOn: what was written while no agent ran is sent by the next one, and
// nothing is compared, unless the kernel itself says that it did not run the program, as
// it can on a busy machine. One whose pins are gone compares.
func TestNextAgentGoesOn(t *testing.T) {
	loop.Need(t)
	pins := t.TempDir()
	require.NoError(t, syscall.Mount("bpffs", pins, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(pins, syscall.MNT_DETACH)) })
	where := filepath.Join(pins, "drover")
	t.Cleanup(func() { require.NoError(t, ebpf.Unpin(where)) })
	w := &world{Rig: rig.New(t, size), t: t, disk: loop.New(t, size)}
	var compared atomic.Int32
	var tells atomic.Pointer[telling]
	w.Device = w.disk.Path
	w.Track = func(tracker.Tracker) tracker.Tracker {
		source, err := ebpf.Open(where)
		if err != nil {
			loop.Missing(t, err.Error())
		}
		require.Empty(t, source.Unpinned())
		last := &telling{Source: source}
		tells.Store(last)
		return learning{live.New(last), &compared}
	}
	w.StartServer()
	w.Grant(1, 100*time.Millisecond)
	write := func(block int64, b byte) {
		t.Helper()
		require.NoError(t, w.disk.Write(block*rig.Block, bytes.Repeat([]byte{b}, rig.Block)))
	}
	write(7, 1)
	w.StartAgent(1)
	t.Cleanup(w.StopAgent)
	w.Await("complete", func(st pipe.Status) bool { return st.Complete && st.Points > 0 })
	for round := range byte(3) {
		write(8+int64(round), 2)
		w.AfterNow()
		before := w.Status().DataBytes
		w.StopAgent()
		write(100+int64(round), 3)
		w.StartAgent(1)
		require.Empty(t, w.differ(w.AfterNow()))
		if n := compared.Swap(0); n > 0 {
			require.Contains(t, tells.Load().gap.Load(), "recursion", "round %d: %d disks were compared", round, n)
			continue
		}
		require.LessOrEqual(t, w.Status().DataBytes-before, int64(4*rig.Block), "what changed, and what was on its way")
	}
	compared.Store(0)
	w.StopAgent()
	require.NoError(t, ebpf.Unpin(where))
	write(200, 4)
	w.StartAgent(1)
	require.Empty(t, w.differ(w.AfterNow()))
	require.Equal(t, int32(1), compared.Load())
}
