package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/waterfall"
)

var update = flag.Bool("update", false, "write testdata/frames.txt anew")

const testNonce = 0x1122334455667788

// sample is one message and who sends it.
type sample struct {
	from side
	m    Message
}

func (s sample) String() string {
	who := "agent"
	if s.from == fromServer {
		who = "server"
	}
	return s.m.kind().String() + "/" + who
}

func digestOf(b byte) (d ident.Digest) {
	for i := range d {
		d[i] = b + byte(i)
	}
	return d
}

func testDisks() []changeset.Disk {
	return []changeset.Disk{
		{ID: ident.DiskID{0xd1, 15: 1}, Size: 1 << 30, Seed: 0xfeedfacecafebeef},
		{ID: ident.DiskID{0xd2, 15: 2}, Size: 512 * 9},
	}
}

func testData(length, disk int) *Data {
	e := changeset.Extent{Disk: disk, Offset: 8192, Length: int64(length)}
	m := &Data{Chunk: changeset.Chunk{Disk: disk, Data: make([]byte, length)}}
	for i := range m.Data {
		m.Data[i] = byte(i*7 + 1)
	}
	e.Sums = checksum.SumAll(nil, 42, e.Offset, m.Data)
	m.Extents = []changeset.Extent{e}
	return m
}

// largestData has as many extents and sums as a chunk can have.
func largestData() *Data {
	m := &Data{Chunk: changeset.Chunk{Disk: changeset.MaxDisks - 1, Data: make([]byte, changeset.MaxExtentBytes)}}
	for sums := maxChunkSums; len(m.Extents) < changeset.MaxChunk; {
		n := min(2, sums-(changeset.MaxChunk-len(m.Extents)-1)) // blocks, the last of one sector
		sums -= n
		m.Extents = append(m.Extents, changeset.Extent{Disk: m.Disk, Length: int64(n-1)*checksum.BlockSize + sector, Sums: make([]uint64, n)})
	}
	return m
}

// broken is a chunk of one block with something wrong.
func broken(change func(*Data)) *Data {
	d := testData(512, 1)
	change(d)
	return d
}

// testScattered is a chunk of several extents, encoded.
func testScattered() *Data {
	m := &Data{Chunk: changeset.Chunk{Disk: 0, Codec: codec.S2, Data: []byte("not checked by the wire")}}
	m.Extents = []changeset.Extent{
		{Offset: 4096, Length: 8192, Sums: []uint64{7, 8}}, {Offset: 1 << 20, Length: 1 << 29, Zero: true}, {Offset: 1 << 15, Length: 512, Sums: []uint64{9}},
	}
	return m
}

func testZeros(disk int, offset, length int64) *Data {
	return &Data{Chunk: changeset.Chunk{Disk: disk, Extents: []changeset.Extent{{Disk: disk, Offset: offset, Length: length, Zero: true}}}}
}

func testTimes(n int) []waterfall.Times {
	out := make([]waterfall.Times, n)
	for i := range out {
		out[i].Chunks = int64(i + 1)
		for s := range out[i].Spent {
			out[i].Spent[s] = time.Duration(i*100 + s)
		}
	}
	return out
}

