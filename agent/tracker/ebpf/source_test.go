package ebpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
	"drover/tests/lab"
	"drover/tests/loop"
)

// TestExactBlocks holds that the blocks that were written are reported, once, and no
// others.
func TestExactBlocks(t *testing.T) {
	need(t)
	d := loop.New(t, 64*mega+512)
	s := open(t, "")
	require.Equal(t, []bool{false}, follow(t, s, d))
	last := d.Size / checksum.BlockSize
	for name, c := range map[string]struct {
		write  func() error
		blocks []int64
	}{
		"a block":             {func() error { return d.Write(3*4096, ones(4096)) }, []int64{3}},
		"over a border":       {func() error { return d.Write(100*4096-512, ones(1024)) }, []int64{99, 100}},
		"over a word's":       {func() error { return d.Write(62*4096, ones(4*4096)) }, []int64{62, 63, 64, 65}},
		"the short last":      {func() error { return d.Write(d.Size-512, ones(512)) }, []int64{last}},
		"through the cache":   {func() error { return d.Buffered(7*4096+5, ones(1)) }, []int64{7}},
		"a discard":           {func() error { return d.Discard(20*4096, 2*4096) }, []int64{20, 21}},
		"zeros by the device": {func() error { return d.Zero(30*4096, 4096) }, []int64{30}},
		"a hole":              {func() error { return d.Punch(40*4096, 4096) }, []int64{40}},
	} {
		settle(t, s, 0)
		require.Zero(t, drained(t, s, 0).Count(), "nothing was written before %s", name)
		require.NoError(t, c.write(), name)
		b := drained(t, s, 0)
		require.Equal(t, int64(len(c.blocks)), b.Count(), name)
		covers(t, b, c.blocks)
	}
	noGap(t, s)
}

// TestEveryWriteIsReported writes at random in all ways at once; a copy that is kept by
// what is reported meanwhile is the disk in the end.
func TestEveryWriteIsReported(t *testing.T) {
	need(t)
	d := loop.New(t, 48*mega)
	s := open(t, "")
	follow(t, s, d)
	r, all := loop.NewReplica(t, d), make(changes.Bitmap, changes.Words(d.Size))
	before := d.Snapshot()
	for round := range uint64(4) {
		clear(all)
		written := make(chan error, 1)
		go func() { written <- d.WriteAtRandom(round, 150) }()
		for going := true; going; {
			select {
			case err := <-written:
				require.NoError(t, err)
				going = false
			default:
			}
			b := drained(t, s, 0)
			r.Take(b)
			for i := range all {
				all[i] |= b[i]
			}
		}
		require.Empty(t, r.Differs(), "the copy")
		changed := d.Changed(before)
		require.NotEmpty(t, changed)
		covers(t, all, changed)
	}
	settle(t, s, 0)
	require.Zero(t, drained(t, s, 0).Count(), "nothing is written any more")
	noGap(t, s)
}

// TestComparisonSeesAMiss is the control: without the programs the comparisons above
// find what is missing.
func TestComparisonSeesAMiss(t *testing.T) {
	need(t)
	d := loop.New(t, 8*mega)
	s := open(t, "")
	follow(t, s, d)
	r, before := loop.NewReplica(t, d), d.Snapshot()
	for _, l := range s.programs.links {
		require.NoError(t, l.Close())
	}
	clear(s.programs.links)
	require.NoError(t, d.WriteAtRandom(1, 20))
	b := drained(t, s, 0)
	r.Take(b)
	require.NotEmpty(t, r.Differs())
	require.NotEmpty(t, missed(b, d.Changed(before)))
}

// TestHugeRanges holds that discards of GiBs, and zeros over many MiB, are reported:
// they go through the ring.
func TestHugeRanges(t *testing.T) {
	need(t)
	const size, step = 5 << 29, 64 * mega
	d := loop.New(t, size)
	s := open(t, "")
	follow(t, s, d)
	for _, c := range []struct {
		name  string
		erase func(off, n int64) error
		n     int64
	}{{"discard", d.Discard, size - 3*4096}, {"zero", d.Zero, 128 * mega}} {
		for off := int64(0); off < size; off += step {
			require.NoError(t, d.Write(off+4096, ones(4096)))
		}
		before := d.Snapshot()
		settle(t, s, 0)
		require.NoError(t, c.erase(2*4096, c.n))
		b := drained(t, s, 0)
		require.Equal(t, c.n/4096, b.Count(), c.name)
		changed := d.Changed(before)
		require.Len(t, changed, int((c.n+4096)/step), c.name)
		covers(t, b, changed)
		settle(t, s, 0)
		require.Zero(t, drained(t, s, 0).Count(), c.name)
	}
	c, err := s.Counters()
	require.NoError(t, err)
	require.NotZero(t, c["ranges"])
	require.Zero(t, c["ranges_lost"])
	noGap(t, s)
}

// TestFileSystem makes an ext4 and uses it.
func TestFileSystem(t *testing.T) {
	need(t)
	d := loop.New(t, 64*mega)
	s := open(t, "")
	follow(t, s, d)
	before := d.Snapshot()
	content, mount := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(content, "before"), ones(mega), 0o600))
	require.NoError(t, lab.Format(t.Context(), d.Path, "test", content))
	covers(t, drained(t, s, 0), d.Changed(before))

	require.NoError(t, unix.Mount(d.Path, mount, "ext4", 0, "discard"))
	for i := range 20 {
		f, err := os.Create(filepath.Join(mount, "file"+string(rune('a'+i))))
		require.NoError(t, err)
		_, err = f.Write(ones(int64(i) * 10000))
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	require.NoError(t, os.Remove(filepath.Join(mount, "before")))
	require.NoError(t, unix.Unmount(mount, 0))
	changed := d.Changed(before)
	require.NotEmpty(t, changed)
	covers(t, drained(t, s, 0), changed)
	noGap(t, s)
}

func TestRefused(t *testing.T) {
	need(t)
	d := loop.New(t, mega)
	s := open(t, "")
	follow(t, s, d)
	dev := device(d)
	for want, devices := range map[string][]changes.Device{
		"same disk":             {dev, dev},
		"at most 64":            make([]changes.Device, 65),
		"there is no block dev": {dev, {Path: "/dev/none", Major: 4095, Minor: 7, Size: mega}},
		"1048576 bytes, not":    {{Path: d.Path, Major: d.Major, Minor: d.Minor, Size: 2 * mega}},
	} {
		_, err := s.Follow(devices)
		require.ErrorContains(t, err, want)
	}
	require.Error(t, s.Drain(1, make(changes.Bitmap, 100)))
	require.ErrorContains(t, s.Drain(0, make(changes.Bitmap, 3)), "the disk takes 4")
	for _, name := range []string{"", "UPPER", "a/b", "toolongname", ".."} {
		_, _, err := s.Memory(0, name, 8)
		require.ErrorContains(t, err, "lower-case letters")
	}
	require.NoError(t, d.Write(0, ones(512)))
	require.True(t, drained(t, s, 0).Has(0), "what was followed goes on")
}

// TestMemoryIsBounded holds what a TiB takes, and that it is refused where that is much.
func TestMemoryIsBounded(t *testing.T) {
	need := elements(1<<40) * wordBytes
	require.InDelta(t, 130, need/mega, 1)
	require.NoError(t, enough(1, need, 2000*mega))
	require.ErrorContains(t, enough(1, need, 1000*mega), "takes 130 MiB of the kernel's memory, and no more than 100 MiB")
}
