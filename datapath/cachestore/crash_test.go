package cachestore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/vfs/crashfs"
)

const (
	crashSeeds = 12  // ends of each power cut that are looked at
	maxCalls   = 200 // more than the script makes
	cacheDir   = "/var/cache"
)

var crashMachine = ident.NewMachineID("vc", "vm")

func content(seq ident.Seq) []byte { return bytes.Repeat([]byte{byte(seq)}, 9000) }

func name(seq ident.Seq) Name { return Name{Machine: crashMachine, Seq: seq, Epoch: 5} }

// acked is what was promised.
type acked struct {
	objects map[ident.Seq]bool // false: Delete was begun
	fence   ident.Epoch
}

// script puts, fences and deletes; what was done before is done again.
func script(t *testing.T, fs *crashfs.FS, a *acked) error {
	t.Helper()
	d, err := NewDirectoryFS(fs, cacheDir)
	if err != nil {
		return err
	}
	for epoch := ident.Epoch(4); epoch <= 5; epoch++ {
		err := d.Fence(t.Context(), crashMachine, epoch)
		if errors.Is(err, ErrFenced) && epoch < 5 {
			continue // of an earlier run
		}
		if err != nil {
			return err
		}
		a.fence = max(epoch, a.fence)
	}
	for seq := range ident.Seq(3) {
		if err := d.Put(t.Context(), name(seq), bytes.NewReader(content(seq)), 9000); err != nil {
			return err
		}
		a.objects[seq] = true
	}
	a.objects[1] = false
	return d.Delete(t.Context(), name(1))
}

func holds(t *testing.T, fs *crashfs.FS, a *acked) {
	t.Helper()
	d, err := NewDirectoryFS(fs, cacheDir)
	require.NoError(t, err)
	list, err := d.List(t.Context(), crashMachine)
	require.NoError(t, err)
	found := map[ident.Seq]bool{}
	for _, n := range list {
		o, err := d.Open(t.Context(), n)
		require.NoError(t, err)
		b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content(n.Seq), b), "object %d is whole", n.Seq)
		require.NoError(t, o.Close())
		found[n.Seq] = true
	}
	for seq, must := range a.objects {
		require.True(t, found[seq] || !must, "object %d was put", seq)
	}
	if a.fence > 0 {
		require.ErrorIs(t, d.Fence(t.Context(), crashMachine, a.fence-1), ErrFenced)
	}
}

func TestPowerCutAtEveryCall(t *testing.T) {
	for calls := 1; ; calls++ {
		require.Less(t, calls, maxCalls)
		fs, a := crashfs.New(), &acked{objects: map[ident.Seq]bool{}}
		fs.CutAfter(calls)
		err := script(t, fs, a)
		for seed := range uint64(crashSeeds) {
			t.Logf("power cut after %d calls, seed %d", calls, seed)
			after := fs.Crash(seed)
			holds(t, after, a)
			again := &acked{objects: map[ident.Seq]bool{}}
			require.NoError(t, script(t, after, again), "it goes on")
			holds(t, after.Crash(crashfs.AllLost), again)
		}
		if err == nil {
			return
		}
		require.ErrorIs(t, err, crashfs.ErrPower)
	}
}

// TestKilledThenPowerCut: the process dies, the next one does the same again, and
// then the power goes.
func TestKilledThenPowerCut(t *testing.T) {
	for calls := 1; ; calls++ {
		require.Less(t, calls, maxCalls)
		fs, a := crashfs.New(), &acked{objects: map[ident.Seq]bool{}}
		require.NoError(t, fs.MkdirAll("/var", 0o700))
		require.NoError(t, fs.SyncDir("/"))
		fs.CutAfter(calls)
		done := script(t, fs, a) == nil
		fs.CutAfter(-1)
		require.NoError(t, script(t, fs, a))
		for seed := range uint64(crashSeeds) {
			t.Logf("killed after %d calls, seed %d", calls, seed)
			holds(t, fs.Crash(seed), a)
		}
		if done {
			return
		}
	}
}

func TestFaultsOfTheDisk(t *testing.T) {
	for _, rule := range []crashfs.Rule{
		{Op: crashfs.Write, Err: syscall.ENOSPC, Short: true},
		{Op: crashfs.Write, Err: syscall.EIO},
		{Op: crashfs.Sync, Err: syscall.EIO},
		{Op: crashfs.SyncDir, Err: syscall.EIO},
		{Op: crashfs.Name, Err: syscall.EROFS},
	} {
		fs, a := crashfs.New(), &acked{objects: map[ident.Seq]bool{}}
		require.NoError(t, script(t, fs, a))
		d, err := NewDirectoryFS(fs, cacheDir)
		require.NoError(t, err)
		rule.Times = 1
		fs.Inject(rule)
		require.ErrorIs(t, d.Put(t.Context(), name(9), bytes.NewReader(content(9)), 9000), rule.Err)
		holds(t, fs.Crash(crashfs.AllLost), a)
		require.NoError(t, d.Put(t.Context(), name(9), bytes.NewReader(content(9)), 9000), "it is put again when the disk is well")
		a.objects[9] = true
		for seed := range uint64(crashSeeds) {
			holds(t, fs.Crash(seed), a)
		}
	}
}

// An object that shares the spool's file survives the spool's name.
func TestLinkedObjectAndPowerCut(t *testing.T) {
	for calls := 1; ; calls++ {
		require.Less(t, calls, maxCalls)
		fs, a := crashfs.New(), &acked{objects: map[ident.Seq]bool{}}
		require.NoError(t, fs.MkdirAll("/spool", 0o700))
		require.NoError(t, durable.WriteFileOn(fs, "/spool/set", content(3), 0o600))
		d, err := NewDirectoryFS(fs, cacheDir)
		require.NoError(t, err)
		set, err := fs.OpenFile("/spool/set", os.O_RDONLY, 0)
		require.NoError(t, err)
		fs.CutAfter(calls)
		putErr := d.Put(t.Context(), name(3), set, 9000)
		if putErr == nil {
			a.objects[3] = true
			_ = fs.Remove("/spool/set") // it may be cut off
		}
		require.NoError(t, set.Close())
		for seed := range uint64(crashSeeds) {
			t.Logf("power cut after %d calls, seed %d", calls, seed)
			holds(t, fs.Crash(seed), a)
		}
		if putErr == nil {
			return
		}
	}
}
