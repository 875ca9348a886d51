package fault

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
	"drover/tests/rig"
)

// hostile is a frame that must be refused, in a session that was agreed.
type hostile struct {
	name string
	want wire.Code
	make func(p *peer) frame
}

// patched is a message's frame whose payload has other bytes at an offset.
func (p *peer) patched(kind wire.Kind, m wire.Message, at int, b []byte) frame {
	f := p.of(kind, m)
	copy(f.payload[at:], b)
	return f
}

func u64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// Where fields are in the payload of a Data with one extent; see FORMAT.md.
const (
	atDisk, atCodec, atCount  = 0, 4, 5
	atZero, atOffset, atBytes = 7, 8, 16
)

func (p *peer) patchedData(at int, b []byte) frame {
	return p.patched(wire.KindData, p.data(0, 1, bytes.Repeat([]byte("x"), rig.Block)), at, b)
}

func (p *peer) zeros(offset, length uint64) frame {
	e := changeset.Extent{Offset: 0, Length: rig.Block, Zero: true}
	f := p.of(wire.KindData, &wire.Data{Chunk: changeset.Chunk{Extents: []changeset.Extent{e}}})
	copy(f.payload[atOffset:], u64(offset))
	copy(f.payload[atBytes:], u64(length))
	return f
}

// lengths are hostile lengths, offsets and counts.
func lengths() []hostile {
	out := []hostile{}
	for kind := wire.KindHello; kind <= wire.KindPong; kind++ {
		for _, n := range []uint32{math.MaxUint32, math.MaxInt32 + 1, math.MaxInt32, 2 << 20} {
			out = append(out, hostile{kind.String() + " that is too long", wire.CodeBadFrame, func(p *peer) frame {
				f := p.next(kind, nil)
				f.length = n
				return f
			}})
		}
	}
	negative := uint64(math.MaxUint64 - 4095)
	data := func(name string, at int, b []byte) hostile {
		return hostile{name, wire.CodeBadFrame, func(p *peer) frame { return p.patchedData(at, b) }}
	}
	zeros := func(name string, want wire.Code, offset, length uint64) hostile {
		return hostile{name, want, func(p *peer) frame { return p.zeros(offset, length) }}
	}
	return append(out,
		data("negative offset", atOffset, u64(negative)),
		data("offset not of a block", atOffset, u64(1)),
		data("offset far beyond", atOffset, u64(math.MaxInt64&^4095)),
		data("negative length", atBytes, u64(negative)),
		data("length 0", atBytes, u64(0)),
		data("length of 4 GiB", atBytes, u64(4<<30)),
		data("length not of a sector", atBytes, u64(4095)),
		data("more extents than there are", atCount, []byte{0xff, 0xff}),
		data("512 extents that are not there", atCount, []byte{0, 2}),
		data("no extents", atCount, []byte{0, 0}),
		data("disk 2^31", atDisk, []byte{0, 0, 0, 0x80}),
		data("disk 2^32-1", atDisk, []byte{0xff, 0xff, 0xff, 0xff}),
		data("a flag that is neither yes nor no", atZero, []byte{2}),
		zeros("zeros that overflow", wire.CodeBadFrame, math.MaxInt64&^4095, math.MaxInt64&^4095),
		zeros("zeros of negative length", wire.CodeBadFrame, 0, negative),
		zeros("zeros past the end of the largest disk", wire.CodeBadFrame, uint64(changeset.MaxDiskSize), 4096),
		zeros("zeros past the disk's end", wire.CodeDisks, 0, tail+512),
		zeros("zeros that end inside a block", wire.CodeBadFrame, 0, 512),
		hostile{"too many checksums asked for", wire.CodeBadFrame, func(p *peer) frame {
			return p.patched(wire.KindSumsQuery, &wire.SumsQuery{Count: 1}, 16, []byte{0xff, 0xff, 0xff, 0xff})
		}},
		hostile{"checksums from the end of time", wire.CodeBadFrame, func(p *peer) frame {
			return p.patched(wire.KindSumsQuery, &wire.SumsQuery{Count: 1}, 8, u64(math.MaxInt64))
		}},
		hostile{"checksums from before the disk", wire.CodeBadFrame, func(p *peer) frame {
			return p.patched(wire.KindSumsQuery, &wire.SumsQuery{Count: 1}, 8, u64(negative))
		}},
	)
}

// attack sends a hostile frame, inside a set where it needs one, and wants its refusal.
func attack(t *testing.T, p *peer, h hostile) {
	t.Helper()
	if f := h.make(&peer{t: t, welcome: p.welcome}); f.kind == byte(wire.KindData) {
		p.write(p.of(wire.KindBegin, p.begin()).seal())
	}
	p.write(h.make(p).seal())
	code, acks := p.outcome()
	require.Equal(t, h.want, code, h.name)
	require.Zero(t, acks, h.name)
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// crowd opens n connections, several at once, and gives the bytes that were allocated
// for each, at both ends. They talk before a welcome, so that they need not wait for
// each other.
func crowd(t *testing.T, r *rig.Rig, n int, talk func(p *peer)) uint64 {
	t.Helper()
	const workers = 8
	begin := allocated()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				p, err := dial(t, r, r.CA.Client(r.AgentPeer(), rig.ServerPeer), wire.UpgradeToken)
				if err == nil {
					talk(p)
					_ = p.conn.Close()
				}
			}
		})
	}
	wg.Wait()
	return (allocated() - begin) / uint64(n)
}

