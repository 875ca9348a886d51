package tracking

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/live"
	"drover/agent/tracker/trace"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/tests/lab/guest"
	"drover/tests/loop"
)

var (
	length   = flag.Duration("length", 6*time.Second, "how long each source is tried; every pattern is played once at least")
	overhead = flag.Int("overhead", 0, "how often the overhead of each source is measured")
)

const (
	mib     = 1 << 20
	size    = 128 * mib
	round   = time.Second
	seed    = 0x6472766572
	between = 5 * time.Millisecond // passes
	// second is how often a copier begins a pass that may rest in between: five times as
	// often as the shortest cadence of cuts.
	second = time.Second
	// overheadRound is how long fio runs to be measured; some passes of a second's.
	overheadRound = 3 * time.Second
)

// source is a source of changes that is tried.
type source struct {
	name      string
	available func() error
	open      func() (changes.Source, error)
}

var sources = []source{
	{"ebpf", ebpf.Available, func() (changes.Source, error) { return ebpf.Open("") }},
	{"trace", trace.Available, func() (changes.Source, error) { return trace.Open(trace.Options{}) }},
}

func need(t *testing.T, s source) {
	t.Helper()
	loop.Need(t)
	if _, err := exec.LookPath(fioTool); err != nil {
		loop.Missing(t, err.Error())
	}
	if err := s.available(); err != nil {
		loop.Missing(t, err.Error())
	}
}

// proof is a tracker of a device, and the copy that it keeps of it.
type proof struct {
	t            *testing.T
	d            *loop.Device
	disk         *disk.Disk
	tracker      *live.Tracker
	copy         []byte
	sent         int64 // bytes
	passes, gaps int
	rounds       int
}

func TestNothingIsMissed(t *testing.T) {
	for _, s := range sources {
		t.Run(s.name, func(t *testing.T) {
			need(t, s)
			p := newProof(t, s)
			keepBusy(t)
			for begin := time.Now(); p.rounds < len(patterns) || time.Since(begin) < *length; p.rounds++ {
				pattern := patterns[p.rounds%len(patterns)]
				p.write(pattern)
				require.Empty(t, p.differences(), "after round %d: %s", p.rounds, pattern.name)
			}
			counters, err := p.tracker.Counters()
			require.NoError(t, err)
			t.Logf("%d rounds, %d passes, %d MiB copied, %d gaps; %v", p.rounds, p.passes, p.sent/mib, p.gaps, counters)
			p.copy[size/2]++
			require.Len(t, p.differences(), 1, "the comparison sees a byte that is wrong")
		})
	}
}

func newProof(t *testing.T, s source) *proof {
	t.Helper()
	p := &proof{t: t, d: loop.New(t, size), copy: make([]byte, size)}
	var err error
	p.disk, err = disk.Open(p.d.Path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.disk.Close()) })
	opened, err := s.open()
	require.NoError(t, err)
	p.tracker = live.New(opened)
	t.Cleanup(func() { require.NoError(t, p.tracker.Close()) })
	_, err = p.tracker.Attach([]tracker.Disk{p.disk})
	require.NoError(t, err)
	p.tracker.Begin([]changeset.Disk{{ID: ident.DiskID{1}, Size: size, Seed: seed}})
	p.pass()
	return p
}

// write has fio write for a while, and copies meanwhile and afterwards.
func (p *proof) write(with pattern) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), round+fioSlack)
	defer cancel()
	target, done := p.d.Path, func() {}
	if with.fileSystem {
		target = p.t.TempDir()
		run(p.t, "mke2fs", "-q", "-F", "-t", "ext4", p.d.Path)
		require.NoError(p.t, unix.Mount(p.d.Path, target, "ext4", 0, ""))
		done = func() { require.NoError(p.t, unix.Unmount(target, 0)) }
	}
	ended := make(chan error, 1)
	var out strings.Builder
	cmd := fio(ctx, with, target, uint64(p.rounds+1), round)
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(p.t, cmd.Start())
	go func() { ended <- cmd.Wait() }()
	for running := true; running; {
		select {
		case err := <-ended:
			running = false
			if err != nil {
				done()
				require.NoError(p.t, err, "fio, %s: %s", with.name, out.String())
			}
		case <-time.After(between):
			p.pass()
		}
	}
	done()
	p.sync()
	require.NoError(p.t, p.d.Discard(int64(p.rounds%100)*mib, mib))
	require.NoError(p.t, p.d.Zero(int64(p.rounds%90+5)*mib, mib))
	p.pass()
}

// sync has the kernel write what fio has left in the page cache. Else the comparison
// does, by reading around it: after the last pass.
func (p *proof) sync() {
	p.t.Helper()
	f, err := os.OpenFile(p.d.Path, os.O_RDWR, 0)
	require.NoError(p.t, err)
	require.NoError(p.t, f.Sync())
	require.NoError(p.t, f.Close())
}

