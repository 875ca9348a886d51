package cachestore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/vfs"
)

func TestWriteOnce(t *testing.T) {
	d, err := NewDirectory(t.TempDir())
	require.NoError(t, err)
	m := ident.NewMachineID("vc", "vm")
	name := Name{Machine: m, Seq: 12, Epoch: 3}
	content := bytes.Repeat([]byte("drover"), 300_000) // more than a buffer
	_, err = d.Open(t.Context(), name)
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, d.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))))
	require.NoError(t, d.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))), "the same content again")
	other := bytes.Clone(content)
	other[len(other)-1] ^= 1
	require.ErrorIs(t, d.Put(t.Context(), name, bytes.NewReader(other), int64(len(other))), ErrExists)
	require.ErrorIs(t, d.Put(t.Context(), name, bytes.NewReader(content[:9]), 9), ErrExists)
	require.NoError(t, d.Put(t.Context(), Name{Machine: m, Seq: 2, Epoch: 3}, bytes.NewReader(nil), 0))
	require.Error(t, d.Put(t.Context(), Name{Machine: m, Seq: 4, Epoch: 3}, bytes.NewReader(nil), 5), "shorter than said")

	o, err := d.Open(t.Context(), name)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	require.NoError(t, o.Close())
	list, err := d.List(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, []Name{{Machine: m, Seq: 2, Epoch: 3}, name}, list)
	require.NoError(t, d.Delete(t.Context(), name))
	require.NoError(t, d.Delete(t.Context(), name))
	list, err = d.List(t.Context(), ident.NewMachineID("vc", "other"))
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestFence(t *testing.T) {
	dir := t.TempDir()
	d, err := NewDirectory(dir)
	require.NoError(t, err)
	m := ident.NewMachineID("vc", "vm")
	require.NoError(t, d.Fence(t.Context(), m, 5))
	require.NoError(t, d.Fence(t.Context(), m, 5))
	require.ErrorIs(t, d.Fence(t.Context(), m, 4), ErrFenced)
	d, err = NewDirectory(dir) // another process
	require.NoError(t, err)
	require.ErrorIs(t, d.Put(t.Context(), Name{Machine: m, Seq: 1, Epoch: 4}, bytes.NewReader(nil), 0), ErrFenced)
	require.NoError(t, d.Put(t.Context(), Name{Machine: m, Seq: 1, Epoch: 5}, bytes.NewReader(nil), 0))
}

func TestConcurrentPuts(t *testing.T) {
	d, err := NewDirectory(t.TempDir())
	require.NoError(t, err)
	m := ident.NewMachineID("vc", "vm")
	var wg sync.WaitGroup
	ok := make(chan byte, 8)
	for i := range byte(8) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if d.Put(t.Context(), Name{Machine: m, Seq: 1, Epoch: 1}, bytes.NewReader(bytes.Repeat([]byte{i}, 5000)), 5000) == nil {
				ok <- i
			}
		}()
	}
	wg.Wait()
	close(ok)
	winner, found := <-ok
	require.True(t, found)
	_, second := <-ok
	require.False(t, second, "one content wins")
	o, err := d.Open(t.Context(), Name{Machine: m, Seq: 1, Epoch: 1})
	require.NoError(t, err)
	b := make([]byte, 5000)
	_, err = o.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte{winner}, 5000), b)
	require.NoError(t, o.Close())
}

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
