// Package loop makes loop devices for tests that need real block devices, writes to
// them in all the ways there are, and says which blocks changed.
package loop

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
)

const (
	// Sector is the unit of what can be written around the page cache.
	Sector  = 512
	control = "/dev/loop-control"
	// attempts bounds how often a free device is asked for: others take them too.
	attempts = 50
	pause    = 20 * time.Millisecond
)

// Device is a loop device and the file behind it.
type Device struct {
	Path         string // of the device's node
	File         string // behind it
	Size         int64
	Major, Minor uint32

	t      testing.TB
	direct *os.File // the device, around the page cache
	node   *os.File
	back   *os.File // File
}

// New makes a device of that many bytes, all zeros, on a sparse file of the test's
// own. The test is skipped where there are no loop devices; see [Need].
func New(t testing.TB, size int64) *Device {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file) //nolint:gosec // a test's
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	return Attach(t, file)
}

// Attach makes a device of a file. It is detached when the test ends.
func Attach(t testing.TB, file string) *Device {
	t.Helper()
	Need(t)
	d := &Device{File: file, t: t}
	back, err := os.OpenFile(file, os.O_RDWR, 0) //nolint:gosec // a test's
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, back.Close()) })
	d.back, d.node = back, d.configure(back)
	t.Cleanup(func() {
		_, err := unix.IoctlRetInt(int(d.node.Fd()), unix.LOOP_CLR_FD)
		require.NoError(t, err, "detach %s", d.Path)
		require.NoError(t, d.node.Close())
	})
	d.direct, err = os.OpenFile(d.Path, os.O_RDWR|unix.O_DIRECT, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.direct.Close()) })
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(d.Path, &stat))
	d.Major, d.Minor = unix.Major(stat.Rdev), unix.Minor(stat.Rdev)
	d.Size, err = d.direct.Seek(0, 2)
	require.NoError(t, err)
	return d
}

// Need skips the test where loop devices cannot be made. In continuous integration
// it fails instead.
func Need(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		Missing(t, "block devices and mounts take root")
	}
	if _, err := os.Stat(control); err != nil {
		Missing(t, "no loop devices here: "+err.Error())
	}
}

// Missing skips the test, and says what it lacks. In continuous integration, where
// all is there, it fails.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// configure gives the file to a free device, and the open device.
func (d *Device) configure(back *os.File) *os.File {
	d.t.Helper()
	ctl, err := os.OpenFile(control, os.O_RDWR, 0)
	require.NoError(d.t, err)
	defer func() { require.NoError(d.t, ctl.Close()) }()
	for range attempts {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(d.t, err, "find a free loop device")
		d.Path = "/dev/loop" + strconv.Itoa(n)
		node, err := os.OpenFile(d.Path, os.O_RDWR, 0)
		require.NoError(d.t, err)
		err = unix.IoctlLoopConfigure(int(node.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd())}) //nolint:gosec // a descriptor
		if err == nil {
			return node
		}
		require.NoError(d.t, node.Close())
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			require.NoError(d.t, err, "configure %s", d.Path)
		}
		time.Sleep(pause)
	}
	require.FailNow(d.t, "no free loop device")
	return nil
}

// Write writes around the page cache; offset and length are multiples of [Sector].
// It may be called by several goroutines at once.
func (d *Device) Write(off int64, data []byte) error {
	p := disk.Buffer(len(data))
	copy(p, data)
	_, err := d.direct.WriteAt(p, off)
	return err
}

// Buffered writes through the page cache and syncs.
func (d *Device) Buffered(off int64, data []byte) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	return errors.Join(err, f.Sync(), f.Close())
}

// Discard discards a range (BLKDISCARD): it reads as zeros then.
func (d *Device) Discard(off, n int64) error { return d.ioctl(unix.BLKDISCARD, off, n) }

// Zero has the device write zeros (BLKZEROOUT).
func (d *Device) Zero(off, n int64) error { return d.ioctl(unix.BLKZEROOUT, off, n) }

// Punch makes a hole by fallocate.
func (d *Device) Punch(off, n int64) error {
	return unix.Fallocate(int(d.direct.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Grow makes the file and the device larger.
func (d *Device) Grow(size int64) {
	d.t.Helper()
	require.NoError(d.t, os.Truncate(d.File, size))
	_, err := unix.IoctlRetInt(int(d.node.Fd()), unix.LOOP_SET_CAPACITY)
	require.NoError(d.t, err, "grow %s", d.Path)
	d.Size = size
}

func (d *Device) ioctl(request uintptr, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}                                                           //nolint:gosec // not negative
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.direct.Fd(), request, uintptr(unsafe.Pointer(&r))) //nolint:gosec // what the ioctl takes
	if errno != 0 {
		return errno
	}
	return nil
}
