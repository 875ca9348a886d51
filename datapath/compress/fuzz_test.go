package compress

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
	"drover/tests/fuzz"
)

// maxDecodeAlloc is what decoding one chunk may allocate, the decoder's own state
// included.
const maxDecodeAlloc = 8 << 20

// FuzzDecode decodes anything to any size.
func FuzzDecode(f *testing.F) {
	for _, c := range []codec.Codec{codec.Zstd, codec.S2} {
		coded, _ := Encode(c, nil, bytes.Repeat([]byte("abc"), 5000))
		fuzz.Seed(f, c.String(), uint8(c), coded, 15000)
		fuzz.Seed(f, c.String()+"-torn", uint8(c), coded[:len(coded)-3], 15000)
		fuzz.Seed(f, c.String()+"-size", uint8(c), coded, MaxPlain)
	}
	fuzz.Seed(f, "none", uint8(codec.None), []byte("abc"), 3)
	fuzz.Seed(f, "unknown", uint8(9), []byte("abc"), 3)
	f.Fuzz(func(t *testing.T, c uint8, data []byte, size int) {
		fuzz.Alloc(t, maxDecodeAlloc, func() {
			out, err := Decode(codec.Codec(c), nil, data, size)
			fuzz.Kind(t, err, ErrCorrupt)
			if err == nil {
				require.Len(t, out, size)
			}
		})
	})
}
