package durable

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/vfs"
	"drover/datapath/vfs/crashfs"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first", "", "third"} {
		require.NoError(t, WriteFile(path, []byte(content), 0o600))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, content, string(b))
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestWriteFileThatCannotLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	require.NoError(t, os.MkdirAll(filepath.Join(path, "inside"), 0o700))
	require.Error(t, WriteFile(path, []byte("x"), 0o600), "a directory is not replaced")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Error(t, WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600))
	require.Error(t, SyncDir(filepath.Join(dir, "none")))
}

func TestIdentityIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store.json")
	var got [8]string
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = Identity(vfs.OS, path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range got {
		require.Equal(t, got[0], id)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	for _, bad := range []string{"", "{}", `{"id":"x"}`, string(make([]byte, maxIdentity+1))} {
		require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
		_, err = Identity(vfs.OS, path)
		require.ErrorContains(t, err, "store.json")
	}
}

// Whatever was told of an identity is what the next start finds.
func TestIdentityAndPowerCut(t *testing.T) {
	const seeds, maxCalls = 20, 50
	for calls := 0; ; calls++ {
		require.Less(t, calls, maxCalls)
		f := crashfs.New()
		f.CutAfter(calls)
		id, err := Identity(f, "/id.json")
		for seed := range uint64(seeds) {
			after := f.Crash(seed)
			again, againErr := Identity(after, "/id.json")
			require.NoError(t, againErr)
			if err == nil {
				require.Equal(t, id, again)
			}
		}
		if err == nil {
			return
		}
	}
}

func TestMkdirAllIsDurable(t *testing.T) {
	f := crashfs.New()
	require.NoError(t, MkdirAll(f, "/a/b/c", 0o700))
	_, err := f.Crash(crashfs.AllLost).Stat("/a/b/c")
	require.NoError(t, err)
	f.Inject(crashfs.Rule{Op: crashfs.SyncDir, Name: "b", Err: syscall.EACCES, Times: 1})
	require.NoError(t, MkdirAll(f, "/a/b/c", 0o700), "a directory that may not be read is not ours")
	f.Inject(crashfs.Rule{Op: crashfs.SyncDir, Err: syscall.EIO})
	require.ErrorIs(t, MkdirAll(f, "/a/b/c", 0o700), syscall.EIO)
}
