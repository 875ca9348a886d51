package spool

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

var machine = ident.NewMachineID("vc", "vm")

func put(t *testing.T, s *Spool, seq ident.Seq, content []byte) Entry {
	t.Helper()
	f, err := s.Create(machine, 1, seq)
	require.NoError(t, err)
	_, err = f.Write(content)
	require.NoError(t, err)
	e, err := f.Commit()
	require.NoError(t, err)
	return e
}

func TestCommitSurvivesAndRestIsGone(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, 1<<20)
	require.NoError(t, err)
	for _, seq := range []ident.Seq{10, 2, 3} {
		put(t, s, seq, bytes.Repeat([]byte{byte(seq)}, 100))
	}
	f, err := s.Create(machine, 1, 11)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 5000))
	require.NoError(t, err)
	used, limit := s.Usage()
	require.Equal(t, int64(5300), used)
	require.Equal(t, int64(1<<20), limit)

	// As after a crash: the file was never committed.
	s, err = Open(dir, 1<<20)
	require.NoError(t, err)
	used, _ = s.Usage()
	require.Equal(t, int64(300), used)
	list, err := s.List(machine)
	require.NoError(t, err)
	require.Len(t, list, 3)
	for i, seq := range []ident.Seq{2, 3, 10} {
		require.Equal(t, Entry{Machine: machine, Epoch: 1, Seq: seq, Size: 100}, list[i])
		o, err := s.Open(list[i])
		require.NoError(t, err)
		b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{byte(seq)}, 100), b)
		require.NoError(t, o.Close())
		require.NoError(t, s.Remove(list[i]))
		require.NoError(t, s.Remove(list[i]))
	}
	used, _ = s.Usage()
	require.Zero(t, used)
	_, err = s.Open(list[0])
	require.ErrorIs(t, err, ErrNotFound)
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestLimit(t *testing.T) {
	s, err := Open(t.TempDir(), 100<<10)
	require.NoError(t, err)
	f, err := s.Create(machine, 1, 1)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 90<<10))
	require.NoError(t, err)
	n, err := f.Write(make([]byte, 11<<10))
	require.ErrorIs(t, err, ErrFull)
	require.Zero(t, n)
	_, err = s.Create(machine, 1, 2)
	require.ErrorIs(t, err, ErrFull)
	require.NoError(t, f.Abort())
	require.NoError(t, f.Abort())
	used, _ := s.Usage()
	require.Zero(t, used)
	e := put(t, s, 1, make([]byte, 10<<10))
	require.NoError(t, s.Remove(e))
	_, err = Open(t.TempDir(), 1)
	require.Error(t, err)
}

func TestReplace(t *testing.T) {
	s, err := Open(t.TempDir(), 1<<20)
	require.NoError(t, err)
	put(t, s, 5, make([]byte, 1000))
	e := put(t, s, 5, make([]byte, 10))
	require.Equal(t, int64(10), e.Size)
	used, _ := s.Usage()
	require.Equal(t, int64(10), used)
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, machine.String()), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, machine.String(), "1-1.cs"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "note"), nil, 0o600))
	s, err := Open(dir, 1<<20)
	require.NoError(t, err)
	list, err := s.List(machine)
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestConcurrentWriters(t *testing.T) {
	s, err := Open(t.TempDir(), 1<<20)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for seq := range ident.Seq(10) {
				f, err := s.Create(machine, ident.Epoch(i), seq)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = f.Write(make([]byte, 100))
				e, err := f.Commit()
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Remove(e); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	used, _ := s.Usage()
	require.Zero(t, used)
}
