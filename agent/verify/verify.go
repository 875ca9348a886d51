// Package verify compares a machine's disks with their replica while replication runs:
// the agent's half of it, the process server has the other one.
//
// It shares nothing with what sends changes: it has its own handles on the disks, its
// own reads, and takes no tracker's word for anything. So it finds what a tracker
// missed.
//
// Every block is read once and its checksum compared with the replica's newest
// recovery point. A block that is not the same there may be on its way. So it is looked
// at again as of a point that was cut after it was read. When the block is still what it
// was, and the replica has something else, and both are the same in several rounds in
// turn, then it differs: what is under way changes the one or the other. A block that
// was written meanwhile is tried again; after some rounds it is counted as busy.
package verify

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/time/rate"

	"drover/datapath/checksum"
)

// Bounds of a comparison.
const (
	// windowBlocks are compared in one go: 512 MiB of a disk, 1 MiB of checksums.
	windowBlocks = checksum.MaxCompared
	// windowLevel is the level that a window is compared by first: 256 blocks a sum.
	windowLevel = 2
	// readBytes are read at a time.
	readBytes = 1 << 20
	// maxCandidates: with so many the scan pauses until they are settled.
	maxCandidates = 64 << 10
	// maxGap: blocks that are so near to each other are asked for in one query.
	maxGap = 64
	// maxRounds bounds how often a block is looked at again that is written meanwhile.
	maxRounds = 8
	// strikes is in how many rounds in turn a block that is not written must differ. A
	// block that a guest switches between two contents can look like that in one.
	strikes = 3
	// remedies is how often a block that differs is sent again.
	remedies = 2
	// maxDiffer bounds the blocks that are sent again (4 GiB); beyond, a resync is better.
	maxDiffer = 1 << 20
	// maxFirst is how many places of differences are told per disk.
	maxFirst = 8
)

// Reader reads a disk; agent/disk has it.
type Reader interface {
	ReadAt(p []byte, off int64) (int, error)
	NextData(off int64) (start, end int64, err error)
}

// Disk is one disk of the machine.
type Disk struct {
	Size int64
	Seed uint64
	Open Reader
	// Free is how many bytes of some blocks read as zeros because they are free, whatever
	// is in them; nil: none.
	Free func(first, end int64) int64
}

// Query asks for checksums of the replica as of a point: the newest one, or with
// Settle one that was cut after the query was asked. Level 0 without Settle is as of
// the query before.
type Query struct {
	Settle      bool
	Disk        int
	Level       int
	First       int64
	Count       int
	Done, Total int64 // bytes read so far
}

// Replica is the other side.
type Replica interface {
	Sums(ctx context.Context, q Query) ([]uint64, error)
	// Mend has the range sent again with the next cut.
	Mend(ctx context.Context, disk int, ranges []checksum.Range) error
}

// Result is what was found on one disk, in bytes of whole blocks.
type Result struct {
	Differed, Mended, Busy int64
	Free                   int64   // was not compared
	First                  []int64 // offsets
}

// Comparison is one comparison. It survives its replica: Run goes on where an earlier
// Run ended.
type Comparison struct {
	ID       uint64
	sizes    []int64
	done     []Result
	most     int64 // maxDiffer
	wait     int   // maxCandidates
	tooMuch  bool  // it was given up
	disk     int   // what is scanned next
	block    int64 // of disk
	waiting  []candidate
	mending  []candidate // sent again, to be found equal
	finished bool
}

// candidate is a block that was not the same.
type candidate struct {
	disk    int
	block   int64
	sum     uint64 // of the source, when it was read last
	theirs  uint64 // of the replica, in the round before
	strikes int
	rounds  int
}

// New makes a comparison of disks of these sizes, with nothing done.
func New(id uint64, sizes []int64) *Comparison {
	return &Comparison{ID: id, sizes: sizes, most: maxDiffer, wait: maxCandidates, done: make([]Result, len(sizes))}
}

// Fits reports whether the comparison is the one of the id, over such disks.
func (c *Comparison) Fits(id uint64, sizes []int64) bool {
	return c != nil && c.ID == id && slices.Equal(c.sizes, sizes)
}

