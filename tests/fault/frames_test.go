package fault

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/wire"
	"drover/tests/fault/proxy"
	"drover/tests/rig"
)

// tail is a disk's size whose last block is short, so that conversations are small.
const tail = 16*rig.Block + 512

// conversation is all that a small session says, frame by frame.
func (p *peer) conversation() []frame {
	content := bytes.Repeat([]byte("drover"), 100)[:512]
	short := p.data(0, 16, content)
	coded, with := compress.Encode(codec.Zstd, nil, content)
	require.Equal(p.t, codec.Zstd, with)
	short.Data, short.Codec = coded, with
	zeros := p.data(0, 3, content)
	zeros.Extents[0].Zero, zeros.Extents[0].Length, zeros.Extents[0].Sums, zeros.Data = true, rig.Block, nil, nil
	return []frame{p.of(wire.KindBegin, p.begin()), p.of(wire.KindData, short), p.of(wire.KindData, zeros), p.of(wire.KindEnd, p.finish(2))}
}

func sealed(frames []frame) [][]byte {
	out := make([][]byte, len(frames))
	for i, f := range frames {
		out[i] = f.seal()
	}
	return out
}

// accepted checks that the conversation is one that the server takes.
func accepted(t *testing.T, r *rig.Rig) {
	t.Helper()
	p := join(t, r)
	p.write(sealed(p.conversation())...)
	code, acks := p.end()
	require.Zero(t, code)
	require.Equal(t, 1, acks)
	quiet(r)
}

// TestCase25EveryByteOfAConversation flips a bit in each byte of each frame. The server
// refuses it, or waits for more when the frame says that it is longer; nothing of it is
// kept. (Every single bit, and what the agent makes of the server's frames: datapath/wire
// TestEveryFlippedBitIsNoticed.)
func TestCase25EveryByteOfAConversation(t *testing.T) {
	r := still(t, tail)
	accepted(t, r)
	before := quiet(r)
	const greeting = -1
	lengths := map[int]int{}
	for n := greeting; n < 4; n++ {
		for at := 0; at == 0 || at < lengths[n]; at++ {
			var p *peer
			var frames [][]byte
			if n == greeting {
				p = connect(t, r)
				frames = [][]byte{p.of(wire.KindHello, hello(r)).seal()}
			} else {
				p = join(t, r)
				frames = sealed(p.conversation())[:n+1]
			}
			bad := frames[len(frames)-1]
			lengths[n] = len(bad)
			bad[at] ^= 1 << (at % 8)
			p.write(frames...)
			code, acks := p.end()
			require.Zero(t, acks)
			switch inLength := at >= 8 && at < 12; {
			case at == 4:
				require.Equal(t, wire.CodeVersion, code)
			case inLength && code == 0: // it waited for the rest
			default:
				require.Equal(t, wire.CodeBadFrame, code, "frame %d byte %d", n, at)
			}
		}
		unchanged(t, r, before, "after damage")
	}
	require.Greater(t, lengths[greeting], 150)
	accepted(t, r)
}

// TestCase05WholeFrames: frames that come twice, not at all, or in another order, with
// their own numbers and with numbers made right.
func TestCase05WholeFrames(t *testing.T) {
	r := still(t, tail)
	before := quiet(r)
	type change struct {
		name string
		make func(f []frame) []frame
		// harmless: with new numbers it is a conversation like any other.
		harmless bool
	}
	var changes []change
	for n := range 4 {
		changes = append(changes, change{"without frame " + string(rune('0'+n)), func(f []frame) []frame { return slices.Delete(slices.Clone(f), n, n+1) }, n == 3})
		if n < 3 {
			changes = append(changes,
				change{"twice frame " + string(rune('0'+n)), func(f []frame) []frame { return slices.Insert(slices.Clone(f), n, f[n]) }, false},
				change{"swapped from frame " + string(rune('0'+n)), func(f []frame) []frame {
					f = slices.Clone(f)
					f[n], f[n+1] = f[n+1], f[n]
					return f
				}, n == 1})
		}
	}
	for _, c := range changes {
		for _, renumbered := range []bool{false, true} {
			if renumbered && c.harmless {
				continue
			}
			p := join(t, r)
			frames := c.make(p.conversation())
			if renumbered {
				for i := range frames {
					frames[i].number = uint64(i) + 2 // the hello was the first
				}
			}
			p.write(sealed(frames)...)
			if c.name == "without frame 3" { // no end: it does not exist
				code, acks := p.end()
				require.Zero(t, code)
				require.Zero(t, acks)
			} else {
				code, acks := p.outcome()
				require.Equal(t, wire.CodeBadFrame, code, "%s, renumbered %t", c.name, renumbered)
				require.Zero(t, acks)
			}
			unchanged(t, r, before, c.name)
		}
	}
	accepted(t, r)
}