// pass copies what may have changed. After a gap the checksums of all blocks are
// compared first.
func (p *proof) pass() {
	p.t.Helper()
	p.passes++
	err := p.tracker.Pass(p.t.Context(), 0, p.put, nil)
	for tries := 0; errors.Is(err, tracker.ErrGap) && tries < 10; tries++ {
		p.gaps++
		if err = p.tracker.Learn(p.t.Context(), 0, p.compare, nil); err == nil {
			err = p.tracker.Pass(p.t.Context(), 0, p.put, nil)
		}
	}
	require.NoError(p.t, err)
}

func (p *proof) put(e changeset.Extent) error {
	if e.Zero {
		clear(p.copy[e.Offset : e.Offset+e.Length])
		return nil
	}
	p.sent += e.Length
	copy(p.copy[e.Offset:e.Offset+e.Length], e.Data)
	return nil
}

// compare tells the tracker which blocks of a window the copy does not have.
func (p *proof) compare(w checksum.Window) error {
	for i, sum := range w.Sums {
		off := (w.First + int64(i)) * checksum.BlockSize
		if checksum.Sum(seed, off, p.copy[off:off+checksum.BlockSize]) != sum {
			p.tracker.Forget(0, checksum.Range{Offset: off, Length: checksum.BlockSize})
		}
	}
	return nil
}

// differences reads the device, and gives the blocks that the copy has not.
func (p *proof) differences() (blocks []int64) {
	p.t.Helper()
	buf := disk.Buffer(mib)
	for off := int64(0); off < size; off += mib {
		_, err := p.disk.ReadAt(buf, off)
		require.NoError(p.t, err)
		for at := int64(0); at < mib; at += checksum.BlockSize {
			if string(buf[at:at+checksum.BlockSize]) != string(p.copy[off+at:off+at+checksum.BlockSize]) {
				blocks = append(blocks, (off+at)/checksum.BlockSize)
			}
		}
	}
	return blocks
}

// keepBusy has every processor and a second disk do something until the test ends.
func keepBusy(t *testing.T) {
	t.Helper()
	other := loop.New(t, 16*mib)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	n := runtime.NumCPU() + 1
	for range runtime.NumCPU() {
		go func() {
			defer func() { done <- struct{}{} }()
			for x := uint64(1); ctx.Err() == nil; x = x*6364136223846793005 + 1 {
				_ = x
			}
		}()
	}
	go func() {
		defer func() { done <- struct{}{} }()
		data := make([]byte, 64<<10)
		for i := int64(0); ctx.Err() == nil; i++ {
			if err := other.Write(i%256*int64(len(data)), data); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		for range n {
			<-done
		}
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// TestOverhead measures what fio does with and without a source, by turns, and while
// another process copies what changes: each second, and pass after pass.
func TestOverhead(t *testing.T) {
	if *overhead == 0 {
		t.Skip("only with -overhead")
	}
	for _, s := range sources {
		need(t, s)
		dir, err := os.MkdirTemp("/dev/shm", "drover-tracking-")
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		file := dir + "/disk"
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, size))
		d := loop.Attach(t, file)
		var with, seconds, passes []float64 // shares of what fio does without
		for range *overhead {
			without := iops(t, patterns[1], d.Path, overheadRound)
			followed := whileFollowed(t, s, d) / without
			each, did := whileCopied(t, s, d, second)
			all, didAll := whileCopied(t, s, d, 0)
			with, seconds, passes = append(with, followed), append(seconds, each/without), append(passes, all/without)
			t.Logf("%s: %.0f writes/s without; of them %.2f with, %.2f while copied each second (%s), %.2f pass after pass (%s)",
				s.name, without, followed, each/without, did, all/without, didAll)
		}
		t.Logf("%s: medians: %.2f with, %.2f while copied each second, %.2f pass after pass", s.name, median(with), median(seconds), median(passes))
	}
}

// whileFollowed measures while nobody reads what the source sees.
func whileFollowed(t *testing.T, s source, d *loop.Device) float64 {
	t.Helper()
	opened, err := s.open()
	require.NoError(t, err)
	_, err = opened.Follow([]changes.Device{{Path: d.Path, Major: d.Major, Minor: d.Minor, Size: d.Size}})
	require.NoError(t, err)
	reached := iops(t, patterns[1], d.Path, overheadRound)
	gap, err := opened.Gap()
	require.NoError(t, err)
	require.NoError(t, opened.Close())
	if gap != "" {
		t.Logf("%s: gap: %s", s.name, gap)
	}
	return reached
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