// samples are messages of every kind from every side that sends it, in an order
// that a session allows. The last of each side is not one that may wait.
func samples() []sample {
	at := time.Date(2024, 2, 29, 12, 34, 56, 789012345, time.UTC)
	pos := ident.Position{Epoch: 3, Seq: 77, Digest: digestOf(0x40)}
	return []sample{
		{fromAgent, &Hello{Machine: ident.MachineID{0xa1, 15: 0x1a}, Epoch: 3, AgentVersion: "1.2.3", Instance: "4209-uuid",
			Disks: testDisks(), Known: pos, Outstanding: []ident.Position{{Epoch: 3, Seq: 78, Digest: digestOf(9)}}, SourceTime: at}},
		{fromServer, &Welcome{Nonce: testNonce, Generation: 5, Mode: ModeCompare, Position: pos, KeyID: "key-é",
			Disks: testDisks(), ServerTime: at, CutInterval: 5 * time.Minute, AppInterval: time.Hour, GroupWait: 12 * time.Second, BaseSetBytes: 64 << 20, Codec: codec.S2, Adapt: true}},
		{fromAgent, &Progress{Disk: 1, Done: 4096, Total: 4608}},
		{fromAgent, &Begin{Seq: 78, Prev: digestOf(0x80), Kind: changeset.Delta}},
		{fromAgent, testData(512, 1)},
		{fromAgent, testScattered()},
		{fromAgent, &End{Seq: 78, Extents: 4, Answers: 9, Times: testTimes(2), Cut: changeset.Cut{SourceTime: at, ClockOffset: -time.Millisecond,
			Consistency: 3, Complete: true, Final: true, Freeze: 1500 * time.Millisecond, Note: "vss", Group: &changeset.Group{Round: 0x1234}}}},
		{fromAgent, &SumsQuery{Disk: 1, Level: 2, First: 1 << 33, Count: 8192}},
		{fromAgent, &VerifyQuery{ID: 7, Settle: true, Disk: 1, Level: 2, First: 1 << 20, Count: 512, Done: 5 << 20, Total: 9 << 20}},
		{fromAgent, &VerifyResult{ID: 7, TooMuch: true, Failed: "no", Disks: []Compared{{Differed: 8192, Mended: 4096, Busy: 12288, Free: 1 << 20, First: []int64{4096, 1 << 30}}, {}}}},
		{fromAgent, &Reached{Round: 0x1234, Step: StepFreeze, Missed: "busy"}},
		{fromAgent, &Pong{Time: at}},
		{fromAgent, &Refuse{Code: CodeStopped, Detail: "bye", RetryAfter: time.Second}},
		{fromServer, &Ack{Level: Stored, Position: pos}},
		{fromServer, &Sums{Disk: 1, Level: 1, First: 3, Sums: []uint64{0, 1, math.MaxUint64}}},
		{fromServer, &Command{Order: OrderFinalCut, ID: 9}},
		{fromServer, &Pong{}},
		{fromServer, &Verify{ID: math.MaxUint64, Rate: 128 << 20}},
		{fromServer, &Barrier{Round: 0x1234, Step: StepReady, Scripts: true, Within: 10 * time.Second}},
		{fromServer, &VerifySums{ID: 7, Sums: Sums{Disk: 1, Level: 2, First: 3, Sums: []uint64{0, 5}}}},
		{fromServer, &Refuse{Code: CodeFull, Detail: "the spool is full", RetryAfter: 30 * time.Second}},
	}
}

// pings are kept apart: Receive does not return them.
func pings() []sample {
	at := time.Date(2024, 2, 29, 12, 0, 0, 1, time.UTC)
	return []sample{{fromAgent, &Ping{Time: at}}, {fromServer, &Ping{Time: at}}}
}

func nonceFor(m Message) uint64 {
	if kinds[m.kind()].handshake {
		return 0
	}
	return testNonce
}

// encode gives the bytes of a frame that follows what st has counted.
func (s *frameState) encode(t testing.TB, m Message) []byte {
	t.Helper()
	payload, err := Marshal(m)
	require.NoError(t, err)
	return s.encodeRaw(m.kind(), payload)
}

func (s *frameState) encodeRaw(k Kind, payload []byte) []byte {
	h := s.header(k, payload, nil)
	return append(h[:], payload...)
}

// tape is a connection that reads prepared bytes and keeps what is written.
type tape struct {
	net.Conn
	io.Reader
	written bytes.Buffer
}

func (t *tape) Read(p []byte) (int, error)       { return t.Reader.Read(p) }
func (t *tape) Write(p []byte) (int, error)      { return t.written.Write(p) }
func (*tape) SetReadDeadline(time.Time) error    { return nil }
func (*tape) SetWriteDeadline(t time.Time) error { return nil }
func (*tape) Close() error                       { return nil }
func (*tape) CloseWrite() error                  { return nil }

// play is a Conn whose other side has sent the bytes.
func play(self side, nonce uint64, b ...[]byte) *Conn {
	c := newConn(&tape{Reader: bytes.NewReader(bytes.Join(b, nil))}, ident.Peer{}, self, nil)
	c.SetNonce(nonce)
	return c
}

func other(s side) side { return fromAgent + fromServer - s }

func requireBadFrame(t *testing.T, err error, text string) {
	t.Helper()
	var p *ProtocolError
	require.ErrorAs(t, err, &p)
	require.Equal(t, CodeBadFrame, p.Code)
	require.Contains(t, p.Detail, text)
}

