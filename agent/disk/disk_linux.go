package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

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
