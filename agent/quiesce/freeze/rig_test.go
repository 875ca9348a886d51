package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/tests/lab/guest"
	"drover/tests/loop"
)

// TestMain is also the guard process, and the agent that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Verb:
			if err := Guard(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			syscall.Exit(0) // the race detector waits a second at os.Exit
		case victimVerb:
			victim(os.Args[2:])
		}
	}
	goleak.VerifyTestMain(m)
}

const (
	victimVerb = "freeze-victim"
	wait       = 30 * time.Second // of any wait; everything here takes far less
)

// victim freezes what lies on the devices, says so, and waits to be killed.
func victim(args []string) {
	limit, err := time.ParseDuration(args[0])
	check(err)
	set, err := Find(args[1:])
	check(err)
	f := &Freezer{Limit: limit}
	z, err := f.Prepare(context.Background(), set)
	check(err)
	fmt.Println(z.cmd.Process.Pid)
	check(z.Freeze(context.Background()))
	fmt.Println("frozen")
	select {}
}

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path := guest.Tool(name)
	if !filepath.IsAbs(path) {
		loop.Missing(t, name+" is not installed")
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool(t, name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

func sparse(t *testing.T, dir string, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "disk-")
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
	return f.Name()
}

// mounted makes a file system on a loop device of a file in dir.
func mounted(t *testing.T, dir, fstype string) (device, point string) {
	t.Helper()
	loop.Need(t)
	size := int64(64 << 20)
	if fstype == "xfs" || fstype == "btrfs" {
		size = 320 << 20
	}
	device = loop.Attach(t, sparse(t, dir, size)).Path
	run(t, "mkfs."+fstype, device)
	point = t.TempDir()
	run(t, "mount", "-t", fstype, device, point)
	t.Cleanup(func() {
		// A process that was killed may take a moment to let go of it.
		require.Eventually(t, func() bool { return exec.Command(tool(t, "umount"), point).Run() == nil }, wait, 10*time.Millisecond)
	})
	return device, point
}

func find(t *testing.T, disks ...string) *Set {
	t.Helper()
	s, err := Find(disks)
	require.NoError(t, err)
	return s
}

// writer writes and syncs to a file system without end, and notes when it last did.
type writer struct {
	count atomic.Int64
	stop  chan struct{}
	done  chan struct{}
}

func write(t *testing.T, point string) *writer {
	t.Helper()
	w := &writer{stop: make(chan struct{}), done: make(chan struct{})}
	f, err := os.Create(filepath.Join(point, "written"))
	require.NoError(t, err)
	go func() {
		defer close(w.done)
		defer func() { _ = f.Close() }()
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := f.WriteAt([]byte(strconv.FormatInt(w.count.Load(), 10)), 0); err == nil && f.Sync() == nil {
				w.count.Add(1)
			}
		}
	}()
	t.Cleanup(func() { close(w.stop); <-w.done })
	return w
}

// goesOn waits until the writer has written twice from now on.
func (w *writer) goesOn(t *testing.T) {
	t.Helper()
	from := w.count.Load()
	require.Eventually(t, func() bool { return w.count.Load() > from+1 }, wait, time.Millisecond, "the writer goes on")
}

// stands checks that nothing is written.
func (w *writer) stands(t *testing.T) {
	t.Helper()
	from := w.count.Load()
	time.Sleep(30 * time.Millisecond)
	require.LessOrEqual(t, w.count.Load(), from+1, "one may have been done")
	from = w.count.Load()
	time.Sleep(20 * time.Millisecond)
	require.Equal(t, from, w.count.Load())
}

func prepared(t *testing.T, limit time.Duration, disks ...string) (*Freezer, *Frozen) {
	t.Helper()
	f := &Freezer{Limit: limit}
	z, err := f.Prepare(t.Context(), find(t, disks...))
	require.NoError(t, err)
	t.Cleanup(z.Close)
	return f, z
}

// holdOpen has another process hold a file open for writing.
func holdOpen(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	cmd := exec.Command(tool(t, "sleep"), "600")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(t, cmd.Start())
	require.NoError(t, f.Close())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}
