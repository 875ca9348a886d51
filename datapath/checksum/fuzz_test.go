package checksum

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"drover/tests/fuzz"
)

// FuzzDiff compares two disks of any size: the ranges found are exactly the blocks
// that differ. Each byte of the input stands for a piece of a disk.
func FuzzDiff(f *testing.F) {
	fuzz.Seed(f, "same", []byte{1, 2, 3}, []byte{1, 2, 3}, 512)
	fuzz.Seed(f, "last-short", []byte{1, 2, 3}, []byte{1, 2, 4}, 1536)
	fuzz.Seed(f, "zeros", []byte{0, 0, 0, 0}, []byte{0, 1, 0, 0}, 4096)
	fuzz.Seed(f, "odd", bytes.Repeat([]byte{1}, 40), append(bytes.Repeat([]byte{1}, 39), 9), 4097)
	fuzz.Seed(f, "levels", bytes.Repeat([]byte{7}, 2000), append(bytes.Repeat([]byte{7}, 1000), bytes.Repeat([]byte{8}, 1000)...), 9000)
	f.Fuzz(func(t *testing.T, a, b []byte, piece int) {
		const maxDisk = 32 << 20
		n := min(len(a), len(b))
		if piece <= 0 || piece > maxDisk || n*piece > maxDisk || n == 0 {
			return
		}
		left, right := stretch(a[:n], piece), stretch(b[:n], piece)
		size := int64(len(left))
		theirs := Memory(SumAll(nil, 5, 0, right))
		ours := SumAll(nil, 5, 0, left)
		got, err := Diff(t.Context(), Window{0, int64(len(ours)), ours}, size, answer(theirs))
		require.NoError(t, err)
		var want []Range
		for off := int64(0); off < size; off += BlockSize {
			end := min(off+BlockSize, size)
			if bytes.Equal(left[off:end], right[off:end]) {
				continue
			}
			if n := len(want); n > 0 && want[n-1].End() == off {
				want[n-1].Length += end - off
				continue
			}
			want = append(want, Range{off, end - off})
		}
		require.Equal(t, want, got)
	})
}

// answer answers queries from sums.
func answer(theirs Leaves) Query {
	return func(_ context.Context, level int, runs []Run) ([]uint64, error) {
		var out []uint64
		for _, r := range runs {
			if r.Len() <= 0 || r.Len() > MaxSums {
				return nil, fmt.Errorf("a run of %d", r.Len())
			}
			part := make([]uint64, r.Len())
			if err := Level(theirs, level, r.From, part); err != nil {
				return nil, err
			}
			out = append(out, part...)
		}
		return out, nil
	}
}

// TestDiffByWindows compares a disk that is longer than a window, part by part.
func TestDiffByWindows(t *testing.T) {
	const blocks = 2*WindowBlocks + 1000
	ours := make([]uint64, blocks)
	for i := range ours {
		ours[i] = uint64(i) * 3
	}
	theirs := Memory(slices.Clone(ours))
	var want, got []Range
	for _, b := range []int64{0, 17, WindowBlocks - 1, WindowBlocks, 2*WindowBlocks - 5000, 2 * WindowBlocks, blocks - 1} {
		theirs[b]++
		want = append(want, Range{b * BlockSize, BlockSize})
	}
	const size = blocks*BlockSize - 512
	want[len(want)-1].Length -= 512
	asked := map[int]int{}
	for first := int64(0); first < blocks; first += WindowBlocks {
		part := ours[first:min(first+WindowBlocks, blocks)]
		found, err := Diff(t.Context(), Window{first, blocks, part}, size, func(ctx context.Context, level int, runs []Run) ([]uint64, error) {
			asked[level]++
			return answer(theirs)(ctx, level, runs)
		})
		require.NoError(t, err)
		got = append(got, found...)
	}
	require.Equal(t, want, got)
	require.Equal(t, map[int]int{3: 3, 2: 3, 1: 3, 0: 3}, asked, "one question for each level of a window")
}

// TestDiffRefuses what is no window, and answers that are not what was asked for.
func TestDiffRefuses(t *testing.T) {
	sums := make([]uint64, 100)
	for _, w := range []Window{{0, 101, sums}, {1, 101, sums}, {WindowBlocks, 100, sums}, {0, 100, sums[:99]}} {
		_, err := Diff(t.Context(), w, 100*BlockSize, answer(Memory(sums)))
		require.Error(t, err)
	}
	for _, n := range []int{0, 2} {
		_, err := Diff(t.Context(), Window{0, 100, sums}, 100*BlockSize, func(context.Context, int, []Run) ([]uint64, error) {
			return make([]uint64, n), nil
		})
		require.ErrorContains(t, err, "sums of level 3")
	}
}

func stretch(b []byte, piece int) []byte {
	out := make([]byte, 0, len(b)*piece)
	for _, c := range b {
		out = append(out, bytes.Repeat([]byte{c}, piece)...)
	}
	return out
}

// Any part of any level, as a stranger may ask for it: refused, or the same as its
// sums one by one.
func TestAnyPartOfAnyLevel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sums := make(Memory, rapid.IntRange(0, 10000).Draw(t, "blocks"))
		for i := range sums {
			sums[i] = uint64(i)
		}
		level := rapid.IntRange(-1, MaxLevel+1).Draw(t, "level")
		first := rapid.OneOf(rapid.Int64(), rapid.Int64Range(0, 700)).Draw(t, "first")
		dst := make([]uint64, rapid.IntRange(0, 100).Draw(t, "n"))
		if err := Level(sums, level, first, dst); err != nil {
			return
		}
		require.LessOrEqual(t, first+int64(len(dst)), LevelLen(sums.Len(), level))
		one := make([]uint64, 1)
		for i := range dst {
			require.NoError(t, Level(sums, level, first+int64(i), one))
			require.Equal(t, one[0], dst[i])
		}
	})
	for level := range MaxLevel + 1 {
		require.Error(t, Level(Memory{1}, level, math.MaxInt64, make([]uint64, 5)), "the sum of both is past what an int64 holds")
	}
}
