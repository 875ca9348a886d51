package quiesce

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
	"drover/tests/lab/guest"
	"drover/tests/loop"
)

// TestMain is also the guard process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == freeze.Verb {
		if freeze.Guard() != nil {
			os.Exit(1)
		}
		syscall.Exit(0) // the race detector waits a second at os.Exit
	}
	goleak.VerifyTestMain(m)
}

func makePipe(path string) error { return syscall.Mkfifo(path, 0o755) }

func chown(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("to give a file away takes root")
	}
	require.NoError(t, os.Chown(path, 1, 1))
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out[:max(len(out)-1, 0)])
}

// mounted makes an ext4 on a loop device.
func mounted(t *testing.T) (device, point string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 32<<20))
	tool(t, "mke2fs", "-q", "-t", "ext4", image)
	device = loop.Attach(t, image).Path
	point = t.TempDir()
	tool(t, "mount", device, point)
	t.Cleanup(func() { tool(t, "umount", point) })
	return device, point
}

// frozen reports whether a file system is.
func frozen(t *testing.T, point string) bool {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(point, "probe"), []byte("x"), 0o600) }()
	select {
	case err := <-done:
		require.NoError(t, err)
		return false
	case <-time.After(200 * time.Millisecond):
		t.Cleanup(func() { require.NoError(t, <-done) })
		return true
	}
}

// TestNativeFreeze: file systems are frozen between the programs' two calls, and the
// marker and the log are written when they are not.
func TestNativeFreeze(t *testing.T) {
	device, point := mounted(t)
	log, err := os.Create(filepath.Join(point, "log"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	s, calls := scripts(t, "1", "touch "+point+"/$1")
	h := &Hooks{Freezer: &freeze.Freezer{Limit: 20 * time.Second}, Marker: filepath.Join(point, "marker"), Log: NewGate(log), Scripts: s}
	c := Cut{Seq: 4, Disks: []string{device}}
	x := held(t, h, c)
	require.True(t, frozen(t, point))
	_, err = h.Log.Write([]byte("does not stand still\n"))
	require.NoError(t, err)
	o, err := x.Thaw(t.Context())
	require.NoError(t, err)
	require.Positive(t, o.Freeze)
	require.Equal(t, Outcome{Consistency: ident.FileSystemConsistent, Freeze: o.Freeze}, o)
	require.False(t, frozen(t, point))
	require.NoFileExists(t, calls)
	b, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.Equal(t, "does not stand still\n", string(b))

	c.Scripts = true
	o, err = held(t, h, c).Thaw(t.Context())
	require.NoError(t, err)
	require.Equal(t, ident.ApplicationConsistent, o.Consistency)
	require.FileExists(t, filepath.Join(point, "freeze"))
	require.FileExists(t, filepath.Join(point, "thaw"))
	require.NoFileExists(t, h.Marker)
}

// TestNativeFreezeAndAFailedScript: the point is worth less, and made.
func TestNativeFreezeAndAFailedScript(t *testing.T) {
	device, point := mounted(t)
	s, _ := scripts(t, "1", "[ $1 = thaw ] || { echo no database; exit 1; }")
	h := &Hooks{Freezer: &freeze.Freezer{Limit: 20 * time.Second}, Scripts: s}
	x := held(t, h, Cut{Seq: 4, Disks: []string{device}, Scripts: true})
	require.True(t, frozen(t, point))
	o, err := x.Thaw(t.Context())
	require.NoError(t, err)
	require.Equal(t, ident.FileSystemConsistent, o.Consistency)
	require.Contains(t, o.Note, "no database")
}

// TestFrozenByAnother: nothing is made of it, and nothing of it is ended.
func TestFrozenByAnother(t *testing.T) {
	device, point := mounted(t)
	s, calls := scripts(t, "1", "")
	h := &Hooks{Freezer: &freeze.Freezer{}, Scripts: s, Marker: filepath.Join(t.TempDir(), "frozen")}
	tool(t, "fsfreeze", "--freeze", point)
	x, err := h.Begin(t.Context(), Cut{Scripts: true, Disks: []string{device}})
	require.NoError(t, err)
	err = x.Freeze(t.Context(), 1)
	tool(t, "fsfreeze", "--unfreeze", point)
	require.ErrorIs(t, err, freeze.ErrBusy)
	require.Equal(t, []string{"freeze freeze 1", "thaw thaw 1"}, lines(t, calls))
	require.NoFileExists(t, h.Marker)
}

// TestFrozenForTooLong: no point comes of it.
func TestFrozenForTooLong(t *testing.T) {
	const limit = time.Second
	device, _ := mounted(t)
	h := &Hooks{Freezer: &freeze.Freezer{Limit: limit}}
	x := held(t, h, Cut{Disks: []string{device}})
	time.Sleep(limit + limit/2)
	o, err := x.Thaw(t.Context())
	require.NoError(t, err)
	require.Equal(t, ident.NoConsistency, o.Consistency)
	require.Contains(t, o.Note, "frozen for longer than the limit of 1s")
}

// TestRecoverThaws: agent and guard are gone, and the marker is there.
func TestRecoverThaws(t *testing.T) {
	device, point := mounted(t)
	h := &Hooks{Freezer: &freeze.Freezer{}, Marker: filepath.Join(t.TempDir(), "frozen")}
	set, err := freeze.Find([]string{device})
	require.NoError(t, err)
	require.NoError(t, h.mark(marker{Seq: 3, FileSystems: set.Left()}))
	tool(t, "fsfreeze", "--freeze", point)
	was, err := h.Recover(t.Context(), ident.MachineID{})
	require.NoError(t, err)
	require.True(t, was)
	require.False(t, frozen(t, point))
	require.NoFileExists(t, h.Marker)

	text := `{"boot":"of an earlier one","fileSystems":[{"device":"7:0","points":["` + point + `"]}]}`
	require.NoError(t, os.WriteFile(h.Marker, []byte(text), 0o600))
	tool(t, "fsfreeze", "--freeze", point)
	was, err = h.Recover(t.Context(), ident.MachineID{})
	tool(t, "fsfreeze", "--unfreeze", point) // fails if it is not frozen: somebody else's freeze is left alone
	require.NoError(t, err)
	require.True(t, was)
}
