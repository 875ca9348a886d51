package trace

import (
	"crypto/rand"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
	"drover/tests/lab/guest"
	"drover/tests/loop"
)

const mib = 1 << 20

// source opens a source, or skips where the kernel's trace cannot be had.
func source(t *testing.T, o Options) *Source {
	t.Helper()
	loop.Need(t)
	if err := Available(); err != nil {
		loop.Missing(t, err.Error())
	}
	s, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if s.ring != nil {
			require.NoError(t, s.Close())
			require.NoDirExists(t, s.instance)
			s.ring = nil
		}
	})
	return s
}

func about(d *loop.Device) changes.Device {
	return changes.Device{Path: d.Path, Major: d.Major, Minor: d.Minor, Size: d.Size}
}

func follow(t *testing.T, s *Source, devices ...*loop.Device) []bool {
	t.Helper()
	var list []changes.Device
	for _, d := range devices {
		list = append(list, about(d))
	}
	kept, err := s.Follow(list)
	require.NoError(t, err)
	return kept
}

// drain gives what a source says of a device, after a look that it knows all.
func drain(t *testing.T, s *Source, i int) changes.Bitmap {
	t.Helper()
	b := make(changes.Bitmap, changes.Words(s.devices[i].Size))
	require.NoError(t, s.Drain(i, b))
	why, err := s.Gap()
	require.NoError(t, err)
	require.Empty(t, why)
	return b
}

