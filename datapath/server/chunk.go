package server

import (
	"errors"
	"fmt"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ordered"
	"drover/datapath/waterfall"
	"drover/datapath/wire"
)

// Bounds of the chunks of one session that are being checked and written.
const (
	chunkWorkers = 2
	chunkDepth   = 3
	smallChunk   = 64 << 10
	// heldBytes bounds the data in memory of all sessions that waits to be applied; what
	// finds no room is read from the spool again.
	heldBytes = 160 << 20
)

// chunk is on its way into the spool.
type chunk struct {
	data  *wire.Data
	set   *receiving
	plain int64
	lap   waterfall.Lap
	coded *[]byte // memory of what the server encoded
	held  *held   // the decoded data
}

// held is memory for decoded data.
type held struct {
	s      *Server
	pooled *[]byte // nil for small data
	room   int64   // of Server.held; 0 when the data is needed only to be checked
	plain  []byte
}

// hold takes memory for plain data of the size. If there is room, the data may stay
// until it is applied. Small data is not worth a place in the pool.
func (s *Server) hold(size int64) *held {
	h := &held{s: s, room: size}
	if size > smallChunk {
		h.pooled, h.room = s.scratch.Get().(*[]byte), changeset.MaxExtentBytes
		h.plain = *h.pooled
	} else {
		h.plain = make([]byte, size)
	}
	if s.held.Add(h.room) > heldBytes {
		s.held.Add(-h.room)
		h.room = 0
	}
	return h
}

func (h *held) free() {
	h.s.held.Add(-h.room)
	if h.pooled != nil {
		h.s.scratch.Put(h.pooled)
	}
}

func (x *session) newChunks() *ordered.Queue[*chunk] {
	return ordered.New(chunkWorkers, chunkDepth, x.check, x.write)
}

// data takes a chunk whose extents must lie on the disk.
func (x *session) data(d *wire.Data) error {
	if x.open == nil {
		return refuse(wire.CodeBadFrame, 0, "data outside a change set")
	}
	if d.Disk >= len(x.header.Disks) {
		return refuse(wire.CodeDisks, 0, "data of disk %d, there are %d", d.Disk, len(x.header.Disks))
	}
	size := x.header.Disks[d.Disk].Size
	for _, e := range d.Extents {
		if e.Offset+e.Length > size {
			return refuse(wire.CodeDisks, 0, "range %d+%d of disk %d is not on the disk", e.Offset, e.Length, d.Disk)
		}
		if e.Length%checksum.BlockSize != 0 && e.Offset+e.Length != size {
			return refuse(wire.CodeBadFrame, 0, "range %d+%d of disk %d is not of whole blocks", e.Offset, e.Length, d.Disk)
		}
	}
	c := &chunk{data: d, set: x.open, plain: d.Plain(), lap: waterfall.Start()}
	x.open.extents += int64(len(d.Extents))
	x.count(d.Disk, c.plain)
	return alreadyTold(x.chunks.Put(c))
}

// errTold: the agent has been told already why the session ends.
var errTold = errors.New("the session was refused for one of its chunks")

func alreadyTold(err error) error {
	if err != nil {
		return errors.Join(errTold, errors.New(err.Error())) // no refusal that is told again
	}
	return nil
}

// check decodes a chunk and compares its blocks with their checksums; then it is
// encoded if that is the server's work. It runs beside others.
func (x *session) check(c *chunk) error {
	x.m.s.checking <- struct{}{}
	defer func() { <-x.m.s.checking }()
	d := c.data
	c.held = x.m.s.hold(c.plain)
	plain, err := compress.Decode(d.Codec, c.held.plain, d.Data, int(c.plain))
	if err != nil {
		return refuse(wire.CodeBadFrame, 0, "a chunk of disk %d at %d: %v", d.Disk, d.Extents[0].Offset, err)
	}
	if d.Codec == codec.None && c.held.room > 0 {
		plain = c.held.plain[:copy(c.held.plain, plain)]
	}
	c.held.plain = plain
	if err := sumsMatch(x.header.Disks[d.Disk].Seed, d.Extents, plain); err != nil {
		return refuse(wire.CodeBadFrame, 0, "disk %d: %v", d.Disk, err)
	}
	c.lap.Done(waterfall.Hash)
	if d.Codec == codec.None && x.encode != codec.None {
		c.coded = x.m.s.scratch.Get().(*[]byte)
		d.Data, d.Codec = compress.Encode(x.encode, *c.coded, plain)
		c.lap.Done(waterfall.Compress)
	}
	return nil
}

// sumsMatch compares the blocks of extents, one after the other in plain.
func sumsMatch(seed uint64, extents []changeset.Extent, plain []byte) error {
	for i := range extents {
		e := &extents[i]
		at := e.Offset
		for _, want := range e.Sums {
			n := min(checksum.BlockSize, int(e.Offset+e.Length-at))
			if checksum.Sum(seed, at, plain[:n]) != want {
				return fmt.Errorf("the block at %d is not what its checksum says", at)
			}
			plain, at = plain[n:], at+int64(n)
		}
	}
	return nil
}

// write adds a chunk to its change set, in order.
func (x *session) write(c *chunk, err error) error {
	if err == nil {
		err = c.set.w.Add(&c.data.Chunk)
		switch {
		case errors.Is(err, changeset.ErrTooLarge):
			err = refuse(wire.CodeBadFrame, 0, "%v", err)
		case err != nil:
			err = x.spoolError(err)
		}
	}
	if err != nil {
		x.fail(err) // at once, not with the next message
	}
	c.set.keep(c, err)
	if c.coded != nil {
		x.m.s.scratch.Put(c.coded)
	}
	disk := c.data.Disk
	c.data.Free()
	c.lap.Done(waterfall.Encrypt)
	c.set.chunks[disk]++
	c.set.waiting[disk] += c.lap.Since(c.set.begun)
	t := c.lap.Times()
	t.Chunks = 0 // counted when the set is durable
	x.m.times.Add(disk, t)
	return err
}

// keep adds a chunk's data to what the set holds in memory; a set without one of its
// chunks holds none.
func (r *receiving) keep(c *chunk, err error) {
	if c.held == nil { // it was never checked
		return
	}
	if r.held != nil && err == nil && c.held.room > 0 {
		r.held.Add(c.data.Extents, c.held.plain, c.held.free)
		return
	}
	c.held.free()
	r.held.Free()
	r.held = nil
}