// Run compares until all is done, and gives what each disk came to; tooMuch says that
// it was given up because so much differs. The limiter bounds what is read, in bytes.
func (c *Comparison) Run(ctx context.Context, disks []Disk, replica Replica, limit *rate.Limiter) (found []Result, tooMuch bool, err error) {
	r := &run{Comparison: c, disks: disks, replica: replica, limit: limit}
	for !c.finished {
		if err := r.step(ctx); err != nil {
			return nil, false, err
		}
	}
	return c.done, c.tooMuch, nil
}

// run is one attempt at a comparison.
type run struct {
	*Comparison
	disks   []Disk
	replica Replica
	limit   *rate.Limiter
	buf     []byte
}

// step does the next thing: settle what waits, or scan a window.
func (r *run) step(ctx context.Context) error {
	scanned := r.disk == len(r.disks)
	switch {
	case len(r.waiting) >= r.wait, scanned && len(r.waiting) > 0:
		return r.settle(ctx)
	case len(r.mending) > 0 && (scanned || len(r.mending) >= r.wait):
		return r.remedy(ctx)
	case scanned:
		r.finished = true
		return nil
	}
	return r.scan(ctx)
}

// position gives what was read and what there is, in bytes.
func (r *run) position() (done, total int64) {
	for i, d := range r.disks {
		total += d.Size
		switch {
		case i < r.disk:
			done += d.Size
		case i == r.disk:
			done += min(r.block*checksum.BlockSize, d.Size)
		}
	}
	return done, total
}

func (r *run) ask(ctx context.Context, q Query) ([]uint64, error) {
	q.Done, q.Total = r.position()
	sums, err := r.replica.Sums(ctx, q)
	if err == nil && len(sums) != q.Count {
		err = fmt.Errorf("compare disk %d: got %d checksums, asked for %d", q.Disk, len(sums), q.Count)
	}
	return sums, err
}

// scan compares the next window and notes the blocks that are not the same.
func (r *run) scan(ctx context.Context) error {
	d := r.disks[r.disk]
	w := checksum.Window{First: r.block, Blocks: checksum.Blocks(d.Size)}
	w.Sums = make([]uint64, min(windowBlocks, w.Blocks-w.First))
	if err := r.read(ctx, d, w.First, w.Sums); err != nil {
		return fmt.Errorf("compare disk %d: %w", r.disk, err)
	}
	span := checksum.Span(windowLevel)
	first := w.First / span
	ours := make([]uint64, (int64(len(w.Sums))+span-1)/span)
	if err := checksum.Level(w, windowLevel, first, ours); err != nil {
		return err
	}
	theirs, err := r.ask(ctx, Query{Disk: r.disk, Level: windowLevel, First: first, Count: len(ours)})
	if err != nil {
		return err
	}
	var differ []candidate
	for i := range ours {
		if ours[i] == theirs[i] {
			continue
		}
		from := int64(i) * span
		part := w.Sums[from:min(from+span, int64(len(w.Sums)))]
		found, err := r.compareBlocks(ctx, w.First+from, part)
		if err != nil {
			return err
		}
		differ = append(differ, found...)
	}
	// Noted at once: a Run that ends before scans the window again.
	r.waiting = append(r.waiting, differ...)
	if d.Free != nil {
		r.done[r.disk].Free += d.Free(w.First, w.First+int64(len(w.Sums)))
	}
	if r.block += int64(len(w.Sums)); r.block == w.Blocks {
		r.disk, r.block = r.disk+1, 0
	}
	return nil
}

func (r *run) compareBlocks(ctx context.Context, first int64, ours []uint64) ([]candidate, error) {
	theirs, err := r.ask(ctx, Query{Disk: r.disk, First: first, Count: len(ours)})
	if err != nil {
		return nil, err
	}
	var differ []candidate
	for i := range ours {
		if ours[i] != theirs[i] {
			differ = append(differ, candidate{disk: r.disk, block: first + int64(i), sum: ours[i]})
		}
	}
	return differ, nil
}
