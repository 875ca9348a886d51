package changes

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWords(t *testing.T) {
	for size, words := range map[int64]int{1: 1, 4096: 1, 64 * 4096: 1, 64*4096 + 1: 2, 1 << 40: 1 << 22} {
		require.Equal(t, words, Words(size), "%d bytes", size)
	}
}

// TestBitmapIsAList of booleans: every operation, against one.
func TestBitmapIsAList(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 64 * (1 + rnd.Int64N(5))
		b, plain := make(Bitmap, n/64), make([]bool, n)
		for range 20 {
			first := rnd.Int64N(n)
			end := first + rnd.Int64N(n-first+1)
			set := rnd.IntN(3) > 0
			if set {
				b.Set(first, end)
			} else {
				b.Clear(first, end)
			}
			for i := first; i < end; i++ {
				plain[i] = set
			}
		}
		var count int64
		for i, set := range plain {
			require.Equal(t, set, b.Has(int64(i)))
			if set {
				count++
			}
		}
		require.Equal(t, count, b.Count())
		limit := 1 + rnd.Int64N(100)
		got := make([]bool, n)
		for at := int64(0); ; {
			first, end := b.Next(at, limit)
			if first == end {
				break
			}
			require.GreaterOrEqual(t, first, at)
			require.LessOrEqual(t, end-first, limit)
			for i := first; i < end; i++ {
				got[i] = true
			}
			at = end
		}
		require.Equal(t, plain, got)
	}
}
