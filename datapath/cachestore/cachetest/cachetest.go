// Package cachetest checks that a cache storage holds what the contract of package
// cachestore says.
package cachetest

import (
	"bytes"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/cachestore"
	"drover/datapath/ident"
)

type opener = func(t *testing.T, dir string) cachestore.Store

// Run checks a store. open opens the store of the directory; it may be called several
// times for one, and each is then used as another process's.
func Run(t *testing.T, open func(t *testing.T, dir string) cachestore.Store) {
	t.Run("what is written stays", func(t *testing.T) { writeOnce(t, open) })
	t.Run("an old epoch is refused", func(t *testing.T) { fence(t, open) })
	t.Run("of several contents one wins", func(t *testing.T) { concurrentPuts(t, open) })
}

func writeOnce(t *testing.T, open opener) {
	d := open(t, t.TempDir())
	m := ident.NewMachineID("vc", "vm")
	name := cachestore.Name{Machine: m, Seq: 12, Epoch: 3}
	content := bytes.Repeat([]byte("drover"), 300_000) // more than a buffer
	_, err := d.Open(t.Context(), name)
	require.ErrorIs(t, err, cachestore.ErrNotFound)
	require.NoError(t, d.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))))
	require.NoError(t, d.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))), "the same content again")
	other := bytes.Clone(content)
	other[len(other)-1] ^= 1
	require.ErrorIs(t, d.Put(t.Context(), name, bytes.NewReader(other), int64(len(other))), cachestore.ErrExists)
	require.ErrorIs(t, d.Put(t.Context(), name, bytes.NewReader(content[:9]), 9), cachestore.ErrExists)
	require.NoError(t, d.Put(t.Context(), cachestore.Name{Machine: m, Seq: 2, Epoch: 3}, bytes.NewReader(nil), 0))
	require.Error(t, d.Put(t.Context(), cachestore.Name{Machine: m, Seq: 4, Epoch: 3}, bytes.NewReader(nil), 5), "shorter than said")

	o, err := d.Open(t.Context(), name)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	require.NoError(t, o.Close())
	list, err := d.List(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, []cachestore.Name{{Machine: m, Seq: 2, Epoch: 3}, name}, list)
	require.NoError(t, d.Delete(t.Context(), name))
	require.NoError(t, d.Delete(t.Context(), name))
	list, err = d.List(t.Context(), ident.NewMachineID("vc", "other"))
	require.NoError(t, err)
	require.Empty(t, list)
}

func fence(t *testing.T, open opener) {
	dir := t.TempDir()
	d := open(t, dir)
	m := ident.NewMachineID("vc", "vm")
	require.NoError(t, d.Fence(t.Context(), m, 5))
	require.NoError(t, d.Fence(t.Context(), m, 5))
	require.ErrorIs(t, d.Fence(t.Context(), m, 4), cachestore.ErrFenced)
	d = open(t, dir) // another process
	require.ErrorIs(t, d.Put(t.Context(), cachestore.Name{Machine: m, Seq: 1, Epoch: 4}, bytes.NewReader(nil), 0), cachestore.ErrFenced)
	require.NoError(t, d.Put(t.Context(), cachestore.Name{Machine: m, Seq: 1, Epoch: 5}, bytes.NewReader(nil), 0))
}

func concurrentPuts(t *testing.T, open opener) {
	d := open(t, t.TempDir())
	m := ident.NewMachineID("vc", "vm")
	var wg sync.WaitGroup
	ok := make(chan byte, 8)
	for i := range byte(8) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if d.Put(t.Context(), cachestore.Name{Machine: m, Seq: 1, Epoch: 1}, bytes.NewReader(bytes.Repeat([]byte{i}, 5000)), 5000) == nil {
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
	o, err := d.Open(t.Context(), cachestore.Name{Machine: m, Seq: 1, Epoch: 1})
	require.NoError(t, err)
	b := make([]byte, 5000)
	_, err = o.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte{winner}, 5000), b)
	require.NoError(t, o.Close())
}
