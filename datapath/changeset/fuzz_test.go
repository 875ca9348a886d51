package changeset

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
	"drover/tests/fuzz"
)

// openAlloc is what opening a file of n bytes may allocate: index, sums and entries
// of the whole file, and the parsed header.
func openAlloc(n int) int { return 256<<10 + 8*n }

// chunkAlloc is what reading the chunks may allocate: both buffers and a decoder.
const chunkAlloc = 12 << 20

// FuzzOpen reads any bytes. As everything is authenticated it does not come far;
// FuzzSealed does.
func FuzzOpen(f *testing.F) {
	file, _ := build(f, codec.Zstd, extent(0, 0, make([]byte, 8192)))
	fuzz.Seed(f, "whole", file)
	fuzz.Seed(f, "torn", file[:len(file)-10])
	fuzz.Seed(f, "magic", []byte("DRVC"))
	long := bytes.Clone(file)
	binary.LittleEndian.PutUint32(long[8:], math.MaxUint32)
	fuzz.Seed(f, "long-header", long)
	other := bytes.Clone(file)
	other[4] = formatVersion + 1
	fuzz.Seed(f, "version", other)
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzz.Alloc(t, openAlloc(len(b))+chunkAlloc, func() {
			_, _, err := readAll(b, testKeys)
			fuzz.Kind(t, err, ErrCorrupt, ErrKey, ErrVersion)
		})
	})
}

// sealFile makes a file whose seals are right around parts that need not be. The
// chunk is sealed as that of the first extent. It lies at chunkAt.
func sealFile(t require.TestingT, version uint32, cut, entries, chunk []byte) (file []byte, chunkAt int) {
	h := testHeader()
	h.KeyID = testKey.ID
	header, err := encodeHeader(h)
	require.NoError(t, err)
	salt := make([]byte, saltBytes)
	seal, err := sealer(testKey, salt, header)
	require.NoError(t, err)
	file = append(file, magicHead[:]...)
	file = binary.LittleEndian.AppendUint32(file, version)
	file = binary.LittleEndian.AppendUint32(file, uint32(len(header)))
	file = append(append(file, header...), salt...)
	chunkAt = len(file)
	file = seal.Seal(file, nonce(0), chunk, nil)
	at := len(file)
	plain := binary.LittleEndian.AppendUint32(nil, uint32(len(cut)))
	plain = append(append(plain, cut...), entries...)
	file = seal.Seal(file, nonce(indexNonce), plain, nil)

	d := newDigester(header)
	for rest := entries; len(rest) > 0; {
		var e entry
		if e, rest, err = decodeEntry(&h, version, rest); err != nil {
			break // the reader ends here too
		}
		d.extent(&e.Extent)
	}
	digest := d.sum(cut)
	trailer := binary.LittleEndian.AppendUint64(nil, uint64(at))
	trailer = binary.LittleEndian.AppendUint64(trailer, uint64(len(file)-at))
	trailer = append(trailer, digest[:]...)
	trailer = binary.LittleEndian.AppendUint32(trailer, crc32.Checksum(trailer, castagnoli))
	return append(append(file, trailer...), magicTail[:]...), chunkAt
}

// seedParts are the cut, the entries and the chunk of a good file.
func seedParts(t require.TestingT, c codec.Codec) (cut, chunk []byte, entries []entry) {
	cut, err := json.Marshal(testCut())
	require.NoError(t, err)
	plain := bytes.Repeat([]byte("four"), 2048)
	one, two := extent(0, 0, plain[:4096]), extent(0, 8192, plain[4096:])
	all := chunks(c, one, two)[0]
	_, at := sealFile(t, formatVersion, cut, nil, nil)
	p := place{codec: all.Codec, at: int64(at), stored: uint32(len(all.Data) + tagBytes), plain: uint32(len(plain))}
	return cut, all.Data, []entry{{Extent: all.Extents[0], place: p}, {Extent: all.Extents[1], joined: true},
		{Extent: Extent{Disk: 1, Offset: 4096, Length: 8192, Zero: true}}}
}

func encodeEntries(entries []entry) (b []byte) {
	for i := range entries {
		b = appendEntry(b, &entries[i])
	}
	return b
}

