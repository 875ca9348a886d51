package file

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"drover/datapath/checksum"
	"drover/datapath/replica"
)

// run is a range of a disk that an undo entry holds, or a part of that entry.
type run struct {
	off, end int64
	src      *undoSource
	e        entry
}

// sortRuns orders the runs and drops what overlaps an earlier one.
func sortRuns(runs []run) []run {
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 && r.off < out[n-1].end {
			r.off = out[n-1].end
		}
		if r.off < r.end {
			out = append(out, r)
		}
	}
	return out
}

// mergeRuns overlays: where both hold a block, the older wins. Both are in order.
func mergeRuns(older, newer []run) []run {
	if len(older) == 0 {
		return newer
	}
	out := make([]run, 0, len(older)+len(newer))
	i := 0
	for _, n := range newer {
		for n.off < n.end {
			for i < len(older) && older[i].end <= n.off {
				out = append(out, older[i])
				i++
			}
			if i == len(older) || older[i].off >= n.end {
				out = append(out, n)
				break
			}
			if n.off < older[i].off {
				part := n
				part.end = older[i].off
				out = append(out, part)
			}
			n.off = older[i].end
		}
	}
	return append(out, older[i:]...)
}

// findRun gives the first run that ends after offset.
func findRun(runs []run, offset int64) int {
	return sort.Search(len(runs), func(i int) bool { return runs[i].end > offset })
}

// read fills b, the part of the run from offset on, and verifies it.
func (r run) read(d replica.Disk, b []byte, offset int64) error {
	switch r.e.flags {
	case flagZero:
		clear(b)
		return nil
	case flagLost:
		return fmt.Errorf("block %d (offset %d) of disk %s was changed from outside, its content at the point is lost: %w",
			offset/checksum.BlockSize, offset, d.ID, replica.ErrCorrupt)
	}
	skip := offset - r.e.offset
	// A block may be longer in the entry than at the point: read it whole.
	n := min(checksum.Blocks(int64(len(b)))*checksum.BlockSize, r.e.length-skip)
	data := b
	if n > int64(len(b)) {
		data = make([]byte, n)
	}
	if _, err := r.src.f.ReadAt(data[:n], r.e.dataPos()+skip); err != nil {
		return fmt.Errorf("read undo file %s: %w", r.src.f.Name(), err)
	}
	sums := make([]uint64, checksum.Blocks(n))
	if err := r.readSums(offset, sums); err != nil {
		return err
	}
	if err := replica.VerifyBlocks(d, offset, data[:n], sums); err != nil {
		return fmt.Errorf("undo file %s: %w", r.src.f.Name(), err)
	}
	c := copy(b, data[:n])
	clear(b[c:])
	return nil
}

// readSums fills dst with the sums of the run's blocks from offset on.
func (r run) readSums(offset int64, dst []uint64) error {
	if r.e.flags == flagZero {
		clear(dst)
		return nil
	}
	s := sumsFile{f: r.src.f}
	return s.readAt(r.e.sumsPos()+(offset-r.e.offset)/checksum.BlockSize*sumSize, dst)
}
