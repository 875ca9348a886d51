package trace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/mountinfo"
	"drover/tests/loop"
)

func TestFindTracefs(t *testing.T) {
	find := func(text string) string { return findTracefs(strings.NewReader(text)) }
	const root = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
	require.Empty(t, find(root))
	require.Equal(t, "/sys/kernel/tracing", find(root+"40 20 0:12 / /sys/kernel/tracing rw,nosuid shared:9 - tracefs tracefs rw\n"))
	require.Equal(t, "/a b", find(root+`40 20 0:12 / /a\040b rw - tracefs tracefs rw`))
	require.Empty(t, find("40 20 0:12 /instances/x /mnt rw - tracefs tracefs rw\n"), "a part of it")
	debug := t.TempDir()
	line := "30 20 0:7 / " + debug + " rw shared:3 - debugfs debugfs rw\n"
	require.Empty(t, find(line), "no tracing in it")
	require.NoError(t, os.MkdirAll(filepath.Join(debug, "tracing/instances"), 0o700))
	require.Equal(t, filepath.Join(debug, "tracing"), find(line))
	require.Equal(t, "/t", find(line+"40 20 0:12 / /t rw - tracefs tracefs rw\n"), "tracefs itself is better")
	require.Empty(t, find("garbage\n - \n1 2 3 / - tracefs\n"))
}

// TestOwnMount mounts tracefs where nobody sees it.
func TestOwnMount(t *testing.T) {
	loop.Need(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	fs, err := mountTracefs()
	if err != nil {
		loop.Missing(t, err.Error())
	}
	require.NoError(t, fs.check())
	list, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, list)
	text, err := os.ReadFile(mountinfo.Path)
	require.NoError(t, err)
	require.NotContains(t, string(text), temp)
	require.NoError(t, fs.removeLeftovers())
	require.NoError(t, fs.close())
	require.Error(t, fs.check())
}

func TestInstanceNames(t *testing.T) {
	pid, started, ok := parseInstance("drover-123-456-7")
	require.True(t, ok)
	require.Equal(t, 123, pid)
	require.Equal(t, "456", started)
	for _, name := range []string{"drover-123-456", "drover-x-456-7", "other-123-456-7", "drover-123-456-7-8", "drover-123--7", "drover-0-1-1", "drover--1-2-3"} {
		_, _, ok := parseInstance(name)
		require.False(t, ok, name)
	}
	mine, err := startOf(os.Getpid())
	require.NoError(t, err)
	again, err := startOf(os.Getpid())
	require.NoError(t, err)
	require.Equal(t, mine, again)
	_, err = startOf(1 << 30)
	require.ErrorIs(t, err, os.ErrNotExist)
}