// FuzzSealed reads hostile parts behind right seals: what a holder of the data key
// could write. What is accepted is within all limits and has only one encoding.
func FuzzSealed(f *testing.F) {
	for _, c := range []codec.Codec{codec.None, codec.Zstd, codec.S2} {
		cut, chunk, entries := seedParts(f, c)
		fuzz.Seed(f, c.String(), false, cut, encodeEntries(entries), chunk)
		entries[0].plain++
		fuzz.Seed(f, c.String()+"-plain", false, cut, encodeEntries(entries), chunk)
	}
	cut, chunk, entries := seedParts(f, codec.None)
	good := encodeEntries(entries)
	fuzz.Seed(f, "torn", false, cut, good[:len(good)-1], chunk)
	fuzz.Seed(f, "joined-first", false, cut, encodeEntries(entries[1:]), chunk)
	fuzz.Seed(f, "no-cut", false, []byte("{}"), good, chunk)
	other := []entry{entries[0], entries[1]}
	other[1].Disk = 1
	fuzz.Seed(f, "other-disk", false, cut, encodeEntries(other), chunk)
	huge := []entry{{Extent: Extent{Offset: math.MaxInt64 &^ 4095, Length: 1 << 62, Zero: true}}}
	fuzz.Seed(f, "huge", false, cut, encodeEntries(huge), chunk)
	e := entries[0]
	v1 := binary.LittleEndian.AppendUint16(nil, uint16(e.Disk))
	v1 = binary.LittleEndian.AppendUint64(append(v1, 0), uint64(e.Offset))
	v1 = binary.LittleEndian.AppendUint64(v1, uint64(e.Length))
	v1 = binary.LittleEndian.AppendUint64(v1, uint64(e.at))
	v1 = binary.LittleEndian.AppendUint32(v1, uint32(e.Length)+tagBytes)
	fuzz.Seed(f, "version-1", true, cut, appendSums(v1, e.Sums), chunk[:e.Length])
	f.Fuzz(func(t *testing.T, v1 bool, cut, entries, chunk []byte) {
		version := uint32(formatVersion)
		if v1 {
			version = 1
		}
		file, _ := sealFile(t, version, cut, entries, chunk)
		var r *Reader
		var err error
		fuzz.Alloc(t, openAlloc(len(file)), func() { r, err = Open(bytes.NewReader(file), int64(len(file)), testKeys) })
		fuzz.Kind(t, err, ErrCorrupt)
		if err != nil {
			return
		}
		fuzz.Alloc(t, chunkAlloc+openAlloc(len(file)), func() { requireExtents(t, r) })
		if !v1 {
			requireSameEntries(t, r, entries)
		}
	})
}

// requireExtents reads all extents, or until one is damaged.
func requireExtents(t *testing.T, r *Reader) {
	s := r.Summary()
	require.NoError(t, s.Cut.validate())
	require.LessOrEqual(t, s.PlainBytes, int64(MaxBytes))
	for n := int64(0); ; n++ {
		e, err := r.Next()
		if err == io.EOF {
			require.Equal(t, s.Extents, n)
			return
		}
		fuzz.Kind(t, err, ErrCorrupt)
		if err != nil {
			return
		}
		require.NoError(t, s.Header.check(&e))
		if !e.Zero {
			require.Len(t, e.Data, int(e.Length))
		}
	}
}

func requireSameEntries(t *testing.T, r *Reader, want []byte) {
	var again []byte
	for rest := want; len(rest) > 0; {
		e, left, err := decodeEntry(&r.summary.Header, formatVersion, rest)
		require.NoError(t, err)
		again, rest = appendEntry(again, &e), left
	}
	require.True(t, bytes.Equal(want, again))
}

func TestHostilePartsAreRefused(t *testing.T) {
	cut, chunk, good := seedParts(t, codec.None)
	open := func(cut, entries []byte) error {
		file, _ := sealFile(t, formatVersion, cut, entries, chunk)
		_, _, err := readAll(file, testKeys)
		return err
	}
	require.NoError(t, open(cut, encodeEntries(good)))
	long := testCut()
	long.Note = strings.Repeat("n", maxNote+1)
	longCut, err := json.Marshal(long)
	require.NoError(t, err)
	for name, bad := range map[string][]byte{"empty": []byte("{}"), "note": longCut, "length": append(bytes.Repeat([]byte(" "), maxCut), cut...)} {
		require.ErrorIs(t, open(bad, encodeEntries(good)), ErrCorrupt, "cut: %s", name)
	}
	for name, change := range map[string]func([]entry){
		"another disk in a chunk": func(e []entry) { e[1].Disk = 1 }, "no chunk before": func(e []entry) { e[0] = e[2] },
		"beyond the chunk": func(e []entry) { e[0].plain = 4096 }, "chunk beyond the file": func(e []entry) { e[0].at = math.MaxInt64 },
		"past the disk": func(e []entry) { e[2].Offset = math.MaxInt64 &^ 4095 },
	} {
		entries := slices.Clone(good)
		change(entries)
		require.ErrorIs(t, open(cut, encodeEntries(entries)), ErrCorrupt, name)
	}
	h := testHeader()
	_, err = NewWriter(io.Discard, h, Key{ID: strings.Repeat("k", maxKeyID+1)})
	require.ErrorContains(t, err, "key id of 129 bytes")
}
