package changeset

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

// The bytes of a small file with a salt of zeros, part by part, as FORMAT.md has them.
func TestGoldenFile(t *testing.T) {
	const path = "testdata/golden.txt"
	h := testHeader()
	h.Disks = []Disk{{ID: ident.DiskID{1}, Size: 512, Seed: 1}, {ID: ident.DiskID{2}, Size: 1 << 20, Seed: 2}}
	var out bytes.Buffer
	w, err := newWriter(&out, h, testKey, make([]byte, saltBytes))
	require.NoError(t, err)
	data := bytes.Repeat([]byte("four"), 256)
	first, second := Extent{Length: 512, Sums: []uint64{7}}, Extent{Length: 512, Sums: []uint64{8}}
	require.NoError(t, w.Add(&Chunk{Extents: []Extent{first, second}, Data: data}))
	require.NoError(t, w.Add(&Chunk{Disk: 1, Extents: []Extent{{Disk: 1, Offset: 4096, Length: 8192, Zero: true}}}))
	entries := bytes.Clone(w.index)
	s, err := w.Finish(testCut())
	require.NoError(t, err)

	file := out.Bytes()
	at := binary.LittleEndian.Uint64(file[len(file)-trailerBytes:])
	salt := 12 + int(binary.LittleEndian.Uint32(file[8:]))
	var got strings.Builder
	for _, part := range []struct {
		name  string
		bytes []byte
	}{
		{"magic", file[:4]}, {"version", file[4:8]}, {"header length", file[8:12]}, {"header", file[12:salt]},
		{"salt", file[salt : salt+saltBytes]}, {"chunk, sealed", file[salt+saltBytes : at]},
		{"entries, plain", entries}, {"index, sealed", file[at : len(file)-trailerBytes]},
		{"digest", s.Digest[:]}, {"trailer", file[len(file)-trailerBytes:]},
	} {
		fmt.Fprintf(&got, "%s: %x\n", part.name, part.bytes)
	}
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got.String())
	_, summary, err := readAll(file, testKeys)
	require.NoError(t, err)
	require.Equal(t, s, summary)
}
