package changeset

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
)

// TestBombs is case 28 of the faults, in a file: a chunk, well sealed, whose data is
// more or less than its place says. It is damage, and no memory is taken for it.
func TestBombs(t *testing.T) {
	const claimed = MaxExtentBytes
	z, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	var stream bytes.Buffer // without the size in its header
	w, err := zstd.NewWriter(&stream, zstd.WithWindowSize(8<<20))
	require.NoError(t, err)
	_, err = io.CopyN(w, zeroReader{}, 64<<20)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	h := testHeader()
	h.Disks[0].Size = 4 << 20
	for name, c := range map[string]struct {
		codec codec.Codec
		data  []byte
	}{
		"zstd of 64 MiB":                {codec.Zstd, z.EncodeAll(make([]byte, 64<<20), nil)},
		"zstd of 64 MiB, size not told": {codec.Zstd, stream.Bytes()},
		"zstd of one byte more":         {codec.Zstd, z.EncodeAll(make([]byte, claimed+1), nil)},
		"zstd of one byte less":         {codec.Zstd, z.EncodeAll(make([]byte, claimed-1), nil)},
		"zstd of nothing":               {codec.Zstd, nil},
		"s2 of 64 MiB":                  {codec.S2, s2.Encode(nil, make([]byte, 64<<20))},
		"s2 of 4 GiB, not there":        {codec.S2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}},
		"s2 of one byte less":           {codec.S2, s2.Encode(nil, make([]byte, claimed-1))},
	} {
		var file bytes.Buffer
		cs, err := NewWriter(&file, h, testKey)
		require.NoError(t, err)
		e := extent(0, 0, make([]byte, claimed))
		e.Data = nil
		require.NoError(t, cs.Add(&Chunk{Extents: []Extent{e}, Codec: c.codec, Data: c.data}), name)
		_, err = cs.Finish(testCut())
		require.NoError(t, err)
		r, err := Open(bytes.NewReader(file.Bytes()), int64(file.Len()), testKeys)
		require.NoError(t, err)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = r.Next()
		runtime.ReadMemStats(&after)
		require.ErrorIs(t, err, ErrCorrupt, name)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20), name)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