// tells requires that the source names every block that changed, and gives how many
// there are.
func tells(t *testing.T, s *Source, i int, d *loop.Device, before *loop.Snapshot) int {
	t.Helper()
	said := drain(t, s, i)
	changed := d.Changed(before)
	for _, b := range changed {
		require.True(t, said.Has(b), "block %d changed; %d blocks are named", b, said.Count())
	}
	return len(changed)
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// scribble writes in all the ways there are, at random places from first up to end and
// of random sizes.
func scribble(t *testing.T, d *loop.Device, first, end int64, r *mrand.Rand, writes int) {
	t.Helper()
	data := random(4 * mib)
	for range writes {
		off := first + r.Int64N((end-first)/loop.Sector)*loop.Sector
		n := min((r.Int64N(32)+1)<<r.Int64N(7), (end-off)/loop.Sector) * loop.Sector
		var err error
		switch r.IntN(8) {
		case 0:
			err = d.Discard(off, n)
		case 1:
			err = d.Zero(off, n)
		case 2:
			err = d.Punch(off, n)
		case 3, 4:
			err = d.Buffered(off+r.Int64N(loop.Sector), data[r.Int64N(mib):][:max(1, n-loop.Sector)])
		default:
			err = d.Write(off, data[r.Int64N(mib):][:n])
		}
		require.NoError(t, err)
	}
}

func TestEveryWriteIsSeen(t *testing.T) {
	d := loop.New(t, 64*mib+3*loop.Sector)
	s := source(t, Options{})
	require.Equal(t, []bool{false}, follow(t, s, d))
	seed := mrand.Uint64()
	t.Log("seed", seed)
	r, before, changed := mrand.New(mrand.NewPCG(seed, 1)), d.Snapshot(), 0
	for range 6 {
		scribble(t, d, 0, d.Size, r, 30)
		changed += tells(t, s, 0, d, before)
	}
	require.Greater(t, changed, 500, "the test writes")
	require.Zero(t, drain(t, s, 0).Count(), "nothing happened since")
}

// TestTwoWritersAndOtherDisks has two goroutines write while a third drains: what the
// drains say together is all that changed.
func TestTwoWritersAndOtherDisks(t *testing.T) {
	d, busy := loop.New(t, 32*mib), loop.New(t, 32*mib)
	s := source(t, Options{})
	follow(t, s, d)
	before := d.Snapshot()
	done := make(chan struct{}, 3)
	for i, dev := range []*loop.Device{d, d, busy} {
		go func() {
			defer func() { done <- struct{}{} }()
			first := int64(i) % 2 * d.Size / 2 // direct and buffered writes do not mix
			scribble(t, dev, first, first+d.Size/2, mrand.New(mrand.NewPCG(uint64(i), 2)), 100)
		}()
	}
	said := make(changes.Bitmap, changes.Words(d.Size))
	for left := 3; left > 0; {
		select {
		case <-done:
			left--
		case <-time.After(time.Millisecond):
		}
		require.NoError(t, s.Drain(0, said))
	}
	why, err := s.Gap()
	require.NoError(t, err)
	require.Empty(t, why)
	for _, b := range d.Changed(before) {
		require.True(t, said.Has(b), "block %d", b)
	}
}

// TestNothingTooMuch writes single blocks and requires that they alone are named.
func TestNothingTooMuch(t *testing.T) {
	d, other := loop.New(t, 16*mib), loop.New(t, 16*mib)
	s := source(t, Options{})
	follow(t, s, d)
	require.NoError(t, other.Write(0, random(mib)))
	for _, f := range []func(off, n int64) error{d.Discard, d.Zero, func(off, n int64) error { return d.Write(off, random(int(n))) }} {
		require.NoError(t, f(3*checksum.BlockSize, 2*checksum.BlockSize))
		b := drain(t, s, 0)
		first, end := b.Next(0, 100)
		require.Equal(t, []int64{3, 5}, []int64{first, end})
		require.EqualValues(t, 2, b.Count())
	}
	require.NoError(t, d.Write(8*checksum.BlockSize-loop.Sector, random(2*loop.Sector)))
	b := drain(t, s, 0)
	require.True(t, b.Has(7) && b.Has(8))
	require.EqualValues(t, 2, b.Count())
	d.Snapshot() // reads it all
	require.NoError(t, other.Write(0, random(mib)))
	require.Zero(t, drain(t, s, 0).Count())
}

func TestFileSystem(t *testing.T) {
	d := loop.New(t, 64*mib)
	s := source(t, Options{})
	follow(t, s, d)
	before := d.Snapshot()
	run(t, "mke2fs", "-q", "-t", "ext4", d.Path)
	require.Positive(t, tells(t, s, 0, d, before))
	dir := t.TempDir()
	// Not with the option discard: kernels since 5.15 trim in the background, also while
	// the file system is frozen.
	require.NoError(t, unix.Mount(d.Path, dir, "ext4", 0, ""))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			require.NoError(t, unix.Unmount(dir, 0))
		}
	})
	for i := range 100 {
		name := filepath.Join(dir, string(rune('a'+i%20)))
		require.NoError(t, os.WriteFile(name, random(1+i*3000), 0o600))
		if i%7 == 0 {
			require.NoError(t, os.Remove(name))
		}
		if i%25 == 24 {
			run(t, "fstrim", dir)
			frozen(t, dir, func() { require.Positive(t, tells(t, s, 0, d, before)) })
		}
	}
	require.NoError(t, unix.Unmount(dir, 0))
	mounted = false
	require.Positive(t, tells(t, s, 0, d, before))
}

