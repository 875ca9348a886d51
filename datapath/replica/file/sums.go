package file

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/vfs"
)

const sumSize = 8

func (m machine) sumsPath(id ident.DiskID) string { return m.path(sumsDir, id.String()+".sums") }

// sumsFile is the map of a disk's checksums: 8 bytes little-endian per block. What
// lies beyond the file's end is 0, the sum of a block of zeros.
type sumsFile struct {
	f   vfs.File
	buf []byte // of the writer
}

func openSums(fsys vfs.FS, path string, write bool) (*sumsFile, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := fsys.OpenFile(path, flags, fileMode)
	if err != nil {
		return nil, fmt.Errorf("open checksums: %w", spaceErr(err))
	}
	return &sumsFile{f: f}, nil
}

// read fills dst from the first block on. It is safe for concurrent use.
func (s *sumsFile) read(first int64, dst []uint64) error {
	return s.readAt(first*sumSize, dst)
}

// readAt fills dst from the position in the file on.
func (s *sumsFile) readAt(pos int64, dst []uint64) error {
	buf := make([]byte, sumSize*len(dst))
	n, err := s.f.ReadAt(buf, pos)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read checksums %s: %w", s.f.Name(), err)
	}
	clear(buf[n:])
	for i := range dst {
		dst[i] = binary.LittleEndian.Uint64(buf[sumSize*i:])
	}
	return nil
}

// next gives the first block in [first, end) whose sum is not that of zeros, or end.
func (s *sumsFile) next(first, end int64) (int64, error) {
	var sums []uint64
	for ; first < end; first += int64(len(sums)) {
		if sums == nil {
			sums = make([]uint64, min(end-first, checksum.MaxSums))
		}
		sums = sums[:min(end-first, int64(len(sums)))]
		if err := s.read(first, sums); err != nil {
			return 0, err
		}
		for i, sum := range sums {
			if sum != 0 {
				return first + int64(i), nil
			}
		}
	}
	return end, nil
}

// write stores sums from the first block on.
func (s *sumsFile) write(first int64, sums []uint64) error {
	s.buf = appendSums(s.buf[:0], sums)
	if _, err := s.f.WriteAt(s.buf, first*sumSize); err != nil {
		return fmt.Errorf("write checksums %s: %w", s.f.Name(), spaceErr(err))
	}
	return nil
}

// writeZeros stores the sums of n blocks of zeros.
func (s *sumsFile) writeZeros(first, n int64) error {
	for n > 0 {
		part := min(n, ioBytes/sumSize)
		if _, err := s.f.WriteAt(zeros[:part*sumSize], first*sumSize); err != nil {
			return fmt.Errorf("write checksums %s: %w", s.f.Name(), spaceErr(err))
		}
		first, n = first+part, n-part
	}
	return nil
}

// resize sets the map's length to that of a disk of size bytes.
func (s *sumsFile) resize(size int64) error {
	if err := s.f.Truncate(checksum.Blocks(size) * sumSize); err != nil {
		return fmt.Errorf("resize checksums %s: %w", s.f.Name(), spaceErr(err))
	}
	return nil
}

func (s *sumsFile) sync() error {
	if err := s.f.Sync(); err != nil {
		return fmt.Errorf("sync checksums %s: %w", s.f.Name(), spaceErr(err))
	}
	return nil
}

func (s *sumsFile) close() error { return s.f.Close() }

func appendSums(dst []byte, sums []uint64) []byte {
	for _, s := range sums {
		dst = binary.LittleEndian.AppendUint64(dst, s)
	}
	return dst
}

// leaves are the sums of one of the writer's disks.
type leaves struct {
	w    *Writer
	disk ident.DiskID
	n    int64
}

var _ checksum.Leaves = leaves{}

func (l leaves) Len() int64 { return l.n }

func (l leaves) ReadSums(first int64, dst []uint64) error {
	if first < 0 || first > l.n-int64(len(dst)) {
		return fmt.Errorf("read checksums of disk %s: blocks %d to %d of %d", l.disk, first, first+int64(len(dst)), l.n)
	}
	l.w.mu.RLock()
	defer l.w.mu.RUnlock()
	d := l.w.open[l.disk]
	if d == nil {
		return fmt.Errorf("read checksums of disk %s: the writer is closed or its disks have changed", l.disk)
	}
	return d.sums.read(first, dst)
}
