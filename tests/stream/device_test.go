package stream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
	"drover/datapath/ident"
	"drover/tests/lab"
	"drover/tests/lab/guest"
)

// loopDevice makes a block device of an image file, or skips: it takes root and a
// kernel with loop devices.
func loopDevice(t *testing.T, image string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("block devices and mounts take root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices here: ", err)
	}
	device := run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// TestBlockDeviceWithAMountedFileSystem protects a real block device under a mounted
// ext4 that is being written to, frozen for each cut by fsfreeze.
func TestBlockDeviceWithAMountedFileSystem(t *testing.T) {
	r := newRig(t, 64<<20)
	r.device = loopDevice(t, r.path("a"))
	content, mount := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(content, "before"), []byte("before"), 0o600))
	require.NoError(t, lab.Format(t.Context(), r.device, "test", content))
	run(t, "mount", r.device, mount)
	t.Cleanup(func() { run(t, "umount", mount) })
	freeze, _ := r.hook("freeze", "exec "+guest.Tool("fsfreeze")+" --freeze "+mount)
	thaw, _ := r.hook("thaw", guest.Tool("fsfreeze")+" --unfreeze "+mount+" || true")
	r.hooks.Pre, r.hooks.Post, r.hooks.Timeout = []string{freeze}, []string{thaw}, 10*time.Second
	r.startServer()
	r.grant(1, 100*time.Millisecond)
	r.startAgent(1)
	t.Cleanup(func() { // before the file system is unmounted
		if r.stopAgent != nil {
			r.stopAgent()
		}
	})
	r.await("complete", complete)
	for i := range 20 {
		name := filepath.Join(mount, "file"+string(rune('a'+i)))
		require.NoError(t, os.WriteFile(name, []byte(strings.Repeat(name, 1000)), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(mount, "last"), []byte("written just before the end"), 0o600))

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p, err := r.server.Cut(ctx, r.machine, 1, true)
	require.NoError(t, err)
	require.Equal(t, ident.ApplicationConsistent, p.Consistency)
	require.Equal(t, deviceDigest(t, r.device), r.digestAt(p), "replica and frozen device")
	require.NoError(t, r.server.Release(t.Context(), r.machine, 1))
	r.afterNow()

	image := filepath.Join(r.dir, "recovered")
	r.export(p.ID, image)
	_, err = lab.CheckFS(t.Context(), image)
	require.NoError(t, err)
	require.Contains(t, run(t, "debugfs", "-R", "cat /last", image), "written just before the end")
	require.Contains(t, run(t, "debugfs", "-R", "cat /before", image), "before")
}

// deviceDigest reads the device itself, around the page cache.
func deviceDigest(t *testing.T, device string) string {
	t.Helper()
	d, err := disk.Open(device)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	h, buf := sha256.New(), disk.Buffer(1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(buf)) {
		part := buf[:min(int64(len(buf)), d.Size()-off)]
		_, err := d.ReadAt(part, off)
		require.NoError(t, err)
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// export writes the first disk, as of a point, to a file.
func (r *rig) export(point ident.Seq, file string) {
	r.t.Helper()
	d, err := r.reader().OpenDisk(r.t.Context(), point, r.disks[0].ID)
	require.NoError(r.t, err)
	defer func() { require.NoError(r.t, d.Close()) }()
	f, err := os.Create(file)
	require.NoError(r.t, err)
	_, err = io.Copy(f, io.NewSectionReader(d, 0, d.Size()))
	require.NoError(r.t, err)
	require.NoError(r.t, f.Close())
}