var connections = flag.Int("connections", 400, "hostile connections of TestCase26HostileLengths; make soak takes 10,000")

// TestCase26HostileLengths: they are refused before memory is allocated for them, also
// when thousands of connections send them at once.
func TestCase26HostileLengths(t *testing.T) {
	r := still(t, tail)
	before := quiet(r)
	table := lengths()
	for _, h := range table {
		attack(t, join(t, r), h)
		unchanged(t, r, before, h.name)
	}

	other := wiretest.Agent(ident.MachineID{1})
	stranger := hello(r)
	stranger.Machine, _ = other.Machine()
	honest := crowd(t, r, 100, func(p *peer) { // refused as well, after a good hello
		p.write(p.of(wire.KindHello, stranger).seal())
		_, _ = p.outcome()
	})
	var mu sync.Mutex
	refused, n := 0, 0
	each := crowd(t, r, *connections, func(p *peer) {
		f := p.of(wire.KindHello, hello(r))
		mu.Lock()
		n++
		switch n % 4 {
		case 0:
			f.length = math.MaxUint32
		case 1:
			f.length = math.MaxInt32 + 1
		case 2: // the number of disks, after two texts
			at := 16 + 8 + 8 + 48 + 2 + len("test") + 2 + len(rig.Instance)
			f.payload[at], f.payload[at+1] = 0xff, 0xff
		case 3: // the number of outstanding positions
			copy(f.payload[len(f.payload)-2:], []byte{0xff, 0xff})
		}
		mu.Unlock()
		p.write(f.seal())
		code, _ := p.outcome()
		mu.Lock()
		defer mu.Unlock()
		if code == wire.CodeBadFrame {
			refused++
		}
	})
	require.Equal(t, *connections, refused)
	t.Logf("bytes allocated per connection, both ends: hostile %d, honest %d", each, honest)
	require.Less(t, each, honest+32<<10, "nothing is allocated for what a hostile length claims")
	unchanged(t, r, before, "after all")
	accepted(t, r)
}

// TestCase27UnknownVersionTypeAndFlags: nothing is guessed.
func TestCase27UnknownVersionTypeAndFlags(t *testing.T) {
	r := still(t, tail)
	before := quiet(r)
	table := []hostile{
		{"an unknown codec", wire.CodeBadFrame, func(p *peer) frame { return p.patchedData(atCodec, []byte{7}) }},
		{"an unknown kind of set", wire.CodeBadFrame, func(p *peer) frame { return p.patched(wire.KindBegin, p.begin(), 40, []byte{3}) }},
		{"an unknown consistency", wire.CodeBadFrame, func(p *peer) frame { return p.patched(wire.KindEnd, p.finish(0), 32, []byte{9}) }},
	}
	for _, v := range []byte{0, 1, wire.Version + 1, 255} {
		table = append(table, hostile{"another version", wire.CodeVersion, func(p *peer) frame {
			f := p.of(wire.KindBegin, p.begin())
			f.version = v
			return f
		}})
	}
	for _, k := range []byte{0, byte(wire.KindPong) + 1, 100, 255} {
		table = append(table, hostile{"an unknown type", wire.CodeBadFrame, func(p *peer) frame { return p.next(wire.Kind(k), nil) }})
	}
	for _, k := range []wire.Kind{wire.KindWelcome, wire.KindAck, wire.KindSums, wire.KindCommand} {
		table = append(table, hostile{"a server's type", wire.CodeBadFrame, func(p *peer) frame { return p.next(k, make([]byte, 49)) }})
	}
	for bit := range 16 {
		table = append(table, hostile{"an unknown flag", wire.CodeBadFrame, func(p *peer) frame {
			f := p.of(wire.KindBegin, p.begin())
			f.flags = 1 << bit
			return f
		}})
	}
	for _, h := range table {
		attack(t, join(t, r), h)
	}
	unchanged(t, r, before, "after all")
	for _, token := range []string{"drover/99", "websocket", "drover"} {
		_, err := dial(t, r, r.CA.Client(r.AgentPeer(), rig.ServerPeer), token)
		require.ErrorContains(t, err, "426", token)
	}
	accepted(t, r)
}

