package model

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"drover/datapath/codec"
	"drover/datapath/durable"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/datapath/vfs/crashfs"
	"drover/tests/fault/proxy"
	"drover/tests/rig"
)

var (
	seeds = flag.Int("seeds", 20, "how many lives are played")
	first = flag.Uint64("seed", 1, "the first life's seed; the others follow")
	// steps of one life.
	steps = flag.Int("steps", 14, "how much happens in one life")
)

const cadence = 4 * time.Millisecond // of cuts

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// together is how many lives belong to one part of the test, whose memory is kept
// until all of them have ended.
const together = 100

// TestLives plays them; -seed N -seeds 1 plays one again.
func TestLives(t *testing.T) {
	for from, end := *first, *first+uint64(*seeds); from < end; from += together {
		t.Run(fmt.Sprintf("from=%d", from), func(t *testing.T) {
			for seed := from; seed < min(from+together, end); seed++ {
				t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
					t.Parallel()
					play(t, seed)
				})
			}
		})
	}
}

// line is what the agent dials through: all its connections can be broken at once.
type line struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (l *line) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close() // the agent's own close follows
	}
	l.conns = nil
}

// life is one machine's.
type life struct {
	*testing.T
	r      *rig.Rig
	rnd    *rand.Rand
	line   *line
	relay  *proxy.Relay // the line's other end, inside TLS
	fs     *crashfs.FS
	epoch  ident.Epoch
	disks  int                  // made so far
	points map[ident.Seq]string // what the disks were at points that were seen
	log    []string
}

// Bounds of a life.
const (
	maxDisks  = 3
	maxBlocks = 400 // of one disk
)

func play(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	sizes := []int64{int64(60+rnd.IntN(200)) * rig.Block}
	if rnd.IntN(2) > 0 {
		sizes = append(sizes, int64(1+rnd.IntN(100))*rig.Block+int64(rnd.IntN(8))*512)
	}
	l := &life{T: t, r: rig.New(t, sizes...), rnd: rnd, line: &line{}, fs: crashfs.New(), epoch: 1, disks: len(sizes), points: map[ident.Seq]string{}}
	l.r.FS, l.r.Dial = l.fs, l.line.dial
	require.NoError(t, durable.MkdirAll(l.fs, l.r.Dir, 0o700))
	// An address of its own, which stays free while the server is down.
	l.r.Address = fmt.Sprintf("127.%d.%d.%d:9443", 1+seed>>16&0x7f, seed>>8&0xff, seed&0xff)
	relay, err := proxy.NewRelay(l.r.Address, l.r.CA.Server(rig.ServerPeer), l.r.CA.Client(l.r.AgentPeer(), rig.ServerPeer))
	require.NoError(t, err)
	t.Cleanup(func() { l.r.StopAgent(); relay.Close() })
	l.relay, l.r.Via = relay, relay.Address()
	l.r.Compression = []codec.Choice{{}, {Codec: "zstd"}, {Codec: "none"}, {At: codec.AtServer}}[rnd.IntN(4)]
	defer func() {
		if t.Failed() {
			t.Logf("seed %d: %v", seed, l.log)
		}
	}()
	for range rnd.IntN(60) {
		l.write()
	}
	l.r.StartServer()
	l.r.Grant(l.epoch, cadence)
	l.r.StartAgent(l.epoch)
	for range *steps {
		l.step()
	}
	l.cut()
	l.r.StopAgent()
	l.check()
}

