package spool

import (
	"bytes"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/vfs/crashfs"
)

const (
	crashSeeds = 12  // ends of each power cut that are looked at
	maxCalls   = 200 // more than any script here makes
)

func content(seq ident.Seq, n int) []byte { return bytes.Repeat([]byte{byte(seq)}, n) }

// script commits, replaces, gives up and removes; it tells what was acknowledged.
func script(s *Spool, acked map[ident.Seq]int) error {
	write := func(seq ident.Seq, n int) (*File, error) {
		f, err := s.Create(machine, 1, seq)
		if err != nil {
			return nil, err
		}
		_, err = f.Write(content(seq, n))
		return f, err
	}
	for seq := range ident.Seq(4) {
		f, err := write(seq, 9000)
		if err != nil {
			return err
		}
		if seq == 2 {
			if err := f.Abort(); err != nil {
				return err
			}
			continue
		}
		e, err := f.Commit()
		if err != nil {
			return err
		}
		acked[seq] = 9000
		if seq == 1 {
			delete(acked, seq)
			if err := s.Remove(e); err != nil {
				return err
			}
		}
	}
	f, err := write(3, 5000)
	if err != nil {
		return err
	}
	acked[3] = 0 // the old or the new
	if _, err := f.Commit(); err != nil {
		return err
	}
	acked[3] = 5000
	_, err = write(7, 100)
	return err
}

// holds checks that the spool has what was acknowledged, whole, and nothing torn.
func holds(t *testing.T, fs *crashfs.FS, acked map[ident.Seq]int) {
	t.Helper()
	s, err := OpenFS(fs, "/state/spool", 1<<20)
	require.NoError(t, err)
	list, err := s.List(machine)
	require.NoError(t, err)
	found, total := map[ident.Seq]bool{}, int64(0)
	for _, e := range list {
		found[e.Seq] = true
		total += e.Size
		if want := acked[e.Seq]; want > 0 {
			require.Equal(t, int64(want), e.Size)
		}
		o, err := s.Open(e)
		require.NoError(t, err)
		b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content(e.Seq, int(e.Size)), b), "change set %d is whole", e.Seq)
		require.NoError(t, o.Close())
	}
	for seq := range acked {
		require.True(t, found[seq], "change set %d was acknowledged", seq)
	}
	used, _ := s.Usage()
	require.Equal(t, total, used)
	require.NoError(t, s.Close())
}

func TestPowerCutAtEveryCall(t *testing.T) {
	for calls := 1; ; calls++ {
		require.Less(t, calls, maxCalls)
		fs, acked := crashfs.New(), map[ident.Seq]int{}
		fs.CutAfter(calls)
		s, err := OpenFS(fs, "/state/spool", 1<<20)
		if err == nil {
			err = script(s, acked)
		}
		for seed := range uint64(crashSeeds) {
			t.Logf("power cut after %d calls, seed %d", calls, seed)
			holds(t, fs.Crash(seed), acked)
		}
		if err == nil {
			return
		}
		require.ErrorIs(t, err, crashfs.ErrPower)
	}
}

// TestKilledThenPowerCut: the process dies first, what is listed after its restart
// is carried on, and then the power goes.
func TestKilledThenPowerCut(t *testing.T) {
	for calls := 1; ; calls++ {
		require.Less(t, calls, maxCalls)
		fs, acked := crashfs.New(), map[ident.Seq]int{}
		fs.CutAfter(calls)
		s, err := OpenFS(fs, "/state/spool", 1<<20)
		if err == nil {
			err = script(s, acked)
		}
		fs.CutAfter(-1)
		again, openErr := OpenFS(fs, "/state/spool", 1<<20)
		require.NoError(t, openErr)
		list, listErr := again.List(machine)
		require.NoError(t, listErr)
		seen := map[ident.Seq]int{}
		for _, e := range list {
			seen[e.Seq] = int(e.Size)
		}
		for seed := range uint64(crashSeeds) {
			t.Logf("killed after %d calls, seed %d", calls, seed)
			holds(t, fs.Crash(seed), seen)
		}
		if err == nil {
			return
		}
	}
}

func TestFullDisk(t *testing.T) {
	fs := crashfs.New()
	s, err := OpenFS(fs, "/state/spool", 1<<20)
	require.NoError(t, err)
	put(t, s, 1, content(1, 5000))
	fs.SetCapacity(fs.Used() + 8192)
	before, _ := s.Usage()
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		f, err := s.Create(machine, 1, 2)
		require.NoError(t, err)
		_, err = f.Write(content(2, 3000))
		require.NoError(t, err)
		if full == syscall.EDQUOT {
			fs.Inject(crashfs.Rule{Op: crashfs.Write, Err: full, Short: true, Times: 1})
		}
		_, err = f.Write(content(2, 9000))
		require.ErrorIs(t, err, ErrFull)
		require.ErrorIs(t, err, full)
		require.NoError(t, f.Abort())
		used, _ := s.Usage()
		require.Equal(t, before, used)
	}
	fs.Inject(crashfs.Rule{Op: crashfs.Name, Err: syscall.ENOSPC, Times: 1})
	_, err = s.Create(machine, 1, 2)
	require.ErrorIs(t, err, ErrFull)
	fs.Mend()
	put(t, s, 2, content(2, 9000))
	holds(t, fs.Crash(crashfs.AllLost), map[ident.Seq]int{1: 5000, 2: 9000})
}

// A change set whose sync failed is given up: the sync is not tried again, and
// nothing of it is listed, whatever the disk has kept.
func TestFailedSync(t *testing.T) {
	for _, op := range []crashfs.Op{crashfs.Sync, crashfs.SyncDir, crashfs.Name} {
		fs := crashfs.New()
		s, err := OpenFS(fs, "/state/spool", 1<<20)
		require.NoError(t, err)
		put(t, s, 1, content(1, 5000))
		f, err := s.Create(machine, 1, 2)
		require.NoError(t, err)
		_, err = f.Write(content(2, 9000))
		require.NoError(t, err)
		fs.Inject(crashfs.Rule{Op: op, Err: syscall.EIO, Times: 1})
		_, err = f.Commit()
		require.ErrorIs(t, err, syscall.EIO)
		_, err = f.Commit()
		require.Error(t, err, "it has ended")
		list, err := s.List(machine)
		require.NoError(t, err)
		listed := map[ident.Seq]int{1: 5000}
		if op == crashfs.SyncDir {
			listed[2] = 9000 // all was done but the last step, which listing did
		}
		require.Len(t, list, len(listed))
		for seed := range uint64(crashSeeds) {
			holds(t, fs.Crash(seed), listed)
		}
		put(t, s, 2, content(2, 9000)) // the agent sends it again
		for seed := range uint64(crashSeeds) {
			holds(t, fs.Crash(seed), map[ident.Seq]int{1: 5000, 2: 9000})
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	fs := crashfs.New()
	s, err := OpenFS(fs, "/state/spool", 1<<20)
	require.NoError(t, err)
	e := put(t, s, 1, content(1, 5000))
	f, err := s.Create(machine, 1, 2)
	require.NoError(t, err)
	fs.SetReadOnly()
	_, err = f.Write(content(2, 10))
	require.ErrorIs(t, err, syscall.EROFS)
	_, err = f.Commit()
	require.ErrorIs(t, err, syscall.EROFS)
	_, err = s.Create(machine, 1, 3)
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorIs(t, s.Remove(e), syscall.EROFS)
	used, _ := s.Usage()
	require.Equal(t, e.Size, used)
	o, err := s.Open(e)
	require.NoError(t, err)
	require.NoError(t, o.Close())
}