// bombs are encoded data that is much more, or other, than it says.
func bombs(t *testing.T) map[string]func(d *wire.Data) {
	t.Helper()
	small, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	huge := small.EncodeAll(make([]byte, 64<<20), nil)
	little := small.EncodeAll(bytes.Repeat([]byte("ab"), 50), nil)
	var stream bytes.Buffer // without the size in its header
	w, err := zstd.NewWriter(&stream, zstd.WithWindowSize(8<<20))
	require.NoError(t, err)
	for range 64 {
		_, err = w.Write(make([]byte, mib))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	with := func(c codec.Codec, b []byte) func(d *wire.Data) { return func(d *wire.Data) { d.Codec, d.Data = c, b } }
	return map[string]func(d *wire.Data){
		"zstd of 64 MiB":                  with(codec.Zstd, huge),
		"zstd of 64 MiB, size not told":   with(codec.Zstd, stream.Bytes()),
		"zstd of too little":              with(codec.Zstd, little),
		"zstd of nothing":                 with(codec.Zstd, nil),
		"zstd that is none":               with(codec.Zstd, []byte("not zstd at all")),
		"s2 of 64 MiB":                    with(codec.S2, s2.Encode(nil, make([]byte, 64<<20))),
		"s2 of 4 GiB that are not there":  with(codec.S2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}),
		"s2 of too little":                with(codec.S2, s2.Encode(nil, bytes.Repeat([]byte("ab"), 50))),
		"s2 whose data is not what it is": with(codec.S2, []byte{0x80, 0x80, 0x40, 0xfe, 0xff}),
	}
}

// TestCase28DecompressionBombs: encoded data gives what its frame says, or the session
// ends; the memory is bounded. (In a file: datapath/changeset TestBombs.)
func TestCase28DecompressionBombs(t *testing.T) {
	r := still(t, 2*mib)
	before := quiet(r)
	all := bombs(t)
	for range 2 { // the second time everything is warm
		for name, spoil := range all {
			p := join(t, r)
			d := p.data(0, 0, bytes.Repeat([]byte{1}, mib))
			spoil(d)
			begin := allocated()
			p.write(p.of(wire.KindBegin, p.begin()).seal(), p.of(wire.KindData, d).seal())
			code, acks := p.outcome()
			used := allocated() - begin
			require.Equal(t, wire.CodeBadFrame, code, name)
			require.Zero(t, acks)
			require.Less(t, used, uint64(16*mib), name)
		}
		unchanged(t, r, before, "after bombs")
	}
}

// TestCase30HostileHellos: what a hello claims is a hint, or is refused; nothing is
// built from it.
func TestCase30HostileHellos(t *testing.T) {
	r := still(t, tail)
	before := quiet(r)
	other := ident.NewMachineID("vc", "another tenant's")
	const path = "../../../../etc/passwd"
	for name, c := range map[string]struct {
		want  wire.Code
		spoil func(h *wire.Hello)
	}{
		"another machine":                {wire.CodeIdentity, func(h *wire.Hello) { h.Machine = other }},
		"another machine's disk":         {wire.CodeDisks, func(h *wire.Hello) { h.Disks[0].ID = ident.NewDiskID(other, "a") }},
		"a disk of another size":         {wire.CodeDisks, func(h *wire.Hello) { h.Disks[0].Size = changeset.MaxDiskSize }},
		"a disk twice":                   {wire.CodeDisks, func(h *wire.Hello) { h.Disks = append(h.Disks, h.Disks[0]) }},
		"a path as the hardware":         {wire.CodeIdentity, func(h *wire.Hello) { h.Instance = path }},
		"no hardware":                    {wire.CodeIdentity, func(h *wire.Hello) { h.Instance = "" }},
		"an epoch to come":               {wire.CodeEpoch, func(h *wire.Hello) { h.Epoch = math.MaxUint64 }},
		"a path as the version":          {0, func(h *wire.Hello) { h.AgentVersion = path + "\x00\n" }},
		"a position ahead of the server": {0, func(h *wire.Hello) { h.Known = ident.Position{Epoch: 9, Seq: math.MaxUint64, Digest: ident.Digest{1}} }},
		"positions ahead of the server": {0, func(h *wire.Hello) {
			for i := range wire.MaxOutstanding {
				h.Outstanding = append(h.Outstanding, ident.Position{Epoch: 1, Seq: ident.Seq(1<<60 + i)})
			}
		}},
	} {
		h := hello(r)
		c.spoil(h)
		p, code := greet(t, r, h)
		require.Equal(t, c.want, code, name)
		if c.want == 0 {
			require.Equal(t, before.Spooled, p.welcome.Position, "%s: the server says where it stands", name)
			_, _ = p.end()
		}
		unchanged(t, r, before, name)
	}
	for name, begin := range map[string]func(b *wire.Begin){
		"far ahead":    func(b *wire.Begin) { b.Seq = math.MaxUint64 },
		"one too far":  func(b *wire.Begin) { b.Seq++ },
		"another past": func(b *wire.Begin) { b.Prev = ident.Digest{1} },
	} {
		p := join(t, r)
		b := p.begin()
		begin(b)
		p.write(p.of(wire.KindBegin, b).seal())
		code, _ := p.outcome()
		require.Equal(t, wire.CodeGap, code, name)
	}
	p := connect(t, r) // text that is none
	f := p.of(wire.KindHello, hello(r))
	f.payload[16+8+8+48+2] = 0xff
	p.write(f.seal())
	code, _ := p.outcome()
	require.Equal(t, wire.CodeBadFrame, code)
	unchanged(t, r, before, "after all")
	for _, name := range files(t, r.Dir) {
		require.False(t, strings.Contains(name, "etc") || strings.Contains(name, "passwd"), name)
	}
	accepted(t, r)
}
