package ebpf

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/tests/loop"
)

const mega = 1 << 20

var available = sync.OnceValue(Available)

// need skips where the kernel does not take the programs.
func need(t testing.TB) {
	t.Helper()
	loop.Need(t)
	if err := available(); err != nil {
		loop.Missing(t, err.Error())
	}
}

// bpffs mounts a bpffs of the test's own and gives a directory in it that is not there.
func bpffs(t testing.TB) string {
	t.Helper()
	need(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return filepath.Join(dir, "drover")
}

func open(t testing.TB, dir string) *Source {
	t.Helper()
	need(t)
	s, err := Open(dir)
	require.NoError(t, err)
	require.Equal(t, dir == "", s.Unpinned() != "", s.Unpinned())
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func device(d *loop.Device) changes.Device {
	return changes.Device{Path: d.Path, Major: d.Major, Minor: d.Minor, Size: d.Size}
}

func follow(t testing.TB, s *Source, devices ...*loop.Device) []bool {
	t.Helper()
	all := []changes.Device{}
	for _, d := range devices {
		all = append(all, device(d))
	}
	kept, err := s.Follow(all)
	require.NoError(t, err)
	return kept
}

// drained is what one Drain of the i-th disk says.
func drained(t testing.TB, s *Source, i int) changes.Bitmap {
	t.Helper()
	b := make(changes.Bitmap, changes.Words(s.disks[i].identity().Size))
	require.NoError(t, s.Drain(i, b))
	return b
}

// settle lets everything that is pending grow too old, as if PendingLimit had passed
// twice: it also ends the doubt about completions that a kernel did not show.
func settle(t testing.TB, s *Source, i int) {
	t.Helper()
	limit := s.limit
	s.limit = 0
	drained(t, s, i)
	drained(t, s, i)
	s.limit = limit
}

// covers holds that a bitmap has all blocks.
func covers(t testing.TB, b changes.Bitmap, blocks []int64) {
	t.Helper()
	require.Empty(t, missed(b, blocks), "of %d changed blocks", len(blocks))
}

func missed(b changes.Bitmap, blocks []int64) (out []int64) {
	for _, n := range blocks {
		if !b.Has(n) {
			out = append(out, n)
		}
	}
	return out
}

func noGap(t testing.TB, s *Source) {
	t.Helper()
	why, err := s.Gap()
	require.NoError(t, err)
	require.Empty(t, why)
}

func ones(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 1
	}
	return b
}
