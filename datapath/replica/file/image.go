package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"drover/datapath/checksum"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

// ioBytes is how much is read or written at once.
const ioBytes = 1 << 20

var zeros [ioBytes]byte

func (m machine) imagePath(d replica.Disk) string {
	if d.Path != "" {
		return d.Path
	}
	return m.path(disksDir, d.ID.String()+".img")
}

// samePlace reports whether two paths of disks outside the store, or of none, lead to the
// same one.
func samePlace(a, b string) bool {
	if a == b || a == "" || b == "" {
		return a == b
	}
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// image is the content of one disk.
type image struct {
	f       vfs.File
	outside bool // Path: never made, never truncated, no holes punched
}

// openImage opens the disk's image; one of the store is made when absent and for
// writing.
func (m machine) openImage(d replica.Disk, write bool) (*image, error) {
	fsys, flags := m.store.fs, os.O_RDONLY
	if d.Path != "" {
		fsys = vfs.OS
	}
	if write {
		flags = os.O_RDWR
		if d.Path == "" {
			flags |= os.O_CREATE
		}
	}
	f, err := fsys.OpenFile(m.imagePath(d), flags, fileMode)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && d.Path != "" {
			return nil, fmt.Errorf("open disk %s: %w: attach the disk, or correct its path", d.ID, err)
		}
		return nil, fmt.Errorf("open disk %s: %w", d.ID, spaceErr(err))
	}
	return &image{f: f, outside: d.Path != ""}, nil
}

// ensureSize checks an outside disk, and grows or shrinks one of the store.
func (i *image) ensureSize(size int64) error {
	st, err := i.f.Stat()
	if err != nil {
		return fmt.Errorf("size of %s: %w", i.f.Name(), err)
	}
	if i.outside {
		if st.Size < size {
			return fmt.Errorf("%s has %d bytes, the disk needs %d: attach a disk of at least that size", i.f.Name(), st.Size, size)
		}
		return nil
	}
	if st.Size == size {
		return nil
	}
	if err := i.f.Truncate(size); err != nil {
		return fmt.Errorf("resize %s to %d bytes: %w", i.f.Name(), size, spaceErr(err))
	}
	return nil
}

// zero makes the range read as zeros, giving its room back where that is possible.
func (i *image) zero(offset, length int64) error {
	if !i.outside {
		err := i.f.PunchHole(offset, length)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("punch hole in %s at %d: %w", i.f.Name(), offset, spaceErr(err))
		}
	}
	for length > 0 {
		n := min(length, ioBytes)
		if err := i.write(zeros[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

func (i *image) write(b []byte, offset int64) error {
	if _, err := i.f.WriteAt(b, offset); err != nil {
		return fmt.Errorf("write %s at %d: %w", i.f.Name(), offset, spaceErr(err))
	}
	return nil
}

// read fills b; what lies beyond the end of the image reads as zeros.
func (i *image) read(b []byte, offset int64) error {
	n, err := i.f.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s at %d: %w", i.f.Name(), offset, err)
	}
	clear(b[n:])
	return nil
}

func (i *image) sync() error {
	if err := i.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", i.f.Name(), spaceErr(err))
	}
	return nil
}

// nextData gives the next range from offset on, before limit, that is not a hole.
// Where holes cannot be found, all is data. The caller excludes other seeks.
func (i *image) nextData(offset, limit int64) (from, to int64) {
	from, to, err := i.f.NextData(offset)
	if errors.Is(err, io.EOF) {
		return limit, limit
	}
	if err != nil {
		return offset, limit
	}
	from = max(offset, from/checksum.BlockSize*checksum.BlockSize)
	to = (to + checksum.BlockSize - 1) / checksum.BlockSize * checksum.BlockSize
	return min(from, limit), min(to, limit)
}

// rescan reads the image's range and gives the sums of its blocks, in order.
// Holes are not read; for them sums of zero are given in the same way.
func (i *image) rescan(ctx context.Context, seed uint64, offset, end int64, fn func(first int64, sums []uint64) error) error {
	buf := make([]byte, ioBytes)
	sums := make([]uint64, 0, ioBytes/checksum.BlockSize)
	for offset < end {
		from, to := i.nextData(offset, end)
		for offset < end && offset < max(from, to) {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(ioBytes, end-offset)
			sums = sums[:0]
			if offset+n <= from {
				sums = append(sums, make([]uint64, checksum.Blocks(n))...)
			} else {
				if err := i.read(buf[:n], offset); err != nil {
					return err
				}
				sums = checksum.SumAll(sums, seed, offset, buf[:n])
			}
			if err := fn(offset/checksum.BlockSize, sums); err != nil {
				return err
			}
			offset += n
		}
	}
	return nil
}

func (i *image) close() error { return i.f.Close() }
