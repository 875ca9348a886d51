package freespace

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/mountinfo"
	"drover/datapath/checksum"
	"drover/tests/lab/guest"
	"drover/tests/loop"
)

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(guest.Tool(name), args...)
	cmd.Env = append(os.Environ(), "TEST_DIR=t", "TEST_DEV=t", "QA_CHECK_FS=t") // a small xfs
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

func noise(t *testing.T, path string, size int) {
	t.Helper()
	b := make([]byte, size)
	_, err := rand.Read(b)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// churn fills a file system with files of all sizes and deletes many.
func churn(t *testing.T, point string) (deleted int64) {
	t.Helper()
	for i := range 300 {
		noise(t, fmt.Sprintf("%s/small-%d", point, i), i*37)
	}
	for i := range 20 {
		noise(t, fmt.Sprintf("%s/large-%d", point, i), 1<<20+i*5000)
	}
	unix.Sync()
	for i := range 300 {
		if i%3 > 0 {
			require.NoError(t, os.Remove(fmt.Sprintf("%s/small-%d", point, i)))
		}
	}
	for i := range 20 {
		if i%4 > 0 {
			require.NoError(t, os.Remove(fmt.Sprintf("%s/large-%d", point, i)))
			deleted += 1 << 20
		}
	}
	return deleted
}

// partitioned gives a device one partition from a sector on, and its node.
func partitioned(t *testing.T, d *loop.Device, start uint32) string {
	t.Helper()
	node, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	info, err := unix.IoctlLoopGetStatus64(int(node.Fd()))
	require.NoError(t, err)
	info.Flags |= unix.LO_FLAGS_PARTSCAN
	require.NoError(t, unix.IoctlLoopSetStatus64(int(node.Fd()), info))
	require.NoError(t, node.Close())
	tool(t, "addpart", d.Path, "1", fmt.Sprint(start), fmt.Sprint(d.Size/loop.Sector-int64(start)))
	part := d.Path + "p1"
	if _, err := os.Stat(part); err != nil { // nobody makes nodes here
		text, err := os.ReadFile("/sys/class/block/" + filepath.Base(part) + "/dev")
		require.NoError(t, err)
		n, err := mountinfo.ParseNumber(strings.TrimSpace(string(text)))
		require.NoError(t, err)
		part = filepath.Join(t.TempDir(), "p1")
		require.NoError(t, unix.Mknod(part, unix.S_IFBLK|0o600, int(unix.Mkdev(n.Major, n.Minor))))
	}
	return part
}

// TestMapsOfRealFileSystems: a disk of which all that is free reads as zeros is, for its
// file system and all files, what it was.
func TestMapsOfRealFileSystems(t *testing.T) {
	loop.Need(t)
	for _, c := range []struct {
		name    string
		mkfs    []string
		start   uint32 // of the partition, in sectors; 0: none
		check   []string
		options string // of mounting a copy beside it
	}{
		{"ext4", []string{"mke2fs", "-q", "-F", "-t", "ext4"}, 0, []string{"e2fsck", "-fn"}, "loop"},
		{"ext4 with small blocks in a partition that begins anywhere", []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024"}, 63, []string{"e2fsck", "-fn"}, "loop"},
		{"xfs", []string{"mkfs.xfs", "-q", "-f"}, 0, []string{"xfs_repair", "-n"}, "loop,nouuid"},
		{"xfs in a partition", []string{"mkfs.xfs", "-q", "-f", "-b", "size=1024"}, 2048, []string{"xfs_repair", "-n"}, "loop,nouuid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := loop.New(t, 64<<20)
			device := d.Path
			if c.start > 0 {
				device = partitioned(t, d, c.start)
			}
			tool(t, c.mkfs[0], append(c.mkfs[1:], device)...)
			point := t.TempDir()
			tool(t, "mount", device, point)
			t.Cleanup(func() { loop.Unmount(t, point) })
			deleted := churn(t, point)
			want := loop.Digests(t, point)
			require.Len(t, want, 100+5)

			open, err := disk.Open(d.Path)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, open.Close()) })
			tool(t, "fsfreeze", "--freeze", point)
			m, notes, err := new(Taker).Take([]*disk.Disk{open})
			copied := copyOf(t, open, m, int64(c.start)*loop.Sector)
			tool(t, "fsfreeze", "--unfreeze", point)
			require.NoError(t, err)
			require.Empty(t, notes)
			require.GreaterOrEqual(t, m.Bytes(), deleted*3/4)
			require.Less(t, m.Bytes(), d.Size)

			again := t.TempDir()
			tool(t, "mount", "-o", c.options, copied, again) // plays the journal back, too
			got := loop.Digests(t, again)
			loop.Unmount(t, again)
			require.Equal(t, want, got)
			tool(t, c.check[0], append(c.check[1:], copied)...)
		})
	}
}