// frozen does something while a file system is frozen. It is thawed also when the test
// fails meanwhile: else its device stays for ever.
func frozen(t *testing.T, dir string, do func()) {
	t.Helper()
	run(t, "fsfreeze", "--freeze", dir)
	defer run(t, "fsfreeze", "--unfreeze", dir)
	do()
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// TestPendingWrite holds a write up in the device: it is named again and again until
// it is done, and once more then.
func TestPendingWrite(t *testing.T) {
	lower := loop.New(t, 64*mib)
	run(t, "mke2fs", "-q", "-t", "ext4", lower.Path)
	dir := t.TempDir()
	require.NoError(t, unix.Mount(lower.Path, dir, "ext4", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	file := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(file, make([]byte, 16*mib), 0o600))
	t.Run("held up", func(t *testing.T) { // its device is gone before the file system is
		d := loop.Attach(t, file)
		s := source(t, Options{})
		follow(t, s, d)
		written := make(chan error, 1)
		frozen(t, dir, func() {
			go func() { written <- d.Write(5*checksum.BlockSize, random(checksum.BlockSize)) }()
			for begin := time.Now(); !drain(t, s, 0).Has(5); time.Sleep(time.Millisecond) {
				require.Less(t, time.Since(begin), 10*time.Second, "the write is not seen")
			}
			for range 3 {
				b := drain(t, s, 0)
				require.True(t, b.Has(5), "it is not done")
				require.EqualValues(t, 1, b.Count())
			}
			c, err := s.Counters()
			require.NoError(t, err)
			require.EqualValues(t, 1, c["pending"])
			select {
			case err := <-written:
				t.Fatal("the write was not held up: ", err)
			default:
			}
		})
		require.NoError(t, <-written)
		require.True(t, drain(t, s, 0).Has(5), "it was done after the last drain")
		require.Zero(t, drain(t, s, 0).Count())
	})
}

// TestOverflowIsAGap writes more than a tiny ring takes.
func TestOverflowIsAGap(t *testing.T) {
	d := loop.New(t, 16*mib)
	s := source(t, Options{RingBytes: 4096, Period: time.Hour})
	follow(t, s, d)
	for i := range int64(2000) {
		require.NoError(t, d.Write(i*checksum.BlockSize, random(loop.Sector)))
	}
	require.NoError(t, s.Drain(0, make(changes.Bitmap, changes.Words(d.Size))))
	why, err := s.Gap()
	require.NoError(t, err)
	require.Contains(t, why, "was full and lost")
	c, err := s.Counters()
	require.NoError(t, err)
	require.Positive(t, c["lost"])
	require.GreaterOrEqual(t, c["lost"]+c["seen"]+c["completed"], uint64(4000), "every event was seen or is known to be lost")

	before := d.Snapshot()
	require.NoError(t, d.Write(0, random(mib)))
	require.Equal(t, 256, tells(t, s, 0, d, before), "it goes on after a gap")
}

// TestReaderKeepsUp writes more than the ring takes at once, in the time that the
// reader has.
func TestReaderKeepsUp(t *testing.T) {
	d := loop.New(t, 16*mib)
	s := source(t, Options{RingBytes: 256 << 10, Period: time.Millisecond})
	follow(t, s, d)
	for i := range int64(6000) {
		require.NoError(t, d.Write(i%4096*checksum.BlockSize, random(loop.Sector)))
	}
	require.EqualValues(t, 4096, drain(t, s, 0).Count())
	c, err := s.Counters()
	require.NoError(t, err)
	require.EqualValues(t, 6000, c["seen"])
	require.EqualValues(t, 6000, c["completed"])
	require.Zero(t, c["pending"])
}

func TestSomebodyElseSwitchesItOff(t *testing.T) {
	d := loop.New(t, 16*mib)
	s := source(t, Options{})
	follow(t, s, d)
	for _, x := range []struct{ file, text string }{
		{"tracing_on", "0"}, {"events/block/block_rq_issue/enable", "0"}, {"events/block/block_rq_complete/filter", "dev == 1"},
	} {
		require.NoError(t, writeText(filepath.Join(s.instance, x.file), x.text))
		why, err := s.Gap()
		require.NoError(t, err)
		require.Contains(t, why, "somebody has changed "+x.file)
		before := d.Snapshot()
		require.NoError(t, d.Write(0, random(mib)))
		require.Equal(t, 256, tells(t, s, 0, d, before), "it goes on after a gap")
	}
}

func TestFollowOthers(t *testing.T) {
	a, b := loop.New(t, 16*mib), loop.New(t, 16*mib)
	s := source(t, Options{})
	require.Equal(t, []bool{false}, follow(t, s, a))
	mem, kept, err := s.Memory(0, "sums", 100)
	require.NoError(t, err)
	require.False(t, kept)
	require.Equal(t, make([]byte, 100), mem)
	mem[7] = 7
	require.NoError(t, a.Write(0, random(checksum.BlockSize)))
	require.NoError(t, b.Write(0, random(checksum.BlockSize)))
	require.Equal(t, []bool{false, true}, follow(t, s, b, a), "in another order")
	mem, kept, err = s.Memory(1, "sums", 100)
	require.NoError(t, err)
	require.True(t, kept)
	require.EqualValues(t, 7, mem[7])
	require.Zero(t, drain(t, s, 0).Count(), "b is followed from now on")
	require.EqualValues(t, 1, drain(t, s, 1).Count(), "a goes on")
	require.NoError(t, b.Write(0, random(checksum.BlockSize)))
	require.EqualValues(t, 1, drain(t, s, 0).Count())

	require.Equal(t, []bool{true}, follow(t, s, b))
	require.NoError(t, a.Write(0, random(checksum.BlockSize)))
	require.Empty(t, follow(t, s))
	require.NoError(t, b.Write(0, random(checksum.BlockSize)))
	require.Equal(t, []bool{false, false}, follow(t, s, a, b))
	require.Zero(t, drain(t, s, 0).Count())
	require.Zero(t, drain(t, s, 1).Count())
	_, kept, err = s.Memory(0, "sums", 50)
	require.NoError(t, err)
	require.False(t, kept)

	_, _, err = s.Memory(0, "sums", 51)
	require.ErrorContains(t, err, "it has 50 bytes, not 51")
	for _, name := range []string{"", "Sums", "ninechars", "a/b"} {
		_, _, err = s.Memory(0, name, 1)
		require.ErrorContains(t, err, "no such name")
	}
	require.ErrorContains(t, s.Drain(2, nil), "2 are followed")
	require.ErrorContains(t, s.Drain(0, nil), "a bitmap of 0 words where it takes 64")
	_, err = s.Follow([]changes.Device{about(a), about(a)})
	require.ErrorContains(t, err, "named twice")
	_, err = s.Follow([]changes.Device{{Path: "/dev/none", Major: 4095, Minor: 7, Size: 1}})
	require.ErrorContains(t, err, "follow the writes to /dev/none: there is no block device 4095:7")
}

// TestTwoSources lets two follow the same disk.
func TestTwoSources(t *testing.T) {
	d := loop.New(t, 16*mib)
	one, two := source(t, Options{}), source(t, Options{})
	follow(t, one, d)
	follow(t, two, d)
	require.NoError(t, d.Write(0, random(mib)))
	require.Equal(t, drain(t, one, 0), drain(t, two, 0))
	require.NoError(t, one.Close())
	one.ring = nil
	require.NoError(t, d.Write(2*mib, random(mib)))
	require.EqualValues(t, 256, drain(t, two, 0).Count())
}

// TestLeftovers removes the instance of a process that is gone, and no other.
func TestLeftovers(t *testing.T) {
	s := source(t, Options{})
	gone := exec.Command("/proc/self/exe", "-test.run", "^$")
	require.NoError(t, gone.Run())
	started, err := startOf(1)
	require.NoError(t, err)
	dir := filepath.Dir(s.instance)
	left, reused, alive := filepath.Join(dir, namePrefix+strconv.Itoa(gone.Process.Pid)+"-5-1"), filepath.Join(dir, namePrefix+"1-"+started+"1-1"), filepath.Join(dir, namePrefix+"1-"+started+"-1")
	others := filepath.Join(dir, "others-"+strconv.Itoa(gone.Process.Pid)+"-5-1")
	for _, name := range []string{left, reused, alive, others} {
		require.NoError(t, os.Mkdir(name, 0o700))
	}
	busy, err := unix.Open(filepath.Join(alive, "per_cpu/cpu0/trace_pipe_raw"), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	require.NoError(t, s.fs.removeLeftovers())
	require.NoDirExists(t, left)
	require.NoDirExists(t, reused, "another process has the number now")
	require.DirExists(t, alive)
	require.DirExists(t, others)
	require.DirExists(t, s.instance)
	require.NoError(t, unix.Close(busy))
	for _, name := range []string{alive, others} {
		require.NoError(t, unix.Rmdir(name))
	}
}
