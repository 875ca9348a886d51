// Package disk reads the disks of the machine the agent runs on: block devices, or
// image files that stand for them. It never opens one for writing.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"
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

// Path is where the disk was opened.
func (d *Disk) Path() string { return d.path }

// Size is the size in bytes when the disk was opened.
func (d *Disk) Size() int64 { return d.size }

// ErrChanged is wrapped when a disk is not the one that was opened.
var ErrChanged = errors.New("it is not the disk that was opened")

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

// Piece is a part of a disk that is to be read, as for ReadAt.
type Piece struct {
	Data   []byte
	Offset int64
}

// AtOnce is how many pieces ReadAll reads at the same time.
func (d *Disk) AtOnce() int {
	if d.image {
		return 1 // reads through the page cache are done one after the other
	}
	return atOnce
}

// ReadAll fills the pieces, each as ReadAt does; of a block device many at once.
func (d *Disk) ReadAll(pieces []Piece) error {
	for len(pieces) > 0 {
		n := min(len(pieces), d.AtOnce())
		var read [atOnce]bool
		if n > 1 {
			read = d.together(pieces[:n])
		}
		for i, p := range pieces[:n] {
			if read[i] {
				continue
			}
			// The kernel did not take it, or something is wrong with it: this says what.
			if _, err := d.ReadAt(p.Data, p.Offset); err != nil {
				return err
			}
		}
		pieces = pieces[n:]
	}
	return nil
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