// step does one thing that may happen.
func (l *life) step() {
	acts := []struct {
		name   string
		weight int
		do     func()
	}{
		{"write", 6, l.burst}, {"cut", 4, l.cut}, {"line breaks", 3, l.line.cut}, {"frames", 3, l.frames},
		{"agent restarts", 2, l.restartAgent}, {"server restarts", 1, l.restartServer}, {"power fails", 3, l.powerCut},
		{"resync", 1, l.resync}, {"new owner", 1, l.newOwner}, {"disk grows", 1, l.grow}, {"disk shrinks", 1, l.shrink},
		{"disk comes", 1, l.addDisk}, {"disk goes", 1, l.removeDisk}, {"disk replaced", 1, l.replaceDisk}, {"twin", 1, l.twin},
	}
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	n := l.rnd.IntN(total)
	for _, a := range acts {
		if n -= a.weight; n < 0 {
			l.log = append(l.log, a.name)
			a.do()
			return
		}
	}
}

// write changes some blocks of one disk, or punches them out.
func (l *life) write() {
	d := l.r.Disks[l.rnd.IntN(len(l.r.Disks))]
	blocks := d.Size / rig.Block
	at := l.rnd.Int64N(blocks)
	n := min(1+l.rnd.Int64N(9), blocks-at)
	f, err := os.OpenFile(l.r.Path(d.BackingUUID), os.O_WRONLY, 0)
	require.NoError(l, err)
	kind := l.rnd.IntN(5) // discard, zeros, text, noise, noise
	if kind == 0 {
		require.NoError(l, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at*rig.Block, n*rig.Block))
		require.NoError(l, f.Close())
		return
	}
	data := make([]byte, n*rig.Block)
	for i := range data {
		switch kind {
		case 1:
		case 2:
			data[i] = "drover "[i%7]
		default:
			data[i] = byte(l.rnd.Uint32())
		}
	}
	_, err = f.WriteAt(data, at*rig.Block)
	require.NoError(l, err)
	require.NoError(l, f.Close())
}

func (l *life) burst() {
	for range 1 + l.rnd.IntN(20) {
		l.write()
	}
}

// cut waits for a point of the disks as they are now, and remembers it.
func (l *life) cut() {
	p := l.r.AfterNow()
	want := l.r.Digest()
	require.Equal(l, want, l.r.DigestAt(p), "point %d is not what the disks are", p.ID)
	l.points[p.ID] = want
}

// check compares all points that were seen.
func (l *life) check() {
	there := map[ident.Seq]bool{}
	for _, p := range l.r.Points() {
		there[p.ID] = true
		if want, ok := l.points[p.ID]; ok {
			require.Equal(l, want, l.r.DigestAt(p), "point %d has changed", p.ID)
		}
	}
	for id := range l.points {
		require.True(l, there[id], "point %d is gone", id)
	}
}

func (l *life) restartAgent() {
	l.r.StopAgent()
	if l.rnd.IntN(2) > 0 {
		l.burst()
	}
	l.r.StartAgent(l.epoch)
}

func (l *life) restartServer() {
	l.r.StopServer()
	l.burst()
	l.r.StartServer()
}

// powerCut lets the server's file system fail somewhere in its work, and goes on with
// what is left of it. What was acknowledged must be there.
func (l *life) powerCut() {
	l.fs.CutAfter(l.rnd.IntN(120))
	l.burst()
	time.Sleep(time.Duration(l.rnd.IntN(8)) * time.Millisecond)
	l.fs.CutAfter(0)
	l.line.cut()
	l.r.DropServer()
	l.fs = l.fs.Crash(l.rnd.Uint64())
	l.r.FS = l.fs
	l.r.StartServer()
	require.Nil(l, l.r.Status().Broken)
	l.check()
}

func (l *life) resync() {
	ctx := l.Context()
	require.NoError(l, l.r.Server.MarkBroken(ctx, l.r.Machine, l.epoch, pipe.Broken{Code: "DRV-3001", Cause: "test", Since: time.Now()}))
	l.burst()
	require.NoError(l, l.r.Server.StartBase(ctx, l.r.Machine, l.epoch, "test", l.rnd.IntN(2) > 0))
	if l.rnd.IntN(2) > 0 {
		l.check() // also while the new generation is not complete
	}
}

