package statefile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCreateNeverReplaces(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	path := filepath.Join(dir, "f")
	require.NoError(t, Create(path, []byte("first")))
	require.ErrorIs(t, Create(path, []byte("second")), os.ErrExist)
	b, err := Read(path)
	require.NoError(t, err)
	require.Equal(t, "first", string(b))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(FileMode), st.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is left over")
}

func TestReadRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	_, err := Read(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, Create(path, bytes.Repeat([]byte{1}, MaxSize+1)))
	_, err = Read(path)
	require.ErrorContains(t, err, "it is not one of ours")
	require.NoError(t, os.Chmod(path, 0o640))
	_, err = Read(path)
	require.ErrorContains(t, err, "others may have read it")
}
