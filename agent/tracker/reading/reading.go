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
	// ahead is how many batches are read before they are looked at.
	ahead = 8
	// batchMost is how many chunks one reader reads. To hand a single block from goroutine
	// to goroutine takes longer than to read it from memory. Where a reader reads one after
	// the other, the first batches are smaller: few blocks are all read at once.
	batchMost = 64
	// depthFirst is how many scattered blocks are read at once where the guest is not to
	// suffer. It doubles with each patience that is spent on them.
	depthFirst = 4
	patience   = 100 * time.Millisecond
)

// several is a disk that reads many pieces at once; agent/disk has it.
type several interface {
	// AtOnce is how many; 1: one after the other.
	AtOnce() int
	// ReadAll fills pieces, each as ReadAt does.
	ReadAll(pieces []disk.Piece) error
}

// Chunk is a part of a disk that was read. A hole has neither data nor sums. It is
// valid while it is being used.
type Chunk struct {
	Offset, Length int64
	Data           []byte
	Sums           []uint64
	Hashed         time.Duration // spent for the sums
}

// batch is what one reader reads: chunks in order, whose data fits in one buffer.
type batch struct {
	chunks []Chunk
	bytes  int64   // of their data
	buffer *buffer // nil while there is none
}

// buffer is the memory of a batch.
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
	if d, ok := p.disk.(several); ok && d.AtOnce() > 1 {
		r.several = d
	}
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

	several several       // nil: the disk reads one piece after the other
	gentle  sync.Mutex    // held by who reads gently
	spent   time.Duration // by reading gently
	open    *batch        // being filled; of the goroutine that walks
	batches int           // that were put into the queue
}

// walk puts all chunks of the part into the queue.
func (r *reading) walk(q *ordered.Queue[*batch]) error {
	for off := int64(0); off < r.of.Size; {
		start, end, err := r.next(off)
		if err != nil {
			return err
		}
		if start > off && r.holes {
			if err := r.add(q, Chunk{Offset: off, Length: start - off}, 0); err != nil {
				return err
			}
		}
		for off = start; off < end; {
			length := min(chunkBytes, end-off)
			if err := pace.Wait(r.ctx, length); err != nil {
				return err
			}
			if err := r.add(q, Chunk{Offset: off, Length: length}, length); err != nil {
				return err
			}
			off += length
		}
	}
	return r.flush(q)
}

// add puts a chunk with so much data into the open batch, or into the next one.
func (r *reading) add(q *ordered.Queue[*batch], c Chunk, data int64) error {
	if r.open != nil && (r.open.bytes+data > chunkBytes || len(r.open.chunks) >= r.most()) {
		if err := r.flush(q); err != nil {
			return err
		}
	}
	if r.open == nil {
		r.open = new(batch)
	}
	b := r.open
	if data > 0 && b.buffer == nil {
		if b.buffer = <-r.free; b.buffer == nil {
			b.buffer = buffers.Get().(*buffer) //nolint:forcetypeassert // nothing else is in it
		}
	}
	if data > 0 {
		c.Data = b.buffer.data[b.bytes : b.bytes+data]
		b.bytes += data
	}
	b.chunks = append(b.chunks, c)
	return nil
}

// most is how many chunks the open batch has at most.
func (r *reading) most() int {
	if r.several != nil {
		return batchMost
	}
	return min(batchMost, 1+r.batches/readers)
}

// flush puts the open batch into the queue.
func (r *reading) flush(q *ordered.Queue[*batch]) error {
	b := r.open
	if b == nil {
		return nil
	}
	r.open = nil
	r.batches++
	return q.Put(b)
}

// fill reads a batch and computes its sums.
func (r *reading) fill(b *batch) error {
	if b.buffer == nil {
		return nil
	}
	if err := r.read(b); err != nil {
		return err
	}
	sums := b.buffer.sums[:0]
	for i := range b.chunks {
		c := &b.chunks[i]
		if c.Data == nil {
			continue
		}
		begin, first := time.Now(), len(sums)
		sums = checksum.SumAll(sums, r.of.Seed, c.Offset, c.Data)
		c.Sums, c.Hashed = sums[first:], time.Since(begin)
	}
	return nil
}

// read reads the data of a batch.
func (r *reading) read(b *batch) error {
	pieces := make([]disk.Piece, 0, len(b.chunks))
	for i := range b.chunks {
		if c := &b.chunks[i]; c.Data != nil {
			pieces = append(pieces, disk.Piece{Data: c.Data, Offset: c.Offset})
		}
	}
	if r.several != nil && len(pieces) > 1 {
		if pace.Hurried(r.ctx) {
			return r.several.ReadAll(pieces)
		}
		return r.gently(pieces)
	}
	for _, p := range pieces {
		if _, err := r.disk.ReadAt(p.Data, p.Offset); err != nil {
			return err
		}
	}
	return nil
}

// gently reads few pieces at once, because the guest's own requests wait behind them.
// Of a quick disk few are enough; the longer it takes, the more are read at once, until a
// slow one gives what it has.
func (r *reading) gently(pieces []disk.Piece) error {
	r.gentle.Lock()
	defer r.gentle.Unlock()
	for len(pieces) > 0 {
		n, begin := min(len(pieces), depth(r.spent)), time.Now()
		if err := r.several.ReadAll(pieces[:n]); err != nil {
			return err
		}
		pieces, r.spent = pieces[n:], r.spent+time.Since(begin)
	}
	return nil
}

// depth is how many pieces are read at once after so long, pauses not counted.
func depth(spent time.Duration) int {
	d := depthFirst
	for ; spent >= patience && d < batchMost; spent -= patience {
		d *= 2
	}
	return d
}

// hand gives a batch's chunks to their user and takes the memory back.
func (r *reading) hand(b *batch, err error) error {
	for i := range b.chunks {
		if err == nil {
			err = context.Cause(r.ctx)
		}
		if err == nil {
			err = r.use(&b.chunks[i])
		}
	}
	if b.buffer != nil {
		r.free <- b.buffer // there is room: it came from there
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