func TestSamplesCoverEveryKind(t *testing.T) {
	seen := map[Kind]side{}
	for _, s := range append(samples(), pings()...) {
		seen[s.m.kind()] |= s.from
	}
	for k := KindHello; int(k) < len(kinds); k++ {
		if kinds[k].max == 0 { // of an earlier version
			require.Nil(t, newMessage(k))
			continue
		}
		require.Equal(t, kinds[k].from, seen[k], "%s", k)
		require.Equal(t, k, newMessage(k).kind())
	}
	require.Nil(t, newMessage(0))
	require.Nil(t, newMessage(KindReached+1))
}

func TestMarshalRoundTrip(t *testing.T) {
	for _, s := range append(samples(), pings()...) {
		payload, err := Marshal(s.m)
		require.NoError(t, err, "%s", s)
		got, err := Unmarshal(KindOf(s.m), payload)
		require.NoError(t, err, "%s", s)
		require.Equal(t, s.m, got)
	}
}

func TestPayloadTooShortOrTooLong(t *testing.T) {
	for _, s := range append(samples(), pings()...) {
		payload, err := Marshal(s.m)
		require.NoError(t, err)
		for n := range payload {
			_, err := Unmarshal(s.m.kind(), payload[:n])
			requireBadFrame(t, err, s.m.kind().String())
		}
		_, err = Unmarshal(s.m.kind(), append(payload, 0))
		requireBadFrame(t, err, s.m.kind().String())
	}
}

func TestUnmarshalRefusesUnknownAndOversize(t *testing.T) {
	_, err := Unmarshal(0, nil)
	requireBadFrame(t, err, "unknown kind 0")
	_, err = Unmarshal(200, nil)
	requireBadFrame(t, err, "unknown kind 200")
	_, err = Unmarshal(KindPing, make([]byte, 9))
	requireBadFrame(t, err, "at most 8")
}

// largest gives the largest valid message of each kind.
func largest() []Message {
	short, disks := strings.Repeat("s", maxShortText), make([]changeset.Disk, changeset.MaxDisks)
	for i := range disks {
		disks[i].Size = changeset.MaxDiskSize
	}
	at := time.Date(2261, 1, 1, 0, 0, 0, 0, time.UTC)
	compared := slices.Repeat([]Compared{{First: make([]int64, MaxFirst)}}, changeset.MaxDisks)
	return []Message{
		&Hello{Machine: ident.MachineID{1}, Epoch: 1, AgentVersion: short, Instance: short, Disks: disks,
			Outstanding: make([]ident.Position, MaxOutstanding)},
		&Welcome{Nonce: 1, Mode: ModeCopy, KeyID: short, Disks: disks, CutInterval: 1, BaseSetBytes: changeset.MaxBytes},
		&Refuse{Code: 1, Detail: strings.Repeat("d", MaxText)},
		&Begin{Seq: 1, Kind: changeset.Base},
		largestData(),
		&End{Seq: 1, Times: testTimes(changeset.MaxDisks), Extents: changeset.MaxExtents, Cut: changeset.Cut{SourceTime: at, Note: strings.Repeat("n", maxNote)}},
		&Ack{Level: Applied, Position: ident.Position{Seq: 1}},
		&SumsQuery{Count: checksum.MaxSums, Level: checksum.MaxLevel},
		&Sums{Sums: make([]uint64, checksum.MaxSums)},
		&Progress{Done: changeset.MaxDiskSize, Total: changeset.MaxDiskSize},
		&Command{Order: OrderRelease}, &Ping{Time: at}, &Pong{Time: at},
		&Verify{ID: 1}, &VerifyQuery{ID: 1, Count: checksum.MaxSums, Done: maxTotal, Total: maxTotal},
		&VerifySums{ID: 1, Sums: Sums{Sums: make([]uint64, checksum.MaxSums)}}, &VerifyResult{ID: 1, Disks: compared, Failed: strings.Repeat("f", MaxText)},
		&Barrier{Round: 1, Step: StepAlone, Within: maxWithin}, &Reached{Round: 1, Step: StepSend, Missed: strings.Repeat("m", maxNote)},
	}
}

func TestLargestMessagesJustFit(t *testing.T) {
	for _, m := range largest() {
		payload, err := Marshal(m)
		require.NoError(t, err, "%s", m.kind())
		require.Len(t, payload, int(kinds[m.kind()].max), "%s", m.kind())
		require.LessOrEqual(t, len(payload), MaxFrame)
		got, err := Unmarshal(m.kind(), payload)
		require.NoError(t, err)
		require.Equal(t, m.kind(), got.kind())
	}
}

