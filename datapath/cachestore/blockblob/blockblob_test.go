package blockblob

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/cachestore"
	"drover/datapath/cachestore/cachetest"
	"drover/datapath/ident"
	"drover/tests/azurite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(azurite.Main{M: m}, azurite.Idle()...) }

func open(t *testing.T, dir string, keep time.Duration) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Account: azurite.Shared(t).Account(t, dir), Keep: keep})
	require.NoError(t, err)
	return s
}

func TestConformance(t *testing.T) {
	cachetest.Run(t, func(t *testing.T, dir string) cachestore.Store { return open(t, dir, 0) })
}

// TestLargeSets are of more than one block, and read in pieces of any size.
func TestLargeSets(t *testing.T) {
	s := open(t, t.TempDir(), 0)
	name := cachestore.Name{Machine: ident.NewMachineID("vc", "vm"), Seq: 1, Epoch: 1}
	content := bytes.Repeat([]byte("0123456789abcdef!"), (2*blockBytes+4321)/17)
	for range 2 {
		require.NoError(t, s.Put(t.Context(), name, bytes.NewReader(content), int64(len(content))))
	}
	other := bytes.Clone(content)
	other[len(other)-1] ^= 1
	require.ErrorIs(t, s.Put(t.Context(), name, bytes.NewReader(other), int64(len(other))), cachestore.ErrExists)
	o, err := s.Open(t.Context(), name)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got))
	part := make([]byte, 100)
	for _, off := range []int64{0, blockBytes - 50, 7, int64(len(content)) - 100} {
		_, err := o.ReadAt(part, off)
		require.NoError(t, err)
		require.Equal(t, content[off:off+100], part)
	}
	n, err := o.ReadAt(part, int64(len(content))-10)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 10, n)
	require.NoError(t, o.Close())
}

// TestKeepTime: what was deleted is not listed, stays for its time, and then goes.
func TestKeepTime(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, time.Hour)
	now := time.Now()
	s.now = func() time.Time { return now }
	name := func(seq ident.Seq) cachestore.Name {
		return cachestore.Name{Machine: ident.NewMachineID("vc", "vm"), Seq: seq, Epoch: 1}
	}
	for seq := range ident.Seq(3) {
		require.NoError(t, s.Put(t.Context(), name(seq), bytes.NewReader([]byte("x")), 1))
	}
	require.NoError(t, s.Delete(t.Context(), name(0)))
	require.NoError(t, s.Delete(t.Context(), name(77)), "there is none")
	list, err := s.List(t.Context(), name(0).Machine)
	require.NoError(t, err)
	require.Equal(t, []cachestore.Name{name(1), name(2)}, list)
	o, err := s.Open(t.Context(), name(0))
	require.NoError(t, err, "it is still there")
	require.NoError(t, o.Close())
	require.NoError(t, s.Put(t.Context(), name(0), bytes.NewReader([]byte("x")), 1), "put again by a server that was killed before it knew")

	now = now.Add(time.Hour + time.Second)
	require.NoError(t, s.Delete(t.Context(), name(1)))
	_, err = s.Open(t.Context(), name(0))
	require.ErrorIs(t, err, cachestore.ErrNotFound)
	o, err = s.Open(t.Context(), name(1))
	require.NoError(t, err)
	require.NoError(t, o.Close())
}
