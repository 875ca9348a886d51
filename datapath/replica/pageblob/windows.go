package pageblob

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
)

const (
	windowBytes  = maxPut // a window is what one Put Page can write
	windowBlocks = windowBytes / checksum.BlockSize
	// maxWindows are gathered at once for one disk; more are written out.
	maxWindows = 4
	// minClear is the shortest run of zeros, in blocks, for which a request is made of
	// its own when there is data on both sides.
	minClear = 16
	// maxEmpty is the longest run of blocks, of which the blob has none, that is written as
	// zeros to save a request.
	maxEmpty = 4
)

// shares divide the writes to a machine's disks evenly among those that are not done: one
// that is large, or does not answer, takes none of another's.
type shares struct {
	mu    sync.Mutex
	all   int           // writes at once
	disks int           // that are not done
	more  chan struct{} // closed, and made anew, when there may be room
}

func newShares(all, disks int) *shares {
	return &shares{all: all, disks: disks, more: make(chan struct{})}
}

// take waits until the disk has room for one more of its own; give ends one.
func (s *shares) take(ctx context.Context, mine *int) error {
	for {
		s.mu.Lock()
		if *mine < max(1, s.all/s.disks) {
			*mine++
			s.mu.Unlock()
			return nil
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *shares) give(mine *int) { s.change(func() { *mine-- }) }

// done leaves the disk's share to the others.
func (s *shares) done() { s.change(func() { s.disks-- }) }

func (s *shares) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.more)
	s.more = make(chan struct{})
}

// uploads are the writes under way to one disk for one change set.
type uploads struct {
	ctx    context.Context // of the group
	group  *errgroup.Group
	cancel context.CancelFunc
	shares *shares
	under  int // way; guarded by shares
}

func newUploads(ctx context.Context, s *shares) *uploads {
	ctx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	return &uploads{ctx: gctx, group: g, cancel: cancel, shares: s}
}

// start runs f beside others as soon as the disk's share allows.
func (u *uploads) start(f func() error) error {
	if err := u.shares.take(u.ctx, &u.under); err != nil {
		return err
	}
	u.group.Go(func() error {
		defer u.shares.give(&u.under)
		return f()
	})
	return nil
}

func (u *uploads) wait() error { return u.group.Wait() }

// stop ends what is still under way and waits for it.
func (u *uploads) stop() {
	u.cancel()
	_ = u.group.Wait() // whoever needs the error has waited before
}

var windowPool = sync.Pool{New: func() any { return new(window) }}

// What is known of a block of a window.
const (
	untouched = iota
	data
	zeros   // and the blob may have something there
	nothing // zeros where the blob has none: no request is needed
)

// window is 4 MiB of a disk of which some blocks are to be written.
type window struct {
	index int64
	state [windowBlocks]byte
	buf   [windowBytes]byte
	// sums are those of what the blob holds, before this window is written; only when known.
	sums  [windowBlocks]uint64
	known bool
}

// diskWriter gathers a change set's blocks of one disk into windows. A later extent
// wins over an earlier one, also when a window is written out in between: the next
// one of the same place waits for it.
type diskWriter struct {
	w       *Writer
	o       *openDisk
	up      *uploads
	sums    *sumsWriter
	again   bool
	windows []*window // the most recently used last
	flying  map[int64]chan struct{}
	bytes   atomic.Int64
}

func newDiskWriter(w *Writer, o *openDisk, up *uploads, again bool) *diskWriter {
	return &diskWriter{w: w, o: o, up: up, again: again, flying: map[int64]chan struct{}{},
		sums: &sumsWriter{ctx: up.ctx, s: o.sums, word: w.mf.word(), cached: map[int64]*sumsSegment{}}}
}

func (d *diskWriter) extent(e *changeset.Extent) error {
	first, n := e.Offset/checksum.BlockSize, checksum.Blocks(e.Length)
	if e.Zero {
		return d.zero(first, first+n)
	}
	for n > 0 {
		w, err := d.window(first / windowBlocks)
		if err != nil {
			return err
		}
		at := first % windowBlocks
		part := min(n, windowBlocks-at)
		bytes := min(part*checksum.BlockSize, int64(len(e.Data)))
		copy(w.buf[at*checksum.BlockSize:], e.Data[:bytes])
		for i, s := range e.Sums[:part] {
			w.state[at+int64(i)] = data
			if s == 0 {
				w.state[at+int64(i)] = zeros
			}
		}
		if err := d.sums.set(first, e.Sums[:part]); err != nil {
			return err
		}
		e.Data, e.Sums = e.Data[bytes:], e.Sums[part:]
		first, n = first+part, n-part
	}
	return nil
}

// zero takes a range of zeros: single blocks at its ends go into windows, whole
// windows in between are cleared at once.
func (d *diskWriter) zero(first, end int64) error {
	from, to := (first+windowBlocks-1)/windowBlocks, end/windowBlocks
	if end == checksum.Blocks(d.o.disk.Size) {
		to = (end + windowBlocks - 1) / windowBlocks // the disk's last window is whole, too
	}
	if from >= to {
		return d.zeroBlocks(first, end)
	}
	if err := d.zeroBlocks(first, from*windowBlocks); err != nil {
		return err
	}
	if err := d.zeroBlocks(to*windowBlocks, end); err != nil {
		return err
	}
	return d.zeroWindows(from, to, end)
}

