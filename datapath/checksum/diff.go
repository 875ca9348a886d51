package checksum

import (
	"context"
	"fmt"
)

const (
	// WindowBlocks is how much of a disk two sides compare at a time: 256 MiB, with half
	// a MiB of sums.
	WindowBlocks = 64 << 10
	// diffLevel is the level that a window is compared by first: 16 MiB a sum. Less for
	// the line where nothing differs, more steps where something does.
	diffLevel = 3
	// maxGap: runs of sums that are so near to each other are asked for as one, which
	// costs fewer bytes than another question.
	maxGap = 16
)

// Run is a run of sums of one level: [From, To).
type Run struct{ From, To int64 }

// Len is how many sums it has.
func (r Run) Len() int64 { return r.To - r.From }

// Query asks the other side for sums of a level. The answer has those of all runs,
// one after the other; a run has at most MaxSums.
type Query func(ctx context.Context, level int, runs []Run) ([]uint64, error)

// Window is a part of a disk's level-0 sums as Leaves. Only the sums of the window
// can be read.
type Window struct {
	First  int64 // block
	Blocks int64 // of the whole disk
	Sums   []uint64
}

// Len is the number of blocks of the disk.
func (w Window) Len() int64 { return w.Blocks }

// ReadSums copies from first on.
func (w Window) ReadSums(first int64, dst []uint64) error {
	from := first - w.First
	if from < 0 || from > int64(len(w.Sums)-len(dst)) {
		return fmt.Errorf("read checksums: blocks %d to %d, known are %d to %d", first, first+int64(len(dst)), w.First, w.First+int64(len(w.Sums)))
	}
	copy(dst, w.Sums[from:])
	return nil
}

// Diff finds the ranges in which a window of a local disk of size bytes differs from
// the other side. A window begins at a multiple of WindowBlocks, and has so many or
// goes to the disk's end. Ranges come in order, adjacent ones merged.
func Diff(ctx context.Context, local Window, size int64, remote Query) ([]Range, error) {
	end := local.First + int64(len(local.Sums))
	if local.Blocks != Blocks(size) || local.First%WindowBlocks != 0 || end > local.Blocks || end%WindowBlocks != 0 && end != local.Blocks {
		return nil, fmt.Errorf("compare checksums: blocks %d to %d of %d are no window of a disk of %d bytes", local.First, end, local.Blocks, size)
	}
	span := Span(diffLevel)
	runs := []Run{{local.First / span, (end + span - 1) / span}}
	for level := diffLevel; ; level-- {
		differ, err := differing(ctx, local, level, runs, remote)
		if err != nil {
			return nil, err
		}
		if level == 0 {
			return blockRanges(differ, size), nil
		}
		if len(differ) == 0 {
			return nil, nil
		}
		runs = children(differ, LevelLen(local.Blocks, level-1))
	}
}

// differing gives the sums of a level that differ, of those in the runs.
func differing(ctx context.Context, local Leaves, level int, runs []Run, remote Query) ([]int64, error) {
	theirs, err := remote(ctx, level, runs)
	if err != nil {
		return nil, err
	}
	var differ []int64
	for _, r := range runs {
		if int64(len(theirs)) < r.Len() {
			return nil, fmt.Errorf("compare checksums: too few sums of level %d", level)
		}
		ours := make([]uint64, r.Len())
		if err := Level(local, level, r.From, ours); err != nil {
			return nil, err
		}
		for i := range ours {
			if ours[i] != theirs[i] {
				differ = append(differ, r.From+int64(i))
			}
		}
		theirs = theirs[r.Len():]
	}
	if len(theirs) > 0 {
		return nil, fmt.Errorf("compare checksums: too many sums of level %d", level)
	}
	return differ, nil
}

// children gives the runs of the next finer level below the sums that differ.
func children(differ []int64, total int64) []Run {
	var out []Run
	for _, d := range differ {
		from, to := d*Fanout, min((d+1)*Fanout, total)
		if n := len(out); n > 0 && from-out[n-1].To <= maxGap && to-out[n-1].From <= MaxSums {
			out[n-1].To = to
			continue
		}
		out = append(out, Run{from, to})
	}
	return out
}

func blockRanges(blocks []int64, size int64) []Range {
	var out []Range
	for _, b := range blocks {
		out = AppendBlock(out, b, size)
	}
	return out
}

// AppendBlock adds a block of a disk of size bytes to ranges that are in order, to the
// last of them where it follows it.
func AppendBlock(ranges []Range, block, size int64) []Range {
	off := block * BlockSize
	length := min(BlockSize, size-off)
	if n := len(ranges); n > 0 && ranges[n-1].End() == off {
		ranges[n-1].Length += length
		return ranges
	}
	return append(ranges, Range{off, length})
}
