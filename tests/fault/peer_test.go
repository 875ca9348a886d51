package fault

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/tests/fault/proxy"
	"drover/tests/rig"
)

// peer is a hostile program that has an agent's key: it writes frames byte by byte,
// from FORMAT.md and not with the code that is tested.
type peer struct {
	t       *testing.T
	conn    *tls.Conn
	in      *bufio.Reader
	nonce   uint64
	number  uint64
	welcome *wire.Welcome
}

// frame is a frame that can be spoilt before it is sealed.
type frame struct {
	version, kind byte
	flags         uint16
	length        uint32
	nonce, number uint64
	payload       []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal gives the frame's bytes, with a right checksum.
func (f frame) seal() []byte {
	b := append([]byte("DRVW"), f.version, f.kind)
	b = binary.LittleEndian.AppendUint16(b, f.flags)
	b = binary.LittleEndian.AppendUint32(b, f.length)
	b = binary.LittleEndian.AppendUint64(b, f.nonce)
	b = binary.LittleEndian.AppendUint64(b, f.number)
	crc := crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, f.payload)
	return append(binary.LittleEndian.AppendUint32(b, crc), f.payload...)
}

// still is a rig whose machine has a complete base and no agent, so that peers can take
// its place.
func still(t *testing.T, sizes ...int64) *rig.Rig {
	t.Helper()
	r := rig.New(t, sizes...)
	r.StartServer()
	r.Grant(1, cut)
	r.Write(0, 0, make([]byte, rig.Block))
	r.StartAgent(1)
	r.Await("complete", complete)
	r.StopAgent()
	quiet(r)
	return r
}

// quiet waits until no session is there and nothing is on its way.
func quiet(r *rig.Rig) pipe.Status {
	r.T.Helper()
	return r.Await("quiet", func(st pipe.Status) bool { return !st.Connected && st.BacklogSets == 0 && st.Applied == st.Spooled })
}

// connect opens a connection up to where frames begin.
func connect(t *testing.T, r *rig.Rig) *peer {
	t.Helper()
	p, err := dial(t, r, r.CA.Client(r.AgentPeer(), rig.ServerPeer), wire.UpgradeToken)
	require.NoError(t, err)
	return p
}

func dial(t *testing.T, r *rig.Rig, config *tls.Config, token string) (*peer, error) {
	conn, err := tls.Dial("tcp", r.Address, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	p := &peer{t: t, conn: conn, in: bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, token); err != nil {
		return nil, err
	}
	for first := ""; ; {
		line, err := p.in.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("after %q: %w", first, err)
		}
		if first == "" {
			first = line
		}
		if line == "\r\n" {
			if first != "HTTP/1.1 101 Switching Protocols\r\n" {
				return nil, fmt.Errorf("answered %q", first)
			}
			return p, nil
		}
	}
}

// next makes the frame that follows.
func (p *peer) next(kind wire.Kind, payload []byte) frame {
	p.number++
	return frame{version: wire.Version, kind: byte(kind), length: uint32(len(payload)), nonce: p.nonce, number: p.number, payload: payload}
}

// of makes the frame of a message.
func (p *peer) of(kind wire.Kind, m wire.Message) frame {
	payload, err := wire.Marshal(m)
	require.NoError(p.t, err)
	return p.next(kind, payload)
}

// write sends bytes; it is no error that the server has gone.
func (p *peer) write(b ...[]byte) {
	for _, part := range b {
		if _, err := p.conn.Write(part); err != nil {
			return
		}
	}
}

// read gives the next message, io.EOF at a polite end.
func (p *peer) read() (wire.Message, error) {
	f, err := proxy.ReadFrame(p.in)
	if err != nil {
		return nil, err
	}
	return wire.Unmarshal(wire.Kind(f[5]), f[proxy.FrameHeader:])
}

// outcome reads until the server ends it: the code of its refusal, 0 without one, and
// how many change sets were acknowledged as spooled.
func (p *peer) outcome() (code wire.Code, acks int) {
	p.t.Helper()
	for {
		m, err := p.read()
		if err != nil {
			_ = p.conn.Close()
			return code, acks
		}
		switch m := m.(type) {
		case *wire.Refuse:
			code = m.Code
		case *wire.Ack:
			if m.Level == wire.Spooled {
				acks++
			}
		}
	}
}

// end says that nothing follows and gives the outcome.
func (p *peer) end() (wire.Code, int) {
	p.t.Helper()
	_ = p.conn.CloseWrite()
	return p.outcome()
}

func hello(r *rig.Rig) *wire.Hello {
	h := &wire.Hello{Machine: r.Machine, Epoch: 1, AgentVersion: "test", Instance: rig.Instance, SourceTime: time.Now()}
	for _, d := range r.Disks {
		h.Disks = append(h.Disks, changeset.Disk{ID: d.ID, Size: d.Size})
	}
	return h
}

// greet says hello and takes the welcome. The server may be looking after the machine:
// then it is tried again.
func greet(t *testing.T, r *rig.Rig, h *wire.Hello) (p *peer, refused wire.Code) {
	t.Helper()
	require.Eventually(t, func() bool {
		p = connect(t, r)
		p.write(p.of(wire.KindHello, h).seal())
		m, err := p.read()
		require.NoError(t, err)
		refused = 0
		if no, ok := m.(*wire.Refuse); ok {
			refused = no.Code
			_ = p.conn.Close()
			return no.Code != wire.CodeBusy
		}
		p.welcome = m.(*wire.Welcome)
		p.nonce = p.welcome.Nonce
		return true
	}, soon, often)
	return p, refused
}

// join begins a session that must be accepted.
func join(t *testing.T, r *rig.Rig) *peer {
	t.Helper()
	p, code := greet(t, r, hello(r))
	require.Zero(t, code, "refused: %s", code)
	return p
}

func (p *peer) begin() *wire.Begin {
	return &wire.Begin{Seq: p.welcome.Position.Seq + 1, Prev: p.welcome.Position.Digest, Kind: changeset.Delta}
}

// data is one block, or what the disk's last block has.
func (p *peer) data(disk int, block int64, content []byte) *wire.Data {
	e := changeset.Extent{Disk: disk, Offset: block * rig.Block, Length: int64(len(content))}
	e.Sums = checksum.SumAll(nil, p.welcome.Disks[disk].Seed, e.Offset, content)
	return &wire.Data{Chunk: changeset.Chunk{Disk: disk, Extents: []changeset.Extent{e}, Data: content}}
}

func (p *peer) finish(extents int64) *wire.End {
	return &wire.End{Seq: p.welcome.Position.Seq + 1, Extents: extents,
		Cut: changeset.Cut{SourceTime: time.Now(), Consistency: ident.CrashConsistent}}
}

// unchanged checks that nothing was written since the position: not to the replica, not
// to the spool.
func unchanged(t *testing.T, r *rig.Rig, before pipe.Status, what string) {
	t.Helper()
	st := quiet(r)
	require.Equal(t, before.Spooled, st.Spooled, what)
	require.Equal(t, before.Applied, st.Applied, what)
	require.Equal(t, before.Points, st.Points, what)
	require.Empty(t, files(t, filepath.Join(r.StateDir(), "spool")), what)
}
