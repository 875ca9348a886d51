package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// The header of a frame; see FORMAT.md.
const (
	headerBytes = 32

	offMagic   = 0
	offVersion = 4
	offKind    = 5
	offFlags   = 6
	offLength  = 8
	offNonce   = 12
	offSeq     = 20
	offCRC     = 28
)

var (
	magic      = [4]byte{'D', 'R', 'V', 'W'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// side is who sends a kind of frame.
type side uint8

const (
	fromAgent  side = 1
	fromServer side = 2
)

// kinds says what each kind of frame may be: who sends it, how long its payload
// may be, whether it belongs to the handshake (before the nonce), and whether it
// may wait in the sender's buffer for what follows it.
var kinds = [...]struct {
	from      side
	max       uint32
	handshake bool
	lazy      bool
}{
	KindHello: {fromAgent, 16 + 8 + 8 + positionBytes + 2*(2+maxShortText) +
		2 + changeset.MaxDisks*diskBytes + 2 + MaxOutstanding*positionBytes, true, false},
	KindWelcome: {fromServer, 8 + 4 + 1 + positionBytes + 8 + 8 + 8 + 8 + 8 + 2 + maxShortText +
		2 + changeset.MaxDisks*diskBytes + 1 + 1, true, false},
	KindRefuse:    {fromAgent | fromServer, 2 + 8 + 2 + MaxText, true, false},
	KindBegin:     {fromAgent, 8 + 32 + 1, false, true},
	KindData:      {fromAgent, 4 + 1 + 2 + changeset.MaxChunk*extentBytes + 8*maxChunkSums + 4 + changeset.MaxExtentBytes, false, true},
	KindEnd:       {fromAgent, 8 + 8 + 8 + 8 + 1 + 1 + 1 + 8 + 2 + maxNote + 8 + 4 + 2 + changeset.MaxDisks*timesBytes, false, false},
	KindAck:       {fromServer, 1 + positionBytes, false, false},
	KindSumsQuery: {fromAgent, 4 + 4 + 8 + 4, false, false},
	KindSums:      {fromServer, 4 + 4 + 8 + 4 + 8*checksum.MaxSums, false, false},
	KindProgress:  {fromAgent, 4 + 8 + 8, false, true},
	KindCommand:   {fromServer, 1 + 4, false, false},
	KindPing:      {fromAgent | fromServer, 8, false, false},
	KindPong:      {fromAgent | fromServer, 8, false, false},

	KindVerify:       {fromServer, 8 + 8, false, false},
	KindVerifyQuery:  {fromAgent, 8 + 1 + 4 + 4 + 8 + 4 + 8 + 8, false, false},
	KindVerifySums:   {fromServer, 8 + 4 + 4 + 8 + 4 + 8*checksum.MaxSums, false, false},
	KindVerifyResult: {fromAgent, 8 + 1 + 2 + MaxText + 2 + changeset.MaxDisks*comparedBytes, false, false},

	KindBarrier: {fromServer, 8 + 1 + 1 + 8, false, false},
	KindReached: {fromAgent, 8 + 1 + 2 + maxNote, false, false},
}

// ProtocolError is a frame that must not be. It ends the session.
type ProtocolError struct {
	Code   Code
	Detail string
}

func (e *ProtocolError) Error() string {
	return "protocol error (" + e.Code.String() + "): " + e.Detail
}

func badFrame(format string, args ...any) error {
	return &ProtocolError{CodeBadFrame, fmt.Sprintf(format, args...)}
}

// frameState is what both ends of one direction count.
type frameState struct {
	from  side   // who sends in this direction
	nonce uint64 // 0 until the Welcome
	seq   uint64 // of the last frame
}

// header writes the next frame's header for the payload parts.
func (s *frameState) header(k Kind, head, tail []byte) (h [headerBytes]byte) {
	s.seq++
	copy(h[offMagic:], magic[:])
	h[offVersion] = Version
	h[offKind] = uint8(k)
	binary.LittleEndian.PutUint32(h[offLength:], uint32(len(head)+len(tail)))
	binary.LittleEndian.PutUint64(h[offNonce:], s.nonce)
	binary.LittleEndian.PutUint64(h[offSeq:], s.seq)
	crc := crc32.Update(0, castagnoli, h[:offCRC])
	crc = crc32.Update(crc, castagnoli, head)
	crc = crc32.Update(crc, castagnoli, tail)
	binary.LittleEndian.PutUint32(h[offCRC:], crc)
	return h
}

// check judges a header before anything is allocated for its payload.
func (s *frameState) check(h *[headerBytes]byte) (Kind, uint32, error) {
	kind, length := Kind(h[offKind]), binary.LittleEndian.Uint32(h[offLength:])
	switch {
	case [4]byte(h[offMagic:]) != magic:
		return 0, 0, badFrame("no frame header: magic %x", h[offMagic:offMagic+4])
	case h[offVersion] != Version:
		return 0, 0, &ProtocolError{CodeVersion, fmt.Sprintf("protocol version %d, want %d: upgrade the older side", h[offVersion], Version)}
	case int(kind) >= len(kinds) || kinds[kind].max == 0:
		return 0, 0, badFrame("unknown %s", kind)
	case binary.LittleEndian.Uint16(h[offFlags:]) != 0:
		return 0, 0, badFrame("%s with unknown flags %#x", kind, h[offFlags:offFlags+2])
	case kinds[kind].from&s.from == 0:
		return 0, 0, badFrame("%s comes from the wrong side", kind)
	case length > kinds[kind].max:
		return 0, 0, badFrame("%s of %d bytes, at most %d", kind, length, kinds[kind].max)
	case s.nonce == 0 && !kinds[kind].handshake:
		return 0, 0, badFrame("%s before the session was agreed", kind)
	case s.nonce != 0 && kinds[kind].handshake && kind != KindRefuse:
		return 0, 0, badFrame("%s in a session that was agreed already", kind)
	case binary.LittleEndian.Uint64(h[offNonce:]) != s.nonce:
		return 0, 0, badFrame("%s of another session (nonce differs)", kind)
	case binary.LittleEndian.Uint64(h[offSeq:]) != s.seq+1:
		return 0, 0, badFrame("%s has frame number %d, want %d", kind, binary.LittleEndian.Uint64(h[offSeq:]), s.seq+1)
	}
	return kind, length, nil
}

// next reads one frame. The payload lies in buf's memory, grown when needed, and
// is valid until the next call with it.
func (s *frameState) next(r io.Reader, buf *[]byte) (Kind, []byte, error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	kind, length, err := s.check(&h)
	if err != nil {
		return 0, nil, err
	}
	if cap(*buf) < int(length) {
		*buf = memory(int(length))
	}
	payload := (*buf)[:length:length]
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	crc := crc32.Update(crc32.Update(0, castagnoli, h[:offCRC]), castagnoli, payload)
	if crc != binary.LittleEndian.Uint32(h[offCRC:]) {
		return 0, nil, badFrame("%s of %d bytes is damaged (CRC-32C differs)", kind, length)
	}
	s.seq++
	return kind, payload, nil
}

const (
	// smallPayload is up to where memory of the right size is made for a payload.
	smallPayload = 64 << 10
	// dataMemory is what holds any payload.
	dataMemory = MaxFrame
)

// memories are used again for the data of large chunks.
var memories = sync.Pool{New: func() any { return new([dataMemory]byte) }}

// memory for a payload whose length was checked.
func memory(n int) []byte {
	if n <= smallPayload {
		return make([]byte, n)
	}
	return memories.Get().(*[dataMemory]byte)[:]
}

func newMessage(k Kind) Message {
	switch k {
	case KindHello:
		return new(Hello)
	case KindWelcome:
		return new(Welcome)
	case KindRefuse:
		return new(Refuse)
	case KindBegin:
		return new(Begin)
	case KindData:
		return new(Data)
	case KindEnd:
		return new(End)
	case KindAck:
		return new(Ack)
	case KindSumsQuery:
		return new(SumsQuery)
	case KindSums:
		return new(Sums)
	case KindProgress:
		return new(Progress)
	case KindCommand:
		return new(Command)
	case KindPing:
		return new(Ping)
	case KindPong:
		return new(Pong)
	case KindVerify:
		return new(Verify)
	case KindVerifyQuery:
		return new(VerifyQuery)
	case KindVerifySums:
		return new(VerifySums)
	case KindVerifyResult:
		return new(VerifyResult)
	case KindBarrier:
		return new(Barrier)
	case KindReached:
		return new(Reached)
	}
	return nil
}

// decode fills m from its payload and validates it. m may alias the payload.
func decode(m Message, payload []byte) error {
	d := decoder{b: payload}
	m.unmarshal(&d)
	err := d.end()
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return badFrame("%s: %v", m.kind(), err)
	}
	return nil
}

// Marshal gives a message's payload.
func Marshal(m Message) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("send %s: %w", m.kind(), err)
	}
	var e encoder
	m.marshal(&e)
	return append(e.buf, e.tail...), nil
}

// Unmarshal reads a payload. A Data message refers to the payload's memory.
func Unmarshal(k Kind, payload []byte) (Message, error) {
	m := newMessage(k)
	if m == nil {
		return nil, badFrame("unknown %s", k)
	}
	if uint64(len(payload)) > uint64(kinds[k].max) {
		return nil, badFrame("%s of %d bytes, at most %d", k, len(payload), kinds[k].max)
	}
	if err := decode(m, payload); err != nil {
		return nil, err
	}
	return m, nil
}
