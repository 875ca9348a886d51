package cachestore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/vfs"
)

// A file of the same file system gets a second name; anything else is copied.
func TestPutLinksWhereItCan(t *testing.T) {
	dir := t.TempDir()
	d, err := NewDirectory(filepath.Join(dir, "cache"))
	require.NoError(t, err)
	path := filepath.Join(dir, "spooled")
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	f, err := vfs.OS.OpenFile(path, os.O_RDONLY, 0)
	require.NoError(t, err)
	name := Name{Machine: ident.NewMachineID("vc", "link"), Seq: 1, Epoch: 1}
	require.NoError(t, d.Put(t.Context(), name, f, 7))
	require.NoError(t, d.Put(t.Context(), name, f, 7), "again")
	spooled, err := vfs.OS.Stat(path)
	require.NoError(t, err)
	cached, err := vfs.OS.Stat(d.path(name))
	require.NoError(t, err)
	require.Equal(t, spooled.ID, cached.ID)

	require.NoError(t, os.Remove(path))
	o, err := d.Open(t.Context(), name)
	require.NoError(t, err)
	b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	require.NoError(t, errors.Join(err, o.Close(), f.Close()))
	require.Equal(t, "content", string(b), "it stays when the spool has removed its name")

	name.Seq = 2
	require.NoError(t, d.Put(t.Context(), name, bytes.NewReader(b), 7))
	require.ErrorIs(t, d.Put(t.Context(), name, bytes.NewReader([]byte("another")), 7), ErrExists)
}
