package session

import (
	"runtime"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/failpoint"
	"drover/datapath/ordered"
	"drover/datapath/waterfall"
	"drover/datapath/wire"
)

// Bounds of what is on its way from the tracker to the line: at most packs chunks,
// each with its data twice.
const (
	maxPackers = 4 // goroutines that encode
	packsMore  = 4 // chunks beside those that are being encoded
	// adaptEvery is how many chunks are looked at before the codec is changed, and
	// adaptBy how many times longer the line must take than encoding, or the reverse.
	adaptEvery = 32
	adaptBy    = 2
)

// pack is a chunk on its way to the line, or a message that keeps its place among
// them.
type pack struct {
	message wire.Message // Begin or End; then the rest means nothing
	plain   []byte       // of all extents, one after the other
	coded   []byte       // memory to encode into
	with    codec.Codec
	lap     waterfall.Lap
	data    wire.Data
	sums    []uint64 // of all extents
}

// packer gathers extents into chunks, encodes them on several goroutines and sends
// them in order.
type packer struct {
	conn  *wire.Conn
	queue *ordered.Queue[*pack]
	free  chan *pack
	open  *pack // being filled
	times waterfall.Table

	// of the goroutine that sends
	codec   chan codec.Codec // of size 1: what is encoded with now
	adapt   bool
	looked  int
	encoded time.Duration
	sent    time.Duration
}

func newPacker(conn *wire.Conn, c codec.Codec, adapt bool) *packer {
	workers := min(runtime.GOMAXPROCS(0), maxPackers)
	k := &packer{conn: conn, adapt: adapt, free: make(chan *pack, workers+packsMore), codec: make(chan codec.Codec, 1)}
	k.codec <- c
	for range cap(k.free) {
		k.free <- nil // made when needed
	}
	k.queue = ordered.New(workers, cap(k.free), k.encode, k.send)
	return k
}

// add takes an extent; its memory is the caller's again afterwards. hashed is what
// the tracker has spent for checksums since the last call.
func (k *packer) add(e changeset.Extent, hashed time.Duration) error {
	if p := k.open; p != nil && (p.data.Disk != e.Disk || len(p.data.Extents) == changeset.MaxChunk || len(p.plain)+len(e.Data) > changeset.MaxExtentBytes) {
		if err := k.flush(); err != nil {
			return err
		}
	}
	if k.open == nil {
		k.begin(e.Disk)
	}
	p := k.open
	p.lap.Done(waterfall.Read)
	p.lap.Move(waterfall.Read, waterfall.Hash, hashed)
	p.plain = append(p.plain, e.Data...)
	from := len(p.sums)
	p.sums = append(p.sums, e.Sums...)
	e.Data, e.Sums = nil, p.sums[from:len(p.sums):len(p.sums)]
	if e.Zero {
		e.Sums = nil
	}
	p.data.Extents = append(p.data.Extents, e)
	return nil
}

// begin takes an empty pack, waiting for one that was sent.
func (k *packer) begin(disk int) {
	lap := waterfall.Start()
	p := <-k.free
	if p == nil {
		p = &pack{plain: make([]byte, 0, changeset.MaxExtentBytes), sums: make([]uint64, 0, 2*changeset.MaxChunk)}
	}
	lap.Done(waterfall.Compress)
	p.plain, p.sums, p.lap = p.plain[:0], p.sums[:0], lap
	p.data = wire.Data{Chunk: changeset.Chunk{Disk: disk, Extents: p.data.Extents[:0]}}
	k.open = p
}

// flush puts the open chunk on its way.
func (k *packer) flush() error {
	p := k.open
	if p == nil {
		return nil
	}
	k.open = nil
	p.with = <-k.codec
	k.codec <- p.with
	return k.queue.Put(p)
}

// tell sends a message after all that was added before.
func (k *packer) tell(m wire.Message) error {
	if err := k.flush(); err != nil {
		return err
	}
	return k.queue.Put(&pack{message: m})
}

// drain waits until all that was added is on the line.
func (k *packer) drain() error {
	if err := k.flush(); err != nil {
		return err
	}
	return k.queue.Drain()
}

// close ends the packer's goroutines; what was not sent is lost. The line is closed.
func (k *packer) close() { _ = k.queue.Close() }

func (k *packer) encode(p *pack) error {
	if p.message != nil {
		return nil
	}
	if p.with != codec.None && p.coded == nil {
		p.coded = compress.Memory()
	}
	p.data.Data, p.data.Codec = compress.Encode(p.with, p.coded, p.plain)
	p.lap.Done(waterfall.Compress)
	return nil
}

func (k *packer) send(p *pack, err error) error {
	if p.message != nil {
		if end, ok := p.message.(*wire.End); ok {
			end.Times = k.times.Take()
		}
		if err == nil {
			err = k.conn.Send(p.message)
		}
		return err
	}
	if err == nil {
		err = k.conn.Send(&p.data)
		failpoint.Hit(failpoint.AgentSend)
	}
	if err == nil {
		p.lap.Done(waterfall.Net)
		k.times.Add(p.data.Disk, p.lap.Times())
		k.look(p)
	}
	k.free <- p // there is room: it came from there
	return err
}

// look goes to a codec that saves more while the line is what takes longest, and
// back when encoding is.
func (k *packer) look(p *pack) {
	if !k.adapt {
		return
	}
	k.encoded += p.lap.Spent[waterfall.Compress]
	k.sent += p.lap.Spent[waterfall.Net]
	if k.looked++; k.looked < adaptEvery {
		return
	}
	c := <-k.codec
	switch {
	case k.sent > adaptBy*k.encoded:
		c = codec.Zstd
	case k.encoded > adaptBy*k.sent:
		c = codec.S2
	}
	k.codec <- c
	k.looked, k.encoded, k.sent = 0, 0, 0
}
