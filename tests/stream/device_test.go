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
	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
	"drover/tests/lab"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// mounted makes the first disk a block device with a mounted ext4, that has a file.
func mounted(t *testing.T, r *rig.Rig) (mount string) {
	t.Helper()
	r.Device = loop.Attach(t, r.Path("a")).Path
	content, mount := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(content, "before"), []byte("before"), 0o600))
	require.NoError(t, lab.Format(t.Context(), r.Device, "test", content))
	run(t, "mount", r.Device, mount)
	t.Cleanup(func() { run(t, "umount", mount) })
	t.Cleanup(r.StopAgent) // before the file system is unmounted
	return mount
}

// TestBlockDeviceWithAMountedFileSystem protects a real block device under a mounted
// ext4 that is being written to, frozen for each cut by the agent, or by a program.
func TestBlockDeviceWithAMountedFileSystem(t *testing.T) {
	for name, freezes := range map[string]func(r *rig.Rig, mount string) ident.Consistency{
		"frozen by the agent": func(r *rig.Rig, _ string) ident.Consistency {
			r.Hooks.Freezer = &freeze.Freezer{Limit: 20 * time.Second}
			return ident.FileSystemConsistent
		},
		"frozen by a program": func(r *rig.Rig, mount string) ident.Consistency {
			pre, _ := hook(r, "freeze", "exec "+guest.Tool("fsfreeze")+" --freeze "+mount)
			post, _ := hook(r, "thaw", guest.Tool("fsfreeze")+" --unfreeze "+mount+" || true")
			r.Hooks.Pre, r.Hooks.Post, r.Hooks.Timeout = []string{pre}, []string{post}, 10*time.Second
			return ident.ApplicationConsistent
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, 64<<20)
			mount := mounted(t, r)
			want := freezes(r, mount)
			r.Hooks.Marker = filepath.Join(r.Dir, "frozen")
			r.StartServer()
			r.Grant(1, 100*time.Millisecond)
			r.StartAgent(1)
			r.Await("complete", complete)
			for i := range 20 {
				name := filepath.Join(mount, "file"+string(rune('a'+i)))
				require.NoError(t, os.WriteFile(name, []byte(strings.Repeat(name, 1000)), 0o600))
			}
			require.NoError(t, os.WriteFile(filepath.Join(mount, "last"), []byte("written just before the end"), 0o600))

			ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
			defer cancel()
			p, err := r.Server.Cut(ctx, r.Machine, 1, true)
			require.NoError(t, err)
			require.Equal(t, want, p.Consistency, p.Note)
			require.Positive(t, p.Freeze)
			require.FileExists(t, r.Hooks.Marker)
			written := make(chan error, 1)
			go func() { written <- os.WriteFile(filepath.Join(mount, "after"), []byte("after"), 0o600) }()
			require.Equal(t, deviceDigest(t, r.Device), r.DigestAt(p), "replica and frozen device")
			require.Empty(t, written, "it stays frozen")
			require.NoError(t, r.Server.Release(t.Context(), r.Machine, 1))
			require.NoError(t, <-written)
			r.AfterNow()

			image := filepath.Join(r.Dir, "recovered")
			export(r, p.ID, image)
			_, err = lab.CheckFS(t.Context(), image)
			require.NoError(t, err)
			require.Contains(t, run(t, "debugfs", "-R", "cat /last", image), "written just before the end")
			require.Contains(t, run(t, "debugfs", "-R", "cat /before", image), "before")
		})
	}
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
func export(r *rig.Rig, point ident.Seq, file string) {
	r.T.Helper()
	d, err := r.Reader().OpenDisk(r.T.Context(), point, r.Disks[0].ID)
	require.NoError(r.T, err)
	defer func() { require.NoError(r.T, d.Close()) }()
	f, err := os.Create(file)
	require.NoError(r.T, err)
	_, err = io.Copy(f, io.NewSectionReader(d, 0, d.Size()))
	require.NoError(r.T, err)
	require.NoError(r.T, f.Close())
}
