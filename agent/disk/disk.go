// Package disk reads the disks of the machine the agent runs on: block devices, or
// image files that stand for them. It never opens one for writing.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

// Align is what offsets, lengths (but at the disk's end) and buffers of reads must
// be multiples of.
const Align = 4096

// Disk is an open disk. ReadAt may be called by several goroutines at once.
type Disk struct {
	file  *os.File
	path  string
	size  int64
	image bool // a regular file, not a block device
}

// Open opens a block device or an image file read-only. A block device is read
// around the page cache (O_DIRECT): a mounted file system has its own pages, and
// what the device's cache holds of them may be old.
func Open(path string) (*Disk, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	flags := os.O_RDONLY
	image := info.Mode().IsRegular()
	if !image {
		if info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
			return nil, fmt.Errorf("open disk %s: neither a block device nor an image file", path)
		}
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0) //nolint:gosec // the operator's configuration or udev names it
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &Disk{file: f, path: path, image: image}
	if d.size, err = d.CurrentSize(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// Path is where the disk was opened.
func (d *Disk) Path() string { return d.path }

// Size is the size in bytes when the disk was opened.
func (d *Disk) Size() int64 { return d.size }

// Device names the block device for the kernel. An image file has none.
func (d *Disk) Device() (changes.Device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.file.Fd()), &st); err != nil {
		return changes.Device{}, fmt.Errorf("numbers of disk %s: %w", d.path, err)
	}
	if d.image {
		return changes.Device{}, fmt.Errorf("disk %s is an image file: the kernel sees no writes to it", d.path)
	}
	return changes.Device{Path: d.path, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Size: d.size}, nil
}

// CurrentSize asks for the size in bytes as it is now.
func (d *Disk) CurrentSize() (int64, error) {
	size, err := d.file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of disk %s: %w", d.path, err)
	}
	return size, nil
}

// ErrChanged is wrapped when a disk is not the one that was opened.
var ErrChanged = errors.New("it is not the disk that was opened")

// Check gives an error when the disk has another size than when it was opened, or when
// its path names another disk by now, or none. What was opened can be read on, but it
// is no more what the machine writes to.
func (d *Disk) Check() error {
	size, err := d.CurrentSize()
	if err != nil {
		return err
	}
	if size != d.size {
		return fmt.Errorf("disk %s: %w: it had %d bytes and has %d", d.path, ErrChanged, d.size, size)
	}
	opened, err := d.file.Stat()
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.path, err)
	}
	there, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("disk %s: %w: %w", d.path, ErrChanged, err)
	}
	if !os.SameFile(opened, there) {
		return fmt.Errorf("disk %s: %w: another one is there now", d.path, ErrChanged)
	}
	return nil
}

// ReadAt fills p with the bytes from off on. Offset, and the length but at the
// disk's end, are multiples of Align, and p comes from [Buffer]. Anything less than
// all of p is an error.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.file.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("read %d bytes at %d of disk %s: %w", len(p), off, d.path, err)
}

// NextData gives the first range [start, end) at or after off that may hold data;
// what is left out reads as zeros. Both are multiples of Align but for the disk's
// end; start is the disk's size when there is no more. On a block device everything
// may hold data.
func (d *Disk) NextData(off int64) (start, end int64, err error) {
	if off >= d.size {
		return d.size, d.size, nil
	}
	if !d.image {
		return off, d.size, nil
	}
	fd := int(d.file.Fd())
	start, err = unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return d.size, d.size, nil
	}
	if err == nil {
		end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
	}
	switch {
	case errors.Is(err, unix.ENXIO): // punched in between: the map is only a hint
		return off, d.size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, d.size, nil
	case err != nil:
		return 0, 0, fmt.Errorf("find data of disk %s: %w", d.path, err)
	}
	start = max(off, start/Align*Align)
	end = min(d.size, (end+Align-1)/Align*Align)
	if start >= d.size {
		return d.size, d.size, nil
	}
	return start, max(end, min(start+Align, d.size)), nil
}

// Close closes the disk.
func (d *Disk) Close() error { return d.file.Close() }

// Buffer makes a buffer of n bytes that direct reads accept.
func Buffer(n int) []byte {
	b := make([]byte, n+Align)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Align); rest != 0 { //nolint:gosec // only looks at the alignment
		skip = Align - rest
	}
	return b[skip : skip+n : skip+n]
}