// TestCase05FramesOfARealAgent: the same to a real agent's frames, which comes back and
// goes on.
func TestCase05FramesOfARealAgent(t *testing.T) {
	r := still(t, tail, 64*rig.Block)
	relay, err := proxy.NewRelay(r.Address, r.CA.Server(rig.ServerPeer), r.CA.Client(r.AgentPeer(), rig.ServerPeer))
	require.NoError(t, err)
	t.Cleanup(func() { r.StopAgent(); relay.Close() })
	r.Via = relay.Address()
	r.IdleTimeout = 4 * idle // of the agent: its pings, by which the server notices what is missing, come the sooner
	r.StartAgent(1)
	r.AfterNow()
	var last []byte
	for name, tamper := range map[string]proxy.Tamper{
		"twice":   func(f []byte) [][]byte { return [][]byte{f, f} },
		"never":   func([]byte) [][]byte { return nil },
		"swapped": func(f []byte) [][]byte { held := last; last = nil; return [][]byte{f, held} },
		"spoilt":  func(f []byte) [][]byte { f[len(f)-1] ^= 0x80; return [][]byte{f} },
	} {
		for kind := wire.KindBegin; kind <= wire.KindEnd; kind++ {
			if kind == wire.KindEnd-1 { // no kind any more
				continue
			}
			ended, done := len(r.Ended()), false
			last = nil
			relay.SetTamper(func(f []byte) [][]byte { // one at a time: there is one session
				switch {
				case done:
				case name == "swapped" && last == nil && wire.Kind(f[5]) == kind:
					last = f
					return nil
				case name == "swapped" && last != nil, name != "swapped" && wire.Kind(f[5]) == kind:
					done = true
					return tamper(f)
				}
				return [][]byte{f}
			})
			r.Write(1, int64(kind), bytes.Repeat([]byte(name), rig.Block)[:rig.Block])
			require.Eventually(t, func() bool { return len(r.Ended()) > ended }, soon, often, "%s: %s", name, kind)
			require.Equal(t, wire.CodeBadFrame, refusal(r.Ended()[ended:]).Code)
			relay.SetTamper(nil)
			require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
		}
	}
	require.Nil(t, r.Status().Broken)
	require.Equal(t, uint32(1), r.Status().Generation)
}

// replay is what a peer says with frames of a session before, and how that is refused.
type replay struct {
	want wire.Code
	say  func(p *peer) [][]byte
}

func replays(r *rig.Rig, recorded []frame) map[string]replay {
	return map[string]replay{
		"as they were": {wire.CodeBadFrame, func(*peer) [][]byte { return sealed(recorded) }},
		"with this session's nonce": {wire.CodeGap, func(p *peer) [][]byte {
			again := slices.Clone(recorded)
			for i := range again {
				again[i].nonce = p.nonce
			}
			return sealed(again)
		}},
		"in the middle of a set": {wire.CodeBadFrame, func(p *peer) [][]byte {
			return [][]byte{p.conversation()[0].seal(), recorded[1].seal()}
		}},
		"without a nonce": {wire.CodeBadFrame, func(p *peer) [][]byte {
			f := p.conversation()[0]
			f.nonce = 0
			return [][]byte{f.seal()}
		}},
		"an earlier hello": {wire.CodeBadFrame, func(p *peer) [][]byte {
			f := p.of(wire.KindHello, hello(r))
			f.nonce, f.number = 0, 1
			return [][]byte{f.seal()}
		}},
		"data of another disk": {wire.CodeBadFrame, func(p *peer) [][]byte {
			d := p.data(0, 2, bytes.Repeat([]byte("x"), rig.Block))
			d.Disk, d.Extents[0].Disk = 1, 1
			return [][]byte{p.of(wire.KindBegin, p.begin()).seal(), p.of(wire.KindData, d).seal()}
		}},
		"data of another place": {wire.CodeBadFrame, func(p *peer) [][]byte {
			d := p.data(0, 2, bytes.Repeat([]byte("x"), rig.Block))
			d.Extents[0].Offset += rig.Block
			return [][]byte{p.of(wire.KindBegin, p.begin()).seal(), p.of(wire.KindData, d).seal()}
		}},
	}
}

// TestCase29ReplayedAndSplicedFrames: frames of an earlier session, of an older epoch and
// of another disk.
func TestCase29ReplayedAndSplicedFrames(t *testing.T) {
	r := still(t, tail, tail)
	p := join(t, r)
	recorded := p.conversation()
	p.write(sealed(recorded)...)
	code, acks := p.end()
	require.Zero(t, code)
	require.Equal(t, 1, acks)
	before := quiet(r)
	for name, c := range replays(r, recorded) {
		p := join(t, r)
		p.write(c.say(p)...)
		code, acks := p.outcome()
		require.Equal(t, c.want, code, name)
		require.Zero(t, acks, name)
		unchanged(t, r, before, name)
	}
	old := join(t, r) // a session of epoch 1 that is open while the epoch is raised
	r.Grant(2, cut)
	before = quiet(r)
	old.write(sealed(old.conversation())...)
	code, acks = old.outcome()
	require.Equal(t, wire.CodeStopped, code)
	require.Zero(t, acks)
	_, code = greet(t, r, hello(r))
	require.Equal(t, wire.CodeEpoch, code, "a hello of epoch 1")
	unchanged(t, r, before, "an older epoch")
}
