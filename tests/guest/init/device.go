package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

const (
	sector   = 512
	maxWrite = 256 << 10
)

// device is a disk, or a part of one, that is written to.
type device struct {
	path     string
	direct   *os.File // around the page cache
	buffered *os.File
	size     int64
	about    changes.Device
	random   *rand.Rand
	data     []byte
}

func openDevice(path string) (*device, error) {
	d := &device{path: path, random: rand.New(rand.NewPCG(rand.Uint64(), 1)), data: disk.Buffer(2 * maxWrite)} //nolint:gosec // a test's
	var err error
	if d.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return nil, err
	}
	if d.buffered, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if d.size, err = d.direct.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return nil, err
	}
	d.about = changes.Device{Path: path, Major: unix.Major(stat.Rdev), Minor: unix.Minor(stat.Rdev), Size: d.size}
	for i := range d.data {
		d.data[i] = byte(d.random.Uint32())
	}
	return d, nil
}

func (d *device) close() error { return errors.Join(d.direct.Close(), d.buffered.Close()) }

// write writes, discards and zeroes that many times.
func (d *device) write(times int) error {
	for range times {
		off := d.random.Int64N(d.size/sector) * sector
		n := min((d.random.Int64N(32)+1)<<d.random.Int64N(5)*sector, maxWrite, d.size-off)
		from := d.random.Int64N(maxWrite/sector) * sector
		data := d.data[from : from+n]
		data[d.random.Int64N(n)]++
		var err error
		switch kind := d.random.IntN(8); kind {
		case 0:
			err = d.ioctl(unix.BLKDISCARD, off, n)
		case 1:
			err = d.ioctl(unix.BLKZEROOUT, off, n)
		case 2, 3:
			if _, err = d.buffered.WriteAt(data, off); err == nil {
				err = d.buffered.Sync()
			}
		default:
			_, err = d.direct.WriteAt(data, off)
		}
		if err != nil {
			return fmt.Errorf("write %d bytes at %d of %s: %w", n, off, d.path, err)
		}
	}
	return nil
}

func (d *device) ioctl(request uintptr, off, n int64) error {
	r := [2]uint64{uint64(off), uint64(n)}                                                           //nolint:gosec // not negative
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.direct.Fd(), request, uintptr(unsafe.Pointer(&r))) //nolint:gosec // what the ioctl takes
	if errno != 0 {
		return errno
	}
	return nil
}

// snapshot gives what is on the disk, as sums of its blocks.
func (d *device) snapshot() ([]uint64, error) {
	var sums []uint64
	buf := disk.Buffer(1 << 20)
	for off := int64(0); off < d.size; off += int64(len(buf)) {
		part := buf[:min(int64(len(buf)), d.size-off)]
		if _, err := d.direct.ReadAt(part, off); err != nil {
			return nil, fmt.Errorf("read %s at %d: %w", d.path, off, err)
		}
		sums = checksum.SumAll(sums, 1, off, part)
	}
	return sums, nil
}