func (l *life) newOwner() {
	l.epoch++
	l.r.StopAgent()
	l.r.Grant(l.epoch, cadence)
	l.r.StartAgent(l.epoch)
}

// reshape puts a change of the machine's disks into force, sometimes while the agent
// runs with the old ones for a while.
func (l *life) reshape(change func()) {
	if l.rnd.IntN(2) > 0 {
		l.r.StopAgent()
		change()
		l.r.Grant(l.epoch, cadence)
		l.r.StartAgent(l.epoch)
		return
	}
	change()
	time.Sleep(time.Duration(l.rnd.IntN(5)) * time.Millisecond)
	l.r.Grant(l.epoch, cadence)
	l.r.Assign(l.epoch)
}

// resize gives a disk another size. The file is another's at once, the grant's and the
// agent's follow.
func (l *life) resize(by int64) {
	l.reshape(func() {
		d := &l.r.Disks[l.rnd.IntN(len(l.r.Disks))]
		size := d.Size + by*512
		if size < rig.Block || size > maxBlocks*rig.Block {
			return
		}
		d.Size = size
		require.NoError(l, os.Truncate(l.r.Path(d.BackingUUID), size))
	})
}

func (l *life) grow()   { l.resize(int64(1 + l.rnd.IntN(40))) }
func (l *life) shrink() { l.resize(-int64(1 + l.rnd.IntN(40))) }

func (l *life) addDisk() {
	if len(l.r.Disks) == maxDisks {
		return
	}
	l.reshape(func() {
		l.r.AddDisk(fmt.Sprintf("disk-%d", l.disks), int64(1+l.rnd.IntN(60))*rig.Block)
		l.disks++
		l.write()
	})
}

func (l *life) removeDisk() {
	if len(l.r.Disks) == 1 {
		return
	}
	l.reshape(func() {
		i := l.rnd.IntN(len(l.r.Disks))
		l.r.Disks = slices.Delete(slices.Clone(l.r.Disks), i, i+1)
	})
}

// replaceDisk puts another disk of the same size under the same name, and tells nobody.
func (l *life) replaceDisk() {
	d := l.r.Disks[l.rnd.IntN(len(l.r.Disks))]
	path := l.r.Path(d.BackingUUID)
	content := make([]byte, min(d.Size, 3*rig.Block))
	for i := range content {
		content[i] = byte(l.rnd.Uint32())
	}
	require.NoError(l, os.WriteFile(path+".new", content, 0o600))
	require.NoError(l, os.Truncate(path+".new", d.Size))
	require.NoError(l, os.Rename(path+".new", path))
}

// frames lets one of the frames that the agent sends come twice, never, spoilt, or after
// the next one.
func (l *life) frames() {
	t := &tampering{after: l.rnd.IntN(12), how: l.rnd.IntN(4)}
	l.relay.SetTamper(t.frame)
	l.burst()
	time.Sleep(time.Duration(l.rnd.IntN(20)) * time.Millisecond)
	l.relay.SetTamper(nil)
	l.line.cut() // nobody waits long for what never came
}

// tampering is done to one frame.
type tampering struct {
	mu         sync.Mutex
	after, how int
	held       []byte
	done       bool
}

func (t *tampering) frame(f []byte) [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.after--; t.after > 0 || t.done {
		return [][]byte{f}
	}
	if t.how == 0 && t.held == nil { // until the next one
		t.held = f
		return nil
	}
	t.done = true
	switch t.how {
	case 0:
		return [][]byte{f, t.held}
	case 1:
		return [][]byte{f, f}
	case 2:
		return nil
	}
	f[len(f)-1] ^= 1
	return [][]byte{f}
}

// twin lets a second agent of the same machine push the first one out, and back.
func (l *life) twin() {
	stop := l.r.Twin(l.epoch)
	l.burst()
	time.Sleep(time.Duration(l.rnd.IntN(10)) * time.Millisecond)
	stop()
}
