package scan

import (
	"context"
	"slices"
	"time"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ordered"
)

const (
	// chunkBytes is how much is read at once; a run of it fits in one extent.
	chunkBytes = changeset.MaxExtentBytes
	// readers is how many reads and checksums are under way at once: a disk answers
	// several sooner than one after the other, and one processor is slower than a line.
	readers = 4
	// ahead is how many chunks are read before they are looked at.
	ahead = 6
)

// chunk is a part of a disk that was read. A hole has neither data nor sums.
type chunk struct {
	offset, length int64
	data           []byte
	sums           []uint64
	hashed         time.Duration
	buffer         *buffer
}

// buffer is the memory of a chunk.
type buffer struct {
	data []byte
	sums []uint64
}

// part is what of a disk is read.
type part struct {
	disk tracker.Disk
	size int64
	seed uint64
	// next gives the first range at or after off that is read.
	next func(off int64) (start, end int64, err error)
	// holes: what lies between the ranges is handed on as zeros.
	holes bool
}

// everything is a whole disk.
func everything(d tracker.Disk, of changeset.Disk) part {
	return part{disk: d, size: of.Size, seed: of.Seed, next: d.NextData, holes: true}
}

// forgotten is what is unknown of a disk, as of now.
func (s *state) forgotten(d tracker.Disk) part {
	unknown := slices.Clone(s.unknown)
	next := func(off int64) (start, end int64, err error) {
		first, last := unknown.Next(off/checksum.BlockSize, chunkBytes/checksum.BlockSize)
		return min(first*checksum.BlockSize, s.disk.Size), min(last*checksum.BlockSize, s.disk.Size), nil
	}
	return part{disk: d, size: s.disk.Size, seed: s.disk.Seed, next: next}
}

// scan is one reading of a disk.
type scan struct {
	part
	ctx  context.Context
	free chan *buffer
	use  func(*chunk) error
}

// read gives the part with its checksums to use, chunk by chunk in order. Several
// goroutines read ahead; they have ended when read returns.
func read(ctx context.Context, p part, use func(*chunk) error) error {
	s := &scan{part: p, ctx: ctx, use: use, free: make(chan *buffer, ahead+readers)}
	for range cap(s.free) {
		s.free <- nil // made when needed, so that a disk of holes costs nothing
	}
	q := ordered.New(readers, ahead, s.fill, s.hand)
	err := s.walk(q)
	if closed := q.Close(); closed != nil {
		return closed // the first: walk ends by it
	}
	return err
}

// walk puts all chunks of the part into the queue.
func (s *scan) walk(q *ordered.Queue[*chunk]) error {
	for off := int64(0); off < s.size; {
		start, end, err := s.next(off)
		if err != nil {
			return err
		}
		if start > off && s.holes {
			if err := q.Put(&chunk{offset: off, length: start - off}); err != nil {
				return err
			}
		}
		for off = start; off < end; {
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			c := &chunk{offset: off, length: min(chunkBytes, end-off), buffer: <-s.free}
			if c.buffer == nil {
				c.buffer = &buffer{disk.Buffer(chunkBytes), make([]uint64, 0, chunkBytes/checksum.BlockSize)}
			}
			if err := q.Put(c); err != nil {
				return err
			}
			off += c.length
		}
	}
	return nil
}

// fill reads a chunk and computes its sums.
func (s *scan) fill(c *chunk) error {
	if c.buffer == nil {
		return nil
	}
	c.data = c.buffer.data[:c.length]
	if _, err := s.disk.ReadAt(c.data, c.offset); err != nil {
		return err
	}
	begin := time.Now()
	c.sums = checksum.SumAll(c.buffer.sums[:0], s.seed, c.offset, c.data)
	c.hashed = time.Since(begin)
	return nil
}

// hand gives a chunk to its user and takes the memory back.
func (s *scan) hand(c *chunk, err error) error {
	if err == nil {
		err = context.Cause(s.ctx)
	}
	if err == nil {
		err = s.use(c)
	}
	if c.buffer != nil {
		s.free <- c.buffer // there is room: it came from there
	}
	return err
}
