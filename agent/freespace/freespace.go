// Package freespace lets a disk be seen as if the blocks that its file systems have free
// were zeros: they are neither read nor sent, whatever garbage is in them.
//
// It is for the tracker that reads whole disks (scan), and it is held together by one
// rule: whatever is taken of a disk for a recovery point is taken by a map that was made
// while the file systems were frozen for that point. So:
//
//   - After each cut the replica equals the disk as it was then on all blocks that the
//     file systems had in use, and has zeros for those that they had free. A block that is
//     free when the map is made cannot be allocated before the thaw; what the journal has
//     not committed is committed by the freeze, so that a block is free on the disk too.
//   - A block that is allocated later is in use in the map of the next cut, is read, and
//     is compared with the zeros that the replica is known to have: also when nobody has
//     written to it, as after fallocate.
//   - A pass before the freeze goes by a map of its own, which may be old when it is used.
//     It makes no point: what it has got wrong the pass under the freeze finds.
//   - Where not everything is frozen by the agent itself, a point is made of a pass over
//     the whole disks, free or not.
//   - Comparisons of source and replica see the disk by the map of the newest cut, as the
//     replica is of that cut. They say how much was not compared because it was free.
//
// Anything that is not an ext4 or xfs on a whole disk or partition of it (LVM, swap,
// other layers, what is not mounted) is read as ever.
package freespace

import (
	"sync/atomic"

	"drover/agent/disk"
	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// Map has the free blocks of some disks, in their order; nil for a disk of which nothing
// is known to be free. A nil Map is one of no disks.
type Map []changes.Bitmap

// of gives the bitmap of a disk, nil when there is none.
func (m Map) of(disk int) changes.Bitmap {
	if disk >= len(m) {
		return nil
	}
	return m[disk]
}

// Bytes is how much is free, in whole blocks.
func (m Map) Bytes() (n int64) {
	for _, b := range m {
		n += b.Count() * checksum.BlockSize
	}
	return n
}

// View is which map holds at the moment; it may be changed and used by several
// goroutines.
type View struct{ now atomic.Pointer[Map] }

// Use takes another map.
func (v *View) Use(m Map) { v.now.Store(&m) }

// Map gives the map that holds.
func (v *View) Map() Map {
	if m := v.now.Load(); m != nil {
		return *m
	}
	return nil
}

// Disk is a disk whose free blocks read as zeros.
type Disk struct {
	*disk.Disk
	index int // of the disk in the maps
	view  *View
}

// NewDisk makes the disk with that number in the view's maps.
func NewDisk(d *disk.Disk, index int, view *View) *Disk { return &Disk{d, index, view} }

// NextData leaves out what is free, as if it were a hole.
func (d *Disk) NextData(off int64) (start, end int64, err error) {
	free := d.view.Map().of(d.index)
	if free == nil {
		return d.Disk.NextData(off)
	}
	for off < d.Size() {
		if off = d.afterFree(free, off); off >= d.Size() {
			break
		}
		start, end, err = d.Disk.NextData(off)
		if err != nil || start >= d.Size() {
			return start, end, err
		}
		if off = d.afterFree(free, start); off == start {
			first, _ := free.Next(start/checksum.BlockSize, 1)
			return start, min(end, first*checksum.BlockSize, d.Size()), nil
		}
	}
	return d.Size(), d.Size(), nil
}

// afterFree gives the first place at or after off that is not free.
func (d *Disk) afterFree(free changes.Bitmap, off int64) int64 {
	block := off / checksum.BlockSize
	first, end := free.Next(block, checksum.Blocks(d.Size()))
	if first != block || first == end {
		return off
	}
	return min(end*checksum.BlockSize, d.Size())
}

// ReadAt reads what is not free.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	free := d.view.Map().of(d.index)
	if free == nil {
		return d.Disk.ReadAt(p, off)
	}
	end := off + int64(len(p))
	for at := off; at < end; {
		next := min(d.afterFree(free, at), end)
		clear(p[at-off : next-off])
		if at = next; at == end {
			break
		}
		first, last := free.Next(at/checksum.BlockSize, 1)
		next = end
		if first < last {
			next = min(end, first*checksum.BlockSize)
		}
		if n, err := d.Disk.ReadAt(p[at-off:next-off], at); err != nil {
			return int(at-off) + n, err
		}
		at = next
	}
	return len(p), nil
}

// Free is how many bytes of a range of whole blocks are taken for free.
func (d *Disk) Free(first, end int64) (n int64) {
	free := d.view.Map().of(d.index)
	for b := first; free != nil && b < end; {
		from, to := free.Next(b, end-b)
		if from >= end || from == to {
			break
		}
		n += (min(to, end) - from) * checksum.BlockSize
		b = to
	}
	return n
}
