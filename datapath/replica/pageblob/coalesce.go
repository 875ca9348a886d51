package pageblob

import (
	"context"
	"errors"
	"slices"

	"drover/datapath/checksum"
	"drover/datapath/replica"
)

// What a request costs, in blocks: a standard page blob takes 60 MiB/s and 500
// requests/s, so that a request is worth 120 KiB of reading or writing.
const requestBlocks = (60 << 20) / 500 / checksum.BlockSize

// piece is one request: blocks [from, to) of a window, written (data) or cleared (zeros).
type piece struct {
	kind     byte
	from, to int64
	// gaps is where, within it, what the blob holds is read first and written again;
	// empty: nowhere.
	gaps struct{ from, to int64 }
}

// cost is what the piece's requests and bytes are worth, in blocks.
func (p piece) cost() int64 {
	c := int64(requestBlocks)
	if p.kind == data {
		c += p.to - p.from
	}
	if n := p.gaps.to - p.gaps.from; n > 0 {
		c += requestBlocks + n
	}
	return c
}

// pieces gives the window's runs, joined where that costs less: the blocks between two
// runs are written again as they are. Long zeros are never written, and where the
// content is not known for certain nothing is joined.
func (w *window) pieces() []piece {
	runs := w.runs()
	if !w.known || len(runs) < 2 {
		return runs
	}
	// best[i] is the cheapest way to write the runs from i on, its first piece next[i].
	best, next, first := make([]int64, len(runs)+1), make([]int, len(runs)), make([]piece, len(runs))
	for i := len(runs) - 1; i >= 0; i-- {
		p := runs[i]
		best[i], next[i], first[i] = p.cost()+best[i+1], i+1, p
		for j := i + 1; j < len(runs); j++ {
			var ok bool
			if p, ok = w.join(p, runs[j]); !ok {
				break
			}
			if c := p.cost() + best[j+1]; c < best[i] {
				best[i], next[i], first[i] = c, j+1, p
			}
		}
	}
	var out []piece
	for i := 0; i < len(runs); i = next[i] {
		out = append(out, first[i])
	}
	return out
}

// join makes one piece of two, unless long zeros are in it.
func (w *window) join(p, q piece) (piece, bool) {
	for _, x := range []piece{p, q} {
		if x.kind == zeros && x.to-x.from >= minClear {
			return p, false
		}
	}
	empty := int64(0)
	for i := p.to; i < q.from; i++ {
		if w.sums[i] == 0 {
			if empty++; empty > maxEmpty {
				return p, false
			}
			continue
		}
		empty = 0
		if p.gaps.to == 0 {
			p.gaps.from = i
		}
		p.gaps.to = i + 1
	}
	p.kind, p.to = data, q.to
	return p, true
}

// fill takes what the blob holds in a piece's gaps into the window. Each block is
// compared with its checksum, so that damage is not written anew.
func (d *diskWriter) fill(ctx context.Context, w *window, p piece) error {
	for i := p.from; i < p.to; i++ {
		if w.state[i] == untouched && w.sums[i] == 0 {
			clear(w.buf[i*checksum.BlockSize : (i+1)*checksum.BlockSize])
		}
	}
	if p.gaps.to == 0 {
		return nil
	}
	r, _ := windowPool.Get().(*window)
	defer windowPool.Put(r)
	from, to := p.gaps.from*checksum.BlockSize, p.gaps.to*checksum.BlockSize
	start := w.index * windowBytes
	if err := d.o.vhd.read(ctx, start+from, r.buf[from:to]); err != nil {
		return err
	}
	for i := p.gaps.from; i < p.gaps.to; i++ {
		if w.state[i] != untouched || w.sums[i] == 0 {
			continue
		}
		at := i * checksum.BlockSize
		b := r.buf[at : at+checksum.BlockSize]
		if err := replica.VerifyBlocks(d.o.disk, start+at, b, w.sums[i:i+1]); err != nil {
			return err
		}
		copy(w.buf[at:], b)
	}
	return nil
}

// filled makes a piece's gaps known, or gives the piece as the runs that it was joined of.
func (d *diskWriter) filled(w *window, p piece) ([]piece, error) {
	err := d.fill(d.up.ctx, w, p)
	if errors.Is(err, replica.ErrCorrupt) {
		return slices.DeleteFunc(w.runs(), func(r piece) bool { return r.from < p.from || r.to > p.to }), nil
	}
	return []piece{p}, err
}
