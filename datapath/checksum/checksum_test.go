package checksum

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// Sums are stored and sent: they are what they are for ever.
func TestSumIsPinned(t *testing.T) {
	block := bytes.Repeat([]byte("drover  "), BlockSize/8)
	require.Equal(t, []uint64{0xafc676311089cc6f, 0x4f4a04b78186b07b}, []uint64{Sum(1, 0, block), Sum(1, 4096, block)})
}

// A good block of another disk, or of another place, does not match.
func TestSumKnowsDiskAndPlace(t *testing.T) {
	block := bytes.Repeat([]byte("drover  "), BlockSize/8)
	seen := map[uint64]bool{}
	for _, seed := range []uint64{1, 2, 1 << 40, 1<<64 - 1} {
		for _, offset := range []int64{0, BlockSize, 2 * BlockSize, 1 << 40} {
			for _, length := range []int{512, BlockSize} {
				sum := Sum(seed, offset, block[:length])
				require.False(t, seen[sum], "seed %d, offset %d, %d bytes", seed, offset, length)
				require.NotZero(t, sum)
				seen[sum] = true
				spoilt := bytes.Clone(block[:length])
				spoilt[length-1] ^= 0x80
				require.NotEqual(t, sum, Sum(seed, offset, spoilt))
			}
		}
	}
	for _, n := range []int{0, 1, 31, 32, 33, 512, BlockSize} {
		require.Zero(t, Sum(7, BlockSize, make([]byte, n)), "zeros need no place")
		if n > 0 {
			require.NotZero(t, Sum(7, BlockSize, append(make([]byte, n-1), 1)))
		}
	}
}
