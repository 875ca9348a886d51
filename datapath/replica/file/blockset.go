package file

import (
	"math/bits"
	"slices"
)

const chunkWords = 512              // words of one chunk of a blockSet
const chunkBlocks = chunkWords * 64 // blocks of one chunk: 128 MiB of disk

// blockSet is a set of block numbers that takes room only where it is used.
type blockSet struct {
	chunks map[int64]*[chunkWords]uint64
}

func newBlockSet() *blockSet { return &blockSet{chunks: map[int64]*[chunkWords]uint64{}} }

// add puts the blocks [from, to) into the set.
func (s *blockSet) add(from, to int64) {
	for from < to {
		c := s.chunks[from/chunkBlocks]
		if c == nil {
			c = new([chunkWords]uint64)
			s.chunks[from/chunkBlocks] = c
		}
		in := from % chunkBlocks
		bit := in % 64
		n := min(64-bit, to-from)
		c[in/64] |= (^uint64(0) >> (64 - n)) << bit
		from += n
	}
}

// eachRun calls fn for the runs [from, to) of blocks that are in s but not in
// except (which may be nil), in order.
func (s *blockSet) eachRun(except *blockSet, fn func(from, to int64) error) error {
	keys := make([]int64, 0, len(s.chunks))
	for k := range s.chunks {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	from, to := int64(0), int64(0) // the run being made
	for _, k := range keys {
		var e *[chunkWords]uint64
		if except != nil {
			e = except.chunks[k]
		}
		for w, word := range s.chunks[k] {
			if e != nil {
				word &^= e[w]
			}
			base := k*chunkBlocks + int64(w)*64
			for word != 0 {
				start := int64(bits.TrailingZeros64(word))
				n := int64(bits.TrailingZeros64(^(word >> start)))
				word &^= (^uint64(0) >> (64 - n)) << start
				if base+start != to {
					if from < to {
						if err := fn(from, to); err != nil {
							return err
						}
					}
					from = base + start
				}
				to = base + start + n
			}
		}
	}
	if from < to {
		return fn(from, to)
	}
	return nil
}
