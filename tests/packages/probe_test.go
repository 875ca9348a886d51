package packages

import (
	"os"
	"os/exec"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
)

// FIFREEZE and FITHAW of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// TestProbe runs in the agent's sandbox, with its privileges: what the agent does must
// go, what it never does must not.
func TestProbe(t *testing.T) {
	device := os.Getenv("DROVER_PROBE")
	if device == "" {
		t.Skip("only inside the agent's unit")
	}
	// Disks are read around the page cache, and cannot be written.
	d, err := disk.Open(device)
	require.NoError(t, err)
	_, err = d.ReadAt(disk.Buffer(disk.Align), 0)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	_, err = os.OpenFile(device, os.O_WRONLY, 0)
	require.ErrorIs(t, err, unix.EPERM)

	// File systems are frozen.
	mnt, err := os.Open("/mnt")
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetInt(int(mnt.Fd()), fiFreeze, 0))
	require.NoError(t, unix.IoctlSetInt(int(mnt.Fd()), fiThaw, 0))
	require.NoError(t, mnt.Close())

	// Changes are tracked: maps are made and pinned, memory is locked, traces have instances.
	attr := struct{ kind, key, value, entries uint32 }{2, 4, 8, 1} // an array
	fd, _, e := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	require.Zero(t, e)
	const dir = "/sys/fs/bpf/drover-probe"
	require.NoError(t, os.Mkdir(dir, 0o700))
	name, err := unix.BytePtrFromString(dir + "/map")
	require.NoError(t, err)
	pin := struct {
		path     uint64
		fd, flag uint32
	}{uint64(uintptr(unsafe.Pointer(name))), uint32(fd), 0}
	_, _, e = unix.Syscall(unix.SYS_BPF, 6, uintptr(unsafe.Pointer(&pin)), unsafe.Sizeof(pin))
	require.Zero(t, e)
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, unix.Mlock(make([]byte, 1<<20)))
	if _, err := os.Stat("/sys/kernel/tracing/instances"); err == nil {
		require.NoError(t, os.Mkdir("/sys/kernel/tracing/instances/drover-probe", 0o700))
		require.NoError(t, os.Remove("/sys/kernel/tracing/instances/drover-probe"))
	}
	_, err = os.ReadFile("/proc/pressure/io")
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}

	// State and socket have their places; all else stays as it is.
	for path, may := range map[string]bool{
		"/var/lib/drover/agent/probe": true, "/run/drover-agent/probe": true,
		"/etc/probe": false, "/usr/probe": false, "/home/probe": false, "/mnt/probe": false, "/tmp/probe": false, "/root/probe": false,
		"/sys/fs/cgroup/probe": false,
	} {
		err := os.Mkdir(path, 0o700)
		require.Equal(t, may, err == nil, "%s: %v", path, err)
	}
	require.ErrorIs(t, os.WriteFile("/proc/sys/kernel/hostname", []byte("x"), 0), unix.EROFS)
	require.ErrorIs(t, unix.Unshare(unix.CLONE_NEWNS), unix.EPERM)
	require.ErrorIs(t, unix.Mount("tmpfs", "/run/drover-agent/probe", "tmpfs", 0, ""), unix.EPERM)
	require.Error(t, unix.Sethostname([]byte("x")))
	_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	require.Error(t, err)

	// Scripts become other users, without sudo.
	out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "id", "-u").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "65534\n", string(out))
}
