package compress

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
)

func noise(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(rand.Uint32())
	}
	return out
}

func TestEncodeDecode(t *testing.T) {
	text := bytes.Repeat([]byte("all work and no play "), MaxPlain/21)
	for _, c := range []codec.Codec{codec.None, codec.Zstd, codec.S2} {
		for _, plain := range [][]byte{nil, {1}, text[:4096], text, make([]byte, MaxPlain), append(noise(1000), text[:9000]...)} {
			coded, used := Encode(c, nil, plain)
			if c != codec.None && len(plain) > 1 {
				require.Equal(t, c, used)
				require.Less(t, len(coded), len(plain))
			}
			got, err := Decode(used, nil, coded, len(plain))
			require.NoError(t, err, "%s", c)
			require.True(t, bytes.Equal(plain, got), "%s", c)
		}
	}
}

func TestWhatDoesNotShrinkStays(t *testing.T) {
	plain := noise(64 << 10)
	for _, c := range []codec.Codec{codec.Zstd, codec.S2} {
		coded, used := Encode(c, nil, plain)
		require.Equal(t, codec.None, used)
		require.Equal(t, &plain[0], &coded[0], "the same memory")
	}
}

// A chunk never takes more memory than it says it needs, and never more than MaxPlain.
func TestBombs(t *testing.T) {
	e, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	require.NoError(t, err)
	huge := make([]byte, 64<<20)
	bombs := map[codec.Codec][]byte{codec.Zstd: e.EncodeAll(huge, nil), codec.S2: s2.Encode(nil, huge)}
	require.NoError(t, e.Close())
	for c, bomb := range bombs {
		for _, size := range []int{0, 1, 4096, MaxPlain} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(c, nil, bomb, size)
			runtime.ReadMemStats(&after)
			require.ErrorIs(t, err, ErrCorrupt, "%s to %d", c, size)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20), "%s to %d", c, size)
		}
		_, err := Decode(c, nil, bomb, MaxPlain+1)
		require.ErrorIs(t, err, ErrCorrupt)
	}
}

func TestWrongSizesAndCodecs(t *testing.T) {
	plain := bytes.Repeat([]byte("x"), 8192)
	for _, c := range []codec.Codec{codec.Zstd, codec.S2, codec.None} {
		coded, used := Encode(c, nil, plain)
		for _, size := range []int{-1, 0, 8191, 8193} {
			_, err := Decode(used, nil, coded, size)
			require.ErrorIs(t, err, ErrCorrupt, "%s to %d", c, size)
		}
	}
	_, err := Decode(3, nil, plain, len(plain))
	require.ErrorIs(t, err, ErrCorrupt)
}
