package pageblob

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"drover/datapath/checksum"
	"drover/datapath/replica"
)

const (
	sumSize = 8
	// segment is how many sums are read and cached at once: those of 128 MiB of disk.
	segment      = 32 << 10
	segmentBytes = segment * sumSize
	segmentDisk  = segment * checksum.BlockSize
	sumsPerPage  = pageBytes / sumSize
)

// sumsLength is the length of the blob of checksums of a disk: whole pages.
func sumsLength(size int64) int64 {
	return (checksum.Blocks(size)*sumSize + pageBytes - 1) / pageBytes * pageBytes
}

// sumsBlob is the map of a disk's checksums in a page blob: 8 bytes little-endian per
// block. Pages that were never written are 0, the sum of a block of zeros.
type sumsBlob struct {
	*pages
	blocks int64

	mu      sync.RWMutex
	written map[int64]bool // segments that may have sums other than 0
	version atomic.Int64   // counts writes
}

// openSums finds out which segments were written, by one or a few requests.
func openSums(ctx context.Context, p *pages, size int64) (*sumsBlob, error) {
	s := &sumsBlob{pages: p, blocks: checksum.Blocks(size), written: map[int64]bool{}}
	err := p.written(ctx, 0, sumsLength(size), func(from, to int64) error {
		for i := from / segmentBytes; i*segmentBytes < to; i++ {
			s.written[i] = true
		}
		return nil
	})
	return s, err
}

func (s *sumsBlob) isWritten(seg int64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.written[seg]
}

func (s *sumsBlob) setWritten(seg int64, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is {
		s.written[seg] = true
	} else {
		delete(s.written, seg)
	}
}

// length is how many sums the segment has.
func (s *sumsBlob) length(seg int64) int64 { return min(segment, s.blocks-seg*segment) }

// load reads a segment; one that was never written costs no request.
func (s *sumsBlob) load(ctx context.Context, seg int64) ([]uint64, error) {
	out := make([]uint64, s.length(seg))
	if !s.isWritten(seg) {
		return out, nil
	}
	b := make([]byte, len(out)*sumSize)
	if err := s.read(ctx, seg*segmentBytes, b); err != nil {
		return nil, err
	}
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(b[i*sumSize:])
	}
	return out, nil
}

// store writes the sums [from, to) of a segment, and what is with them in their pages.
func (s *sumsBlob) store(ctx context.Context, word uint64, seg int64, sums []uint64, from, to int64) error {
	from = from / sumsPerPage * sumsPerPage
	b := make([]byte, 0, (to-from)*sumSize+pageBytes)
	for _, x := range sums[from:min((to+sumsPerPage-1)/sumsPerPage*sumsPerPage, int64(len(sums)))] {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	for len(b)%pageBytes != 0 { // the disk's last page
		b = append(b, 0)
	}
	s.setWritten(seg, true)
	_, err := s.put(ctx, word, seg*segmentBytes+from*sumSize, b)
	s.version.Add(1)
	return err
}

// zero clears the sums of whole segments [from, to).
func (s *sumsBlob) zero(ctx context.Context, word uint64, from, to int64) error {
	any := false
	for seg := from; seg < to; seg++ {
		any = any || s.isWritten(seg)
	}
	if !any {
		return nil
	}
	end := min(to*segmentBytes, sumsLength(s.blocks*checksum.BlockSize))
	if _, err := s.clear(ctx, word, from*segmentBytes, end-from*segmentBytes); err != nil {
		return err
	}
	for seg := from; seg < to; seg++ {
		s.setWritten(seg, false)
	}
	s.version.Add(1)
	return nil
}

// sumsCursor reads sums mostly in order, keeping the last segment. It is safe for
// concurrent use.
type sumsCursor struct {
	s *sumsBlob

	mu      sync.Mutex
	seg     int64
	sums    []uint64
	version int64
}

func (c *sumsCursor) read(ctx context.Context, first int64, dst []uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(dst) > 0 {
		sums, err := c.at(ctx, first/segment)
		if err != nil {
			return err
		}
		n := copy(dst, sums[first%segment:])
		dst, first = dst[n:], first+int64(n)
	}
	return nil
}

// at gives the segment; mu is held.
func (c *sumsCursor) at(ctx context.Context, seg int64) ([]uint64, error) {
	version := c.s.version.Load()
	if c.sums != nil && c.seg == seg && c.version == version {
		return c.sums, nil
	}
	sums, err := c.s.load(ctx, seg)
	if err != nil {
		return nil, err
	}
	c.seg, c.sums, c.version = seg, sums, version
	return sums, nil
}

// next gives the first block from first on, before end, that holds zeros or not, or end.
func (c *sumsCursor) next(ctx context.Context, first, end int64, zeros bool) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for first < end {
		seg := first / segment
		if !c.s.isWritten(seg) {
			if zeros {
				return first, nil
			}
			first = (seg + 1) * segment
			continue
		}
		sums, err := c.at(ctx, seg)
		if err != nil {
			return 0, err
		}
		for ; first < end && first/segment == seg; first++ {
			if (sums[first%segment] == 0) == zeros {
				return first, nil
			}
		}
	}
	return end, nil
}

// leaves are the sums of one of the writer's disks.
type leaves struct {
	ctx    context.Context // of the writer: the interface has none
	cursor *sumsCursor
	disk   replica.Disk
}

var _ checksum.Leaves = leaves{}

func (l leaves) Len() int64 { return checksum.Blocks(l.disk.Size) }

func (l leaves) ReadSums(first int64, dst []uint64) error {
	if err := checkSums(l.disk, first, dst); err != nil {
		return err
	}
	return l.cursor.read(l.ctx, first, dst)
}
