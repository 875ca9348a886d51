package pageblob

import (
	"context"
	"slices"

	"drover/datapath/checksum"
)

// maxSegments of sums are kept while a change set is applied (256 KiB each).
const maxSegments = 16

// sumsWriter is the map of a disk's checksums as a change set changes it. What is
// changed is in the blob after flush. It is used by one goroutine.
type sumsWriter struct {
	ctx    context.Context // of the change set's uploads
	s      *sumsBlob
	word   uint64
	cached map[int64]*sumsSegment
	used   []int64 // the most recently used last
	grown  int64   // bytes in blocks that are not zeros, more than before
}

type sumsSegment struct {
	sums     []uint64
	from, to int64 // changed
}

// segment gives a segment to read or change; the one used least recently makes room.
func (w *sumsWriter) segment(seg int64) (*sumsSegment, error) {
	if x := w.cached[seg]; x != nil {
		if n := len(w.used); w.used[n-1] != seg {
			w.used = append(slices.DeleteFunc(w.used, func(i int64) bool { return i == seg }), seg)
		}
		return x, nil
	}
	if len(w.used) >= maxSegments {
		if err := w.store(w.used[0]); err != nil {
			return nil, err
		}
		w.drop(w.used[0])
	}
	sums, err := w.s.load(w.ctx, seg)
	if err != nil {
		return nil, err
	}
	x := &sumsSegment{sums: sums}
	w.cached[seg], w.used = x, append(w.used, seg)
	return x, nil
}

func (w *sumsWriter) drop(seg int64) {
	delete(w.cached, seg)
	w.used = slices.DeleteFunc(w.used, func(i int64) bool { return i == seg })
}

// store writes what was changed in a segment.
func (w *sumsWriter) store(seg int64) error {
	x := w.cached[seg]
	if x.from == x.to {
		return nil
	}
	if err := w.s.store(w.ctx, w.word, seg, x.sums, x.from, x.to); err != nil {
		return err
	}
	x.from, x.to = 0, 0
	return nil
}

// each calls f for the part of each segment that the blocks [first, end) are in.
func (w *sumsWriter) each(first, end int64, f func(x *sumsSegment, from, to int64) error) error {
	for first < end {
		seg := first / segment
		x, err := w.segment(seg)
		if err != nil {
			return err
		}
		to := min(end, (seg+1)*segment)
		if err := f(x, first-seg*segment, to-seg*segment); err != nil {
			return err
		}
		first = to
	}
	return nil
}

func (w *sumsWriter) change(x *sumsSegment, at int64, sum uint64) {
	switch old := x.sums[at]; {
	case old == sum:
		return
	case old == 0:
		w.grown += checksum.BlockSize
	case sum == 0:
		w.grown -= checksum.BlockSize
	}
	x.sums[at] = sum
	if x.from == x.to {
		x.from, x.to = at, at+1
	} else {
		x.from, x.to = min(x.from, at), max(x.to, at+1)
	}
}

// set changes the sums of blocks from first on.
func (w *sumsWriter) set(first int64, sums []uint64) error {
	return w.each(first, first+int64(len(sums)), func(x *sumsSegment, from, to int64) error {
		for at := from; at < to; at++ {
			w.change(x, at, sums[at-from])
		}
		sums = sums[to-from:]
		return nil
	})
}

// zero sets the sums of blocks [first, end) to 0, of whole segments by one request.
func (w *sumsWriter) zero(first, end int64) error {
	from, to := (first+segment-1)/segment, end/segment
	if from < to {
		for seg := from; seg < to; seg++ {
			if w.cached[seg] != nil {
				w.drop(seg)
			}
		}
		if err := w.s.zero(w.ctx, w.word, from, to); err != nil {
			return err
		}
		if err := w.zeroPart(first, from*segment); err != nil {
			return err
		}
		return w.zeroPart(to*segment, end)
	}
	return w.zeroPart(first, end)
}

func (w *sumsWriter) zeroPart(first, end int64) error {
	return w.each(first, end, func(x *sumsSegment, from, to int64) error {
		for at := from; at < to; at++ {
			w.change(x, at, 0)
		}
		return nil
	})
}

// empty reports whether the blocks [first, end) are known to be zeros.
func (w *sumsWriter) empty(first, end int64) (bool, error) {
	for first < end {
		seg := first / segment
		to := min(end, (seg+1)*segment)
		if w.cached[seg] == nil && !w.s.isWritten(seg) {
			first = to
			continue
		}
		if w.cached[seg] == nil && to-first == segment {
			return false, nil // it is not worth a look
		}
		x, err := w.segment(seg)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(x.sums[first-seg*segment:to-seg*segment], func(s uint64) bool { return s != 0 }) {
			return false, nil
		}
		first = to
	}
	return true, nil
}

// read gives the sums of the blocks from first on, as far as there are any.
func (w *sumsWriter) read(first int64, dst []uint64) error {
	return w.each(first, min(first+int64(len(dst)), w.s.blocks), func(x *sumsSegment, from, to int64) error {
		dst = dst[copy(dst, x.sums[from:to]):]
		return nil
	})
}

// flush writes all that was changed, beside other uploads.
func (w *sumsWriter) flush(up *uploads) error {
	for _, seg := range w.used {
		if err := up.start(func() error { return w.store(seg) }); err != nil {
			return err
		}
	}
	return nil
}