// copyOf copies a disk from a place on, by the map, block after block through both ways of
// a Disk to be read.
func copyOf(t *testing.T, open *disk.Disk, m Map, from int64) string {
	t.Helper()
	var view View
	view.Use(m)
	d := NewDisk(open, 0, &view)
	all := make([]byte, open.Size())
	buf := disk.Buffer(1 << 20)
	for off := int64(0); off < open.Size(); {
		start, end, err := d.NextData(off)
		require.NoError(t, err)
		require.Zero(t, start%checksum.BlockSize)
		for off = start; off < end; off += checksum.BlockSize {
			b := buf[:min(checksum.BlockSize, open.Size()-off)]
			n, err := d.ReadAt(b, off)
			if free := d.Free(off/checksum.BlockSize, off/checksum.BlockSize+1); free > 0 || n < len(b) {
				require.FailNow(t, "a block is not as it should be", "%d free, %d read at %d: %v", free, n, off, err)
			}
			copy(all[off:], b)
		}
	}
	for off := int64(0); off < open.Size(); off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), open.Size()-off)]
		_, err := d.ReadAt(b, off)
		require.NoError(t, err)
		require.True(t, bytes.Equal(all[off:off+int64(len(b))], b), "at %d", off)
	}
	require.Equal(t, m.Bytes(), d.Free(0, checksum.Blocks(open.Size())))
	path := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.WriteFile(path, all[from:], 0o600))
	return path
}

// TestLeftAlone: what is not understood is all in use, and said.
func TestLeftAlone(t *testing.T) {
	loop.Need(t)
	d := loop.New(t, 64<<20)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", d.Path)
	open, err := disk.Open(d.Path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, open.Close()) })
	take := func() (Map, []string) {
		m, notes, err := new(Taker).Take([]*disk.Disk{open})
		require.NoError(t, err)
		return m, notes
	}
	m, notes := take()
	require.Equal(t, Map{nil}, m, "not mounted")
	require.Empty(t, notes)
	point := t.TempDir()
	tool(t, "mount", "-o", "ro", d.Path, point)
	t.Cleanup(func() { loop.Unmount(t, point) })
	m, notes = take()
	require.Equal(t, Map{nil}, m)
	require.Equal(t, []string{point + " is mounted read-only"}, notes)

	list := filepath.Join(t.TempDir(), "mountinfo")
	line := fmt.Sprintf("1 1 %d:%d / %s rw - btrfs %s rw\n", d.Major, d.Minor, point, d.Path)
	require.NoError(t, os.WriteFile(list, []byte(line), 0o600))
	m, notes, err = (&Taker{Mounts: list}).Take([]*disk.Disk{open})
	require.NoError(t, err)
	require.Equal(t, Map{nil}, m)
	require.Equal(t, []string{point + " is btrfs"}, notes)
	// A mount that says it is on this disk, and is not.
	line = fmt.Sprintf("1 1 %d:%d / %s rw - ext4 %s rw\n", d.Major, d.Minor, t.TempDir(), d.Path)
	require.NoError(t, os.WriteFile(list, []byte(line), 0o600))
	_, _, err = (&Taker{Mounts: list}).Take([]*disk.Disk{open})
	require.ErrorContains(t, err, "another file system is mounted over it")
}

// TestNoMap: the disk is as it is.
func TestNoMap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	noise(t, path, 10*checksum.BlockSize)
	open, err := disk.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, open.Close()) })
	for _, m := range []Map{nil, {nil}} {
		var view View
		view.Use(m)
		d := NewDisk(open, 0, &view)
		start, end, err := d.NextData(0)
		require.NoError(t, err)
		require.EqualValues(t, []int64{0, open.Size()}, []int64{start, end})
		require.Zero(t, d.Free(0, 10))
		got, want := disk.Buffer(int(open.Size())), disk.Buffer(int(open.Size()))
		_, err = d.ReadAt(got, 0)
		require.NoError(t, err)
		_, err = open.ReadAt(want, 0)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Zero(t, new(View).Map().Bytes())
}
