package vfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHolesAndSizes(t *testing.T) {
	const part = 1 << 20
	path := filepath.Join(t.TempDir(), "f")
	f, err := OS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	require.NoError(t, f.Truncate(4*part))
	_, _, err = f.NextData(0)
	require.ErrorIs(t, err, io.EOF)
	b := make([]byte, 2*part)
	for i := range b {
		b[i] = 1
	}
	_, err = f.WriteAt(b, part)
	require.NoError(t, err)
	if err := f.PunchHole(part, part); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this file system punches no holes")
	} else {
		require.NoError(t, err)
	}
	from, to, err := f.NextData(0)
	require.NoError(t, err)
	require.Equal(t, []int64{2 * part, 3 * part}, []int64{from, to})
	info, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, int64(4*part), info.Size)
	require.Equal(t, int64(part), info.Allocated)
	named, err := OS.Stat(path)
	require.NoError(t, err)
	require.Equal(t, info, named)
}

func TestErrorsAreThoseOfPackageOS(t *testing.T) {
	dir := t.TempDir()
	_, err := OS.OpenFile(filepath.Join(dir, "none"), os.O_RDONLY, 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OS.Stat(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = ReadFile(OS, filepath.Join(dir, "none"), 1)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, OS.SyncDir(filepath.Join(dir, "none")), fs.ErrNotExist)
	f, err := CreateTemp(OS, dir, ".a", ".tmp")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	names, err := OS.ReadDir(dir)
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Base(f.Name())}, names)
	_, err = OS.OpenFile(f.Name(), os.O_CREATE|os.O_EXCL, 0)
	require.ErrorIs(t, err, fs.ErrExist)
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() File {
		f, err := OS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(t, err)
		return f
	}
	a, b := open(), open()
	require.NoError(t, Lock(t.Context(), a))
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, Lock(short, b), context.DeadlineExceeded)
	require.NoError(t, a.Close())
	require.NoError(t, Lock(t.Context(), b))
	require.NoError(t, b.Close())
	require.Error(t, Lock(t.Context(), b))
}

func TestReadFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("four"), 0o600))
	b, err := ReadFile(OS, path, 4)
	require.NoError(t, err)
	require.Equal(t, "four", string(b))
	_, err = ReadFile(OS, path, 3)
	require.ErrorIs(t, err, ErrTooLarge)
}
