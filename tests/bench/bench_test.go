package bench

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
	"drover/datapath/compress"
)

// image is a disk of data that shrinks about as a real one's: a third noise, the rest
// text.
func image(t testing.TB, size int) string {
	b := make([]byte, size)
	for i := range b {
		if i/4096%3 == 0 {
			b[i] = byte(rand.Uint32())
		} else {
			b[i] = "it is a truth universally acknowledged "[i*7/3%39]
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

func TestStages(t *testing.T) {
	for _, c := range []codec.Codec{codec.None, codec.S2, codec.Zstd} {
		s, err := NewSet(image(t, 3*compress.MaxPlain+4096), 1<<30, c)
		require.NoError(t, err)
		require.Equal(t, int64(3*compress.MaxPlain+4096), s.Bytes)
		costs, err := PerGiB(s, c, t.TempDir())
		require.NoError(t, err)
		require.Len(t, costs, len(Stages(c)))
	}
}

// BenchmarkStages measures each stage alone: the speed of plain data through it.
func BenchmarkStages(b *testing.B) {
	for _, c := range []codec.Codec{codec.None, codec.S2, codec.Zstd} {
		s, err := NewSet(image(b, 64*compress.MaxPlain), 1<<30, c)
		require.NoError(b, err)
		for _, stage := range Stages(c) {
			b.Run(c.String()+"/"+stage.Name, func(b *testing.B) {
				b.SetBytes(s.Bytes)
				for b.Loop() {
					b.StopTimer()
					dir := b.TempDir()
					b.StartTimer()
					require.NoError(b, stage.Run(s, dir))
				}
			})
		}
	}
}
