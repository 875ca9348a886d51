package verify

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"drover/agent/disk"
	"drover/agent/pace"
	"drover/datapath/checksum"
)

// read fills sums with the checksums of the disk's blocks from first on, as they are
// now.
func (r *run) read(ctx context.Context, d Disk, first int64, sums []uint64) error {
	if r.buf == nil {
		r.buf = disk.Buffer(readBytes)
	}
	pos, end := first*checksum.BlockSize, min((first+int64(len(sums)))*checksum.BlockSize, d.Size)
	for pos < end {
		from, to, err := d.Open.NextData(pos)
		if err != nil {
			return err
		}
		from, to = min(from, end), min(to, end)
		clear(sums[pos/checksum.BlockSize-first : checksum.Blocks(from)-first]) // a hole is zeros
		if pos = from; pos == end {
			break
		}
		if to <= pos { // it has shrunk
			return fmt.Errorf("the disk ends at byte %d of %d: %w", pos, d.Size, io.ErrUnexpectedEOF)
		}
		b := r.buf[:min(to-pos, readBytes)]
		if err := r.limit.WaitN(ctx, len(b)); err != nil {
			return err
		}
		if err := pace.Wait(ctx, int64(len(b))); err != nil {
			return err
		}
		if _, err := d.Open.ReadAt(b, pos); err != nil {
			return err
		}
		i := pos/checksum.BlockSize - first
		checksum.SumAll(sums[i:i], d.Seed, pos, b)
		pos += int64(len(b))
	}
	return nil
}

// settle looks at all that waits as of a point that is cut from now on, once.
func (r *run) settle(ctx context.Context) error {
	replica, source, err := r.lookAgain(ctx, r.waiting)
	if err != nil {
		return err
	}
	var again, differ []candidate
	for i, c := range r.waiting {
		switch {
		case replica[i] == c.sum, replica[i] == source[i]:
			continue // the replica has what the source had
		case source[i] != c.sum:
			c.strikes = 0
		case c.strikes > 0 && replica[i] != c.theirs:
			c.strikes = 1
		default:
			c.strikes++
		}
		c.rounds++
		c.sum, c.theirs = source[i], replica[i]
		switch {
		case c.strikes == strikes:
			differ = append(differ, c)
		case c.rounds == maxRounds:
			r.done[c.disk].Busy += checksum.BlockSize
		default:
			again = append(again, c)
		}
	}
	r.waiting = again
	return r.condemn(differ)
}

// condemn notes blocks that differ.
func (r *run) condemn(differ []candidate) error {
	for _, c := range differ {
		d := &r.done[c.disk]
		d.Differed += checksum.BlockSize
		if len(d.First) < maxFirst {
			d.First = append(d.First, c.block*checksum.BlockSize)
		}
		c.strikes, c.rounds = 0, 0
		r.mending = append(r.mending, c)
	}
	var all int64
	for _, d := range r.done {
		all += d.Differed / checksum.BlockSize
	}
	if all > r.most {
		r.tooMuch, r.finished = true, true
		r.waiting, r.mending = nil, nil
	}
	return nil
}

// remedy has the blocks that differ sent again, and looks whether the replica has them
// then. What it has not, though it was not written, stays counted as not mended.
func (r *run) remedy(ctx context.Context) error {
	ranges := make([][]checksum.Range, len(r.disks))
	slices.SortFunc(r.mending, byPlace)
	for _, c := range r.mending {
		ranges[c.disk] = checksum.AppendBlock(ranges[c.disk], c.block, r.disks[c.disk].Size)
	}
	for i, some := range ranges {
		if len(some) == 0 {
			continue
		}
		if err := r.replica.Mend(ctx, i, some); err != nil {
			return err
		}
	}
	replica, source, err := r.lookAgain(ctx, r.mending)
	if err != nil {
		return err
	}
	var again []candidate
	for i, c := range r.mending {
		c.rounds++
		switch {
		// Written meanwhile: it was sent for that reason too, and is as good as mended.
		case replica[i] == c.sum, replica[i] == source[i], source[i] != c.sum:
			r.done[c.disk].Mended += checksum.BlockSize
		case c.rounds < remedies:
			again = append(again, c)
		}
	}
	r.mending = again
	return nil
}

func byPlace(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.disk, b.disk), cmp.Compare(a.block, b.block))
}

// lookAgain gives the checksums of the candidates in the replica, as of a point that is
// cut after the call, and then in the source.
func (r *run) lookAgain(ctx context.Context, all []candidate) (replica, source []uint64, err error) {
	slices.SortFunc(all, byPlace)
	replica, source = make([]uint64, len(all)), make([]uint64, len(all))
	sums := make([]uint64, checksum.MaxSums)
	settle := true
	for i := 0; i < len(all); {
		n := near(all[i:])
		q := Query{Settle: settle, Disk: all[i].disk, First: all[i].block, Count: int(all[i+n-1].block-all[i].block) + 1}
		theirs, err := r.ask(ctx, q)
		if err != nil {
			return nil, nil, err
		}
		settle = false
		for ; n > 0; n, i = n-1, i+1 {
			replica[i] = theirs[all[i].block-q.First]
		}
	}
	for i := 0; i < len(all); {
		n := near(all[i:])
		first := all[i].block
		ours := sums[:all[i+n-1].block-first+1]
		if err := r.read(ctx, r.disks[all[i].disk], first, ours); err != nil {
			return nil, nil, err
		}
		for ; n > 0; n, i = n-1, i+1 {
			source[i] = ours[all[i].block-first]
		}
	}
	return replica, source, nil
}

// near is how many of the candidates lie so near to each other that they are asked for
// together.
func near(all []candidate) int {
	n := 1
	for n < len(all) && all[n].disk == all[0].disk && all[n].block-all[n-1].block <= maxGap && all[n].block-all[0].block < checksum.MaxSums {
		n++
	}
	return n
}