func (d *diskWriter) zeroBlocks(first, end int64) error {
	for first < end {
		w, err := d.window(first / windowBlocks)
		if err != nil {
			return err
		}
		at := first % windowBlocks
		part := min(end-first, windowBlocks-at)
		clear(w.buf[at*checksum.BlockSize : (at+part)*checksum.BlockSize])
		for i := at; i < at+part; i++ {
			w.state[i] = zeros
		}
		if err := d.sums.zero(first, first+part); err != nil {
			return err
		}
		first += part
	}
	return nil
}

// zeroWindows clears whole windows, or does nothing where the blob has only zeros.
func (d *diskWriter) zeroWindows(from, to, end int64) error {
	kept := d.windows[:0]
	for _, w := range d.windows {
		if w.index >= from && w.index < to {
			windowPool.Put(w)
		} else {
			kept = append(kept, w)
		}
	}
	d.windows = kept
	for i := range d.flying {
		if i >= from && i < to {
			if err := d.land(i); err != nil {
				return err
			}
		}
	}
	first, last := from*windowBlocks, min(to*windowBlocks, end)
	empty, err := d.sums.empty(first, last)
	if err != nil {
		return err
	}
	if !empty || d.again {
		off := first * checksum.BlockSize
		if _, err := d.o.vhd.clear(d.up.ctx, d.w.mf.word(), off, min(last*checksum.BlockSize, d.o.disk.Size)-off); err != nil {
			return err
		}
	}
	return d.sums.zero(first, last)
}

// window gives the window to gather into; the one used least recently makes room.
func (d *diskWriter) window(index int64) (*window, error) {
	for i, w := range d.windows {
		if w.index == index {
			d.windows = append(append(d.windows[:i], d.windows[i+1:]...), w)
			return w, nil
		}
	}
	if len(d.windows) >= maxWindows {
		if err := d.send(d.windows[0]); err != nil {
			return nil, err
		}
		d.windows = append(d.windows[:0], d.windows[1:]...)
	}
	if err := d.land(index); err != nil {
		return nil, err
	}
	w, _ := windowPool.Get().(*window)
	w.index = index
	clear(w.state[:])
	if w.known = !d.again; w.known {
		if err := d.sums.read(index*windowBlocks, w.sums[:]); err != nil {
			windowPool.Put(w)
			return nil, err
		}
	}
	d.windows = append(d.windows, w)
	return w, nil
}

// errLate: the place would be written twice, and the first time had no answer.
var errLate = errors.New("a write had no answer and could be done after the next one to the same place: apply the change set again")

// land waits until a window that is being written is written.
func (d *diskWriter) land(index int64) error {
	done, ok := d.flying[index]
	if !ok {
		return nil
	}
	select {
	case <-done:
		delete(d.flying, index)
	case <-d.up.ctx.Done():
		return d.up.ctx.Err()
	}
	if d.o.vhd.pacer.Unanswered() > 0 {
		return errLate // the next try has another session
	}
	return nil
}

// send writes a window out, beside others.
func (d *diskWriter) send(w *window) error {
	if err := d.up.ctx.Err(); err != nil {
		return err
	}
	done := make(chan struct{})
	d.flying[w.index] = done
	return d.up.start(func() error {
		defer close(done)
		defer windowPool.Put(w)
		return d.write(w)
	})
}

// flush writes all that is left.
func (d *diskWriter) flush() error {
	for _, w := range d.windows {
		if err := d.send(w); err != nil {
			return err
		}
	}
	d.windows = nil
	return d.sums.flush(d.up)
}

// write makes as few requests as are worth it.
func (d *diskWriter) write(w *window) error {
	for _, p := range w.pieces() {
		parts, err := d.filled(w, p)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if err := d.writePiece(w, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *diskWriter) writePiece(w *window, p piece) (err error) {
	start := w.index * windowBytes
	off, end := p.from*checksum.BlockSize, min(p.to*checksum.BlockSize, d.o.disk.Size-start)
	if p.kind == zeros {
		_, err = d.o.vhd.clear(d.up.ctx, d.w.mf.word(), start+off, end-off)
	} else {
		_, err = d.o.vhd.put(d.up.ctx, d.w.mf.word(), start+off, w.buf[off:end])
		d.bytes.Add(end - off)
	}
	if err != nil {
		return err
	}
	return d.w.m.store.step(failpoint.ImageWritten)
}

// runs gives the runs of blocks to write (data) and to clear (zeros). Short runs of
// zeros between data are written with it.
func (w *window) runs() (out []piece) {
	for i := range w.state {
		if w.state[i] == zeros && w.known && w.sums[i] == 0 {
			w.state[i] = nothing
		}
	}
	for i := 0; i < windowBlocks; {
		j := i
		for j < windowBlocks && w.isZeros(j) {
			j++
		}
		if n := j - i; n > 0 && n < minClear && i > 0 && w.state[i-1] == data && j < windowBlocks && w.state[j] == data {
			for k := i; k < j; k++ {
				w.state[k] = data // its bytes in the buffer are zeros
			}
		}
		i = max(j, i+1)
	}
	for i := 0; i < windowBlocks; {
		kind, j := w.state[i], i+1
		for j < windowBlocks && w.state[j] == kind {
			j++
		}
		if kind == data || kind == zeros {
			out = append(out, piece{kind: kind, from: int64(i), to: int64(j)})
		}
		i = j
	}
	return out
}

func (w *window) isZeros(i int) bool { return w.state[i] == zeros || w.state[i] == nothing }
