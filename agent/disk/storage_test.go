package disk

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func words(list ...uint32) (b []byte) {
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

func TestParseExtents(t *testing.T) {
	b := words(2, 0, 0, 0, 1<<20, 0, 1<<30, 0, 3, 0, 0, 1, 4096, 0)
	got, err := parseExtents(b)
	require.NoError(t, err)
	require.Equal(t, []volumeExtent{{0, 1 << 20, 1 << 30}, {3, 1 << 32, 4096}}, got)
	for name, bad := range map[string][]byte{"short": b[:7], "cut": b[:len(b)-1], "many": words(1<<20, 0), "empty": words(1, 0, 0, 0, 0, 0, 0, 0), "negative": words(1, 0, 0, 0, 0, 1<<31, 1, 0)} {
		_, err := parseExtents(bad)
		require.Error(t, err, name)
	}
}

func TestParseDescription(t *testing.T) {
	b := append(words(40, 80, 1<<16, 36+0, 45, 0, 58), make([]byte, 8)...)
	b = append(b, "VMware  \x00Virtual disk\x006000c29a\x01bcd\x00"...)
	got, err := parseDescription(b)
	require.NoError(t, err)
	require.Equal(t, description{"VMware", "Virtual disk", "6000c29abcd", true}, got)
	binary.LittleEndian.PutUint32(b[24:], 1<<31)
	got, err = parseDescription(b)
	require.NoError(t, err)
	require.Empty(t, got.serial, "outside")
	_, err = parseDescription(b[:35])
	require.Error(t, err)
}

func TestParseNAA(t *testing.T) {
	const id = "6000c29a" + bare + "a"
	raw, err := hex.DecodeString(id)
	require.NoError(t, err)
	identifier := func(code, kind, association uint32, bytes []byte) []byte {
		b := words(code, kind, uint32(len(bytes))|uint32(16+len(bytes))<<16, association)
		return append(b, bytes...)
	}
	of := func(n uint32, list ...[]byte) []byte {
		b := words(32, 100, n)
		for _, one := range list {
			b = append(b, one...)
		}
		return b
	}
	binaryID, textID := identifier(codeBinary, typeNAA, 0, raw), identifier(codeASCII, typeNAA, 0, []byte(id))
	port, vendor := identifier(codeBinary, typeNAA, 1, raw), identifier(codeASCII, 1, 0, []byte("VMware"))
	for want, list := range map[string][][]byte{
		id: {of(1, binaryID), of(1, textID), of(3, vendor, port, binaryID)},
		"": {nil, of(1), of(1, port), of(1, vendor), of(99, binaryID), of(1, binaryID[:20]), of(1, identifier(codeBinary, typeNAA, 0, raw[:8])),
			of(2, words(codeBinary, 1, 0, 0), binaryID)}, // one without a length leads nowhere
	} {
		for i, b := range list {
			require.Equal(t, want, parseNAA(b), "%d", i)
		}
	}
	require.Equal(t, id, identity("6000C29A"+bare+"A", ""))
	require.Equal(t, id, identity("4711", id))
	require.Empty(t, identity("4711", ""))
}

// TestOverlay: every range reads as if the parts were written on the disk.
func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, size int, fill byte) *Disk {
		b := make([]byte, size)
		for i := range b {
			b[i] = fill
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		d, err := Open(filepath.Join(dir, name))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, d.Close()) })
		return d
	}
	base, one, two := make("base", 100<<10, 'b'), make("one", 20<<10, '1'), make("two", 9<<10, '2')
	// The second is shorter than its part, and neither begins at a block.
	o, err := NewOverlay(base, []OverlayPart{{63 * 512, 10 << 10, two}, {4 << 10, 20 << 10, one}})
	require.NoError(t, err)
	want, err := os.ReadFile(base.Path())
	require.NoError(t, err)
	for i := 4 << 10; i < 24<<10; i++ {
		want[i] = '1'
	}
	for i := 63 * 512; i < 63*512+9<<10; i++ {
		want[i] = '2'
	}
	for off := int64(0); off < int64(len(want)); off += 4096 {
		for n := int64(4096); off+n <= int64(len(want)); n += 4096 {
			p := Buffer(int(n))
			_, err := o.ReadAt(p, off)
			require.NoError(t, err)
			require.Equal(t, string(want[off:off+n]), string(p))
			all := true
			for _, b := range p {
				all = all && b != 'b'
			}
			require.Equal(t, all, o.Covers(off, n), "%d at %d", n, off)
		}
	}
	for name, bad := range map[string][]OverlayPart{
		"overlap": {{0, 20 << 10, one}, {8 << 10, 4096, two}}, "outside": {{90 << 10, 20 << 10, one}}, "negative": {{-4096, 8192, one}}, "none": {{0, 0, one}},
	} {
		_, err := NewOverlay(base, bad)
		require.Error(t, err, name)
	}
	start, end, err := o.NextData(8192)
	require.NoError(t, err)
	require.EqualValues(t, []int64{8192, 100 << 10}, []int64{start, end})
}
