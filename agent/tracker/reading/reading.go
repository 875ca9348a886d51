// Package reading reads parts of a disk with the checksums of their blocks: several
// reads at once, because a disk answers them sooner than one after the other, and in
// order.
package reading

import (
	"context"
	"sync"
	"time"

	"drover/agent/disk"
	"drover/agent/pace"
	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ordered"
)

// How a disk is read. All memory of a reading is chunkBytes for each of readers + ahead.
const (
	// chunkBytes is how much is read at once; a run of it fits in one extent.
	chunkBytes = 512 << 10
	// readers is how many reads and checksums are under way at once: disks need some to
	// give all they have, and one processor is slower than a line.
	readers = 12
	// ahead is how many chunks are read before they are looked at.
	ahead = 8
)

// Chunk is a part of a disk that was read. A hole has neither data nor sums. It is
// valid while it is being used.
type Chunk struct {
	Offset, Length int64
	Data           []byte
	Sums           []uint64
	Hashed         time.Duration // spent for the sums
	buffer         *buffer
}

// buffer is the memory of a chunk.
type buffer struct {
	data []byte
	sums []uint64
}

// Part is what of a disk is read.
type Part struct {
	disk tracker.Disk
	of   changeset.Disk
	// next gives the first range at or after off that is read.
	next func(off int64) (start, end int64, err error)
	// holes: what lies between the ranges is handed on as zeros.
	holes bool
}

// All is a whole disk. Where it has holes they are not read.
func All(d tracker.Disk, of changeset.Disk) Part { return Part{d, of, d.NextData, true} }

// Blocks are the blocks of a disk that are set in the bitmap. Those that are cleared or
// set while they are read may be read or not.
func Blocks(d tracker.Disk, of changeset.Disk, set changes.Bitmap) Part {
	next := func(off int64) (start, end int64, err error) {
		first, last := set.Next(off/checksum.BlockSize, chunkBytes/checksum.BlockSize)
		return min(first*checksum.BlockSize, of.Size), min(last*checksum.BlockSize, of.Size), nil
	}
	return Part{d, of, next, false}
}

// Read gives the part to use, chunk by chunk in order, on another goroutine than the
// caller's. When it returns nothing is under way any more.
func Read(ctx context.Context, p Part, use func(*Chunk) error) error {
	r := &reading{Part: p, ctx: ctx, use: use, free: make(chan *buffer, ahead+readers)}
	for range cap(r.free) {
		r.free <- nil // taken when needed, so that a disk of holes costs nothing
	}
	q := ordered.New(readers, ahead, r.fill, r.hand)
	err := r.walk(q)
	defer r.giveBack()
	if closed := q.Close(); closed != nil {
		return closed // the first: walk ends by it
	}
	return err
}

// buffers are kept from one reading to the next.
var buffers = sync.Pool{New: func() any {
	return &buffer{disk.Buffer(chunkBytes), make([]uint64, 0, chunkBytes/checksum.BlockSize)}
}}

// giveBack gives the memory back; nothing uses it any more.
func (r *reading) giveBack() {
	for range len(r.free) {
		if b := <-r.free; b != nil {
			buffers.Put(b)
		}
	}
}

type reading struct {
	Part
	ctx  context.Context
	free chan *buffer
	use  func(*Chunk) error
}

// walk puts all chunks of the part into the queue.
func (r *reading) walk(q *ordered.Queue[*Chunk]) error {
	for off := int64(0); off < r.of.Size; {
		start, end, err := r.next(off)
		if err != nil {
			return err
		}
		if start > off && r.holes {
			if err := q.Put(&Chunk{Offset: off, Length: start - off}); err != nil {
				return err
			}
		}
		for off = start; off < end; {
			length := min(chunkBytes, end-off)
			if err := pace.Wait(r.ctx, length); err != nil {
				return err
			}
			c := &Chunk{Offset: off, Length: length, buffer: <-r.free}
			if c.buffer == nil {
				c.buffer = buffers.Get().(*buffer) //nolint:forcetypeassert // nothing else is in it
			}
			if err := q.Put(c); err != nil {
				return err
			}
			off += c.Length
		}
	}
	return nil
}

// fill reads a chunk and computes its sums.
func (r *reading) fill(c *Chunk) error {
	if c.buffer == nil {
		return nil
	}
	c.Data = c.buffer.data[:c.Length]
	if _, err := r.disk.ReadAt(c.Data, c.Offset); err != nil {
		return err
	}
	begin := time.Now()
	c.Sums = checksum.SumAll(c.buffer.sums[:0], r.of.Seed, c.Offset, c.Data)
	c.Hashed = time.Since(begin)
	return nil
}

// hand gives a chunk to its user and takes the memory back.
func (r *reading) hand(c *Chunk, err error) error {
	if err == nil {
		err = context.Cause(r.ctx)
	}
	if err == nil {
		err = r.use(c)
	}
	if c.buffer != nil {
		r.free <- c.buffer // there is room: it came from there
	}
	return err
}

// First is the chunk's first block, End the one after its last.
func (c *Chunk) First() int64 { return c.Offset / checksum.BlockSize }

// End is the block after the chunk's last.
func (c *Chunk) End() int64 { return checksum.Blocks(c.Offset + c.Length) }

// Sum is the checksum of a block of the chunk.
func (c *Chunk) Sum(block int64) uint64 {
	if c.Sums == nil {
		return 0
	}
	return c.Sums[block-c.First()]
}

// Emit emits the runs of blocks that are wanted, each all data or all zeros, and tells
// of each run when it was taken.
func (c *Chunk) Emit(disk int, wanted func(block int64) bool, emit tracker.Emit, taken func(first, end int64)) error {
	for b := c.First(); b < c.End(); {
		if !wanted(b) {
			b++
			continue
		}
		first, zero := b, c.Sum(b) == 0
		for b < c.End() && wanted(b) && (c.Sum(b) == 0) == zero {
			b++
		}
		off := first*checksum.BlockSize - c.Offset
		e := changeset.Extent{Disk: disk, Offset: c.Offset + off, Length: min(b*checksum.BlockSize-c.Offset, c.Length) - off, Zero: zero}
		if !zero {
			e.Data, e.Sums = c.Data[off:off+e.Length], c.Sums[first-c.First():b-c.First()]
		}
		if err := emit(e); err != nil {
			return err
		}
		taken(first, b)
	}
	return nil
}