// The table of FORMAT.md is what the code does.
func TestFormatTableOfKinds(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| (\w+) \| (agent|server|both) \| (\d+) \|$`).FindAllStringSubmatch(string(text), -1)
	require.Len(t, rows, len(kinds)-2, "all but 0 and 6")
	sides := map[string]side{"agent": fromAgent, "server": fromServer, "both": fromAgent | fromServer}
	k := Kind(0)
	for _, row := range rows {
		for k++; kinds[k].max == 0; k++ { // of an earlier version
		}
		require.Equal(t, strconv.Itoa(int(k)), row[1])
		require.Equal(t, k.String(), row[2])
		require.Equal(t, kinds[k].from, sides[row[3]], "%s", k)
		require.Equal(t, strconv.Itoa(int(kinds[k].max)), row[4], "%s", k)
	}
}

func TestInvalidMessagesAreNotMarshalled(t *testing.T) {
	late := time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)
	disks, pos := testDisks(), ident.Position{Seq: 1}
	bad := []Message{
		&Hello{Epoch: 1, Disks: disks}, &Hello{Machine: ident.MachineID{1}, Disks: disks}, &Hello{Machine: ident.MachineID{1}, Epoch: 1},
		&Hello{Machine: ident.MachineID{1}, Epoch: 1, Disks: disks, SourceTime: late},
		&Hello{Machine: ident.MachineID{1}, Epoch: 1, Disks: disks, Instance: "\xff"},
		&Hello{Machine: ident.MachineID{1}, Epoch: 1, Disks: []changeset.Disk{{Size: 513}}},
		&Hello{Machine: ident.MachineID{1}, Epoch: 1, Disks: disks, Outstanding: make([]ident.Position, MaxOutstanding+1)},
		&Welcome{Mode: ModeCopy, CutInterval: 1, BaseSetBytes: 1, Disks: disks},
		&Welcome{Nonce: 1, Mode: 4, CutInterval: 1, BaseSetBytes: 1, Disks: disks},
		&Welcome{Nonce: 1, Mode: ModeCopy, BaseSetBytes: 1, Disks: disks}, &Welcome{Nonce: 1, Mode: ModeCopy, CutInterval: 1, AppInterval: -1, BaseSetBytes: 1, Disks: disks}, &Welcome{Nonce: 1, Mode: ModeCopy, CutInterval: 1, Disks: disks},
		&Refuse{}, &Refuse{Code: 1, RetryAfter: -1}, &Refuse{Code: 1, Detail: strings.Repeat("x", MaxText+1)},
		&Begin{Kind: changeset.Base}, &Begin{Seq: 1, Kind: 3},
		&Data{}, broken(func(d *Data) { d.Extents[0].Zero = true }), broken(func(d *Data) { d.Extents[0].Sums = nil }),
		broken(func(d *Data) { d.Data = d.Data[:511] }), broken(func(d *Data) { d.Codec = 3 }), broken(func(d *Data) { d.Codec = codec.S2 }),
		broken(func(d *Data) { d.Extents = slices.Repeat(d.Extents, changeset.MaxChunk+1) }), broken(func(d *Data) { d.Extents[0].Disk = 2 }),
		testZeros(0, 0, 511), testZeros(0, 512, 512), testZeros(0, -4096, 4096), testZeros(64, 0, 512),
		testZeros(0, changeset.MaxDiskSize, 512), testZeros(-1, 0, 512),
		&End{Seq: 1, Extents: changeset.MaxExtents + 1}, &End{Seq: 1, Cut: changeset.Cut{Consistency: 4}}, &End{Seq: 1, Cut: changeset.Cut{Freeze: -1}},
		&End{Seq: 1, Cut: changeset.Cut{SourceTime: time.Unix(1, 0)}, Times: testTimes(changeset.MaxDisks + 1)},
		&End{Seq: 1, Cut: changeset.Cut{SourceTime: time.Unix(1, 0)}, Times: []waterfall.Times{{Chunks: -1}}},
		&Ack{Position: pos}, &Ack{Level: 4, Position: pos}, &Ack{Level: Spooled},
		&SumsQuery{}, &SumsQuery{Count: 8193}, &SumsQuery{Count: 1, Level: 8}, &SumsQuery{Count: 1, First: -1}, &Sums{Disk: 64, Sums: []uint64{1}},
		&Progress{Done: 2, Total: 1}, &Progress{Done: -1}, &Progress{Total: changeset.MaxDiskSize + 1},
		&Command{}, &Command{Order: 4}, &Ping{Time: late}, &Pong{Time: late},
		&Verify{Rate: -1}, &VerifyQuery{Count: 1}, &VerifyQuery{ID: 1, Count: 1, Done: 1}, &VerifyQuery{ID: 1, Count: 1, Done: -1},
		&VerifyQuery{ID: 1, Count: 1, Total: maxTotal + 1}, &VerifyQuery{ID: 1}, &VerifyQuery{ID: 1, Count: 513, Level: 2}, &VerifyQuery{ID: 1, Count: 1, Level: 5}, &VerifySums{Sums: Sums{Sums: []uint64{1}}}, &VerifySums{ID: 1},
		&VerifyResult{Disks: []Compared{{}}}, &VerifyResult{ID: 1}, &VerifyResult{ID: 1, Disks: make([]Compared, changeset.MaxDisks+1)},
		&VerifyResult{ID: 1, Disks: []Compared{{First: make([]int64, MaxFirst+1)}}}, &VerifyResult{ID: 1, Disks: []Compared{{Busy: -4096}}},
		&Welcome{Nonce: 1, Mode: ModeCopy, CutInterval: 1, GroupWait: -1, BaseSetBytes: 1, Disks: disks},
		&Barrier{Step: StepSend}, &Barrier{Round: 1}, &Barrier{Round: 1, Step: StepAlone + 1}, &Barrier{Round: 1, Step: StepSend, Within: -1},
		&Barrier{Round: 1, Step: StepSend, Within: maxWithin + 1}, &Reached{Step: StepSend}, &Reached{Round: 1}, &Reached{Round: 1, Step: StepSend, Missed: strings.Repeat("m", maxNote+1)},
		&VerifyResult{ID: 1, Disks: []Compared{{Differed: 1}}}, &VerifyResult{ID: 1, Disks: []Compared{{Mended: 4096}}},
	}
	for i, m := range bad {
		_, err := Marshal(m)
		require.Error(t, err, "%d: %s %+v", i, m.kind(), m)
		require.ErrorContains(t, play(fromAgent, 1).Send(m), "send "+m.kind().String())
	}
}

// Counts that the payload cannot hold are refused before memory is taken for them.
func TestCountsAreCheckedFirst(t *testing.T) {
	var data, one, sums, hello, outstanding, times encoder
	data.u32(0)
	data.u8(0)
	data.u16(changeset.MaxChunk)
	one.u32(0)
	one.u8(0)
	one.u16(1)
	one.flag(false)
	one.i64(0)
	one.i64(math.MaxInt64)
	sums.u32(0)
	sums.u32(0)
	sums.i64(0)
	sums.u32(checksum.MaxSums)
	hello.raw(make([]byte, 16+8+8+positionBytes+4))
	hello.u16(changeset.MaxDisks)
	outstanding.raw(make([]byte, 16+8+8+positionBytes+4+2))
	outstanding.u16(MaxOutstanding)
	times.raw(make([]byte, 8+8+8+8+3+8+2+8+4))
	times.u16(changeset.MaxDisks)
	for _, c := range []struct {
		k       Kind
		payload []byte
		text    string
	}{
		{KindData, data.buf, "512 extents in 0 bytes"},
		{KindData, one.buf, "extent of 9223372036854775807 bytes"},
		{KindSums, sums.buf, "8192 sums in 0 bytes"},
		{KindHello, hello.buf, "64 disks in 0 bytes"},
		{KindHello, outstanding.buf, "256 outstanding positions in 0 bytes"},
		{KindEnd, times.buf, "times of 64 disks in 0 bytes"},
		{KindVerifyResult, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 65, 0}, "results of 65 disks"},
		{KindVerifyResult, append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, append(make([]byte, 32), MaxFirst+1)...), "9 places of differences"},
	} {
		_, err := Unmarshal(c.k, c.payload)
		requireBadFrame(t, err, c.text)
	}
}

func TestBadHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		at   int
		to   []byte
		text string
	}{
		"magic":        {offMagic, []byte("DRVX"), "magic"},
		"kind 0":       {offKind, []byte{0}, "unknown kind 0"},
		"kind 99":      {offKind, []byte{99}, "unknown kind 99"},
		"flags":        {offFlags, []byte{1, 0}, "flags"},
		"wrong side":   {offKind, []byte{byte(KindAck)}, "Ack comes from the wrong side"},
		"oversize":     {offLength, []byte{9, 0, 0, 0}, "9 bytes, at most 8"},
		"huge":         {offLength, []byte{255, 255, 255, 255}, "4294967295 bytes"},
		"nonce":        {offNonce, []byte{0x89}, "nonce differs"},
		"number again": {offSeq, []byte{0}, "frame number 0, want 1"},
		"number skips": {offSeq, []byte{2}, "frame number 2, want 1"},
		"checksum":     {offCRC, []byte{1, 2, 3, 4}, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			st := frameState{from: fromAgent, nonce: testNonce}
			frame := st.encode(t, &Pong{})
			copy(frame[c.at:], c.to)
			conn := play(fromServer, testNonce, frame)
			_, err := conn.Receive()
			requireBadFrame(t, err, c.text)
			if c.at != offCRC {
				require.Nil(t, conn.payload, "memory was taken for a refused frame")
			}
		})
	}
}

func TestOtherVersionIsItsOwnCode(t *testing.T) {
	frame := (&frameState{from: fromAgent}).encode(t, samples()[0].m)
	frame[offVersion] = 1
	_, err := play(fromServer, 0, frame).Receive()
	var p *ProtocolError
	require.ErrorAs(t, err, &p)
	require.Equal(t, CodeVersion, p.Code)
	require.Equal(t, "protocol error (version): protocol version 1, want 3: upgrade the older side", err.Error())
}

func TestKindsOfTheWrongTimeOrSide(t *testing.T) {
	for _, s := range append(samples(), pings()...) {
		k := s.m.kind()
		st := frameState{from: s.from, nonce: testNonce - nonceFor(s.m)}
		_, err := play(other(s.from), st.nonce, st.encode(t, s.m)).Receive()
		if k == KindRefuse {
			require.NoError(t, err)
		} else {
			requireBadFrame(t, err, "agreed")
		}
		if kinds[k].from == s.from {
			st = frameState{from: s.from, nonce: nonceFor(s.m)}
			_, err = play(s.from, st.nonce, st.encode(t, s.m)).Receive()
			requireBadFrame(t, err, "wrong side")
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	var buf []byte
	for _, s := range append(samples(), pings()...) {
		st := frameState{from: s.from, nonce: nonceFor(s.m)}
		frame := st.encode(t, s.m)
		for bit := range 8 * len(frame) {
			frame[bit/8] ^= 1 << (bit % 8)
			in := frameState{from: s.from, nonce: st.nonce}
			_, _, err := in.next(io.MultiReader(bytes.NewReader(frame), zeros{}), &buf)
			var p *ProtocolError
			if !errors.As(err, &p) || in.seq != 0 {
				t.Fatalf("%s: bit %d flipped: %v", s, bit, err)
			}
			frame[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// The bytes of one frame of each kind, as FORMAT.md has them.
func TestGoldenFrames(t *testing.T) {
	const path = "testdata/frames.txt"
	var lines []string
	states := map[side]*frameState{fromAgent: {from: fromAgent}, fromServer: {from: fromServer}}
	all := append(append([]sample{}, samples()[:2]...), append(pings(), samples()[2:]...)...)
	for _, s := range all {
		frame := states[s.from].encode(t, s.m)
		lines = append(lines, fmt.Sprintf("%s %x %x", s, frame[:headerBytes], frame[headerBytes:]))
		if _, ok := s.m.(*Welcome); ok {
			states[fromAgent].nonce, states[fromServer].nonce = testNonce, testNonce
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	want := strings.Split(strings.TrimSpace(string(text)), "\n")
	require.Equal(t, want, lines)
	for i, line := range want {
		parts := strings.Fields(line)
		payload, err := hex.DecodeString(parts[2])
		require.NoError(t, err)
		got, err := Unmarshal(all[i].m.kind(), payload)
		require.NoError(t, err)
		require.Equal(t, all[i].m, got)
	}
}

func TestNames(t *testing.T) {
	require.Equal(t, "full", CodeFull.String())
	require.Equal(t, "code-99", Code(99).String())
	require.Equal(t, "SumsQuery", KindSumsQuery.String())
	require.Equal(t, "kind 99", Kind(99).String())
}
