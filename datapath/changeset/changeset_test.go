package changeset

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ident"
)

type keyring map[string]Key

func (k keyring) Key(_ ident.MachineID, id string) (Key, error) {
	if key, ok := k[id]; ok {
		return key, nil
	}
	return Key{}, errors.New("no such key")
}

var (
	testKey  = Key{ID: "k1", Secret: [32]byte{1, 2, 3}}
	testKeys = keyring{"k1": testKey}
)

const testDisk = 1<<20 + 512

func testHeader() Header {
	m := ident.NewMachineID("vc", "vm")
	return Header{
		Machine: m, Generation: 2, Epoch: 3, Seq: 7, Prev: ident.Digest{9}, Kind: Delta,
		Disks: []Disk{{ID: ident.NewDiskID(m, "a"), Size: testDisk, Seed: 1}, {ID: ident.NewDiskID(m, "b"), Size: 64 << 10, Seed: 2}},
	}
}

func testCut() Cut {
	return Cut{SourceTime: time.Unix(1700000000, 5), Consistency: ident.ApplicationConsistent, Freeze: time.Millisecond, Note: "n"}
}

func extent(disk int, offset int64, data []byte) Extent {
	e := Extent{Disk: disk, Offset: offset, Length: int64(len(data)), Data: data}
	e.Sums = make([]uint64, blocks(e.Length))
	for i := range e.Sums {
		e.Sums[i] = rand.Uint64()
	}
	return e
}

// chunks puts the extents into as few chunks as their disks and sizes allow.
func chunks(c codec.Codec, extents ...Extent) []*Chunk {
	var out []*Chunk
	var plain [][]byte
	for _, e := range extents {
		n := len(out) - 1
		if n < 0 || out[n].Disk != e.Disk || len(plain[n])+len(e.Data) > MaxExtentBytes || len(out[n].Extents) == MaxChunk {
			out, plain = append(out, &Chunk{Disk: e.Disk}), append(plain, nil)
			n++
		}
		plain[n] = append(plain[n], e.Data...)
		e.Data = nil
		out[n].Extents = append(out[n].Extents, e)
	}
	for i := range out {
		out[i].Data, out[i].Codec = compress.Encode(c, nil, plain[i])
	}
	return out
}

func single(e Extent) *Chunk { return chunks(codec.None, e)[0] }

func build(t require.TestingT, c codec.Codec, extents ...Extent) ([]byte, Summary) {
	var out bytes.Buffer
	w, err := NewWriter(&out, testHeader(), testKey)
	require.NoError(t, err)
	for _, c := range chunks(c, extents...) {
		require.NoError(t, w.Add(c))
	}
	s, err := w.Finish(testCut())
	require.NoError(t, err)
	require.Equal(t, int64(out.Len()), s.StoredBytes)
	return out.Bytes(), s
}

func readAll(b []byte, keys Keys) ([]Extent, Summary, error) {
	r, err := Open(bytes.NewReader(b), int64(len(b)), keys)
	if err != nil {
		return nil, Summary{}, err
	}
	var out []Extent
	for {
		e, err := r.Next()
		if err == io.EOF {
			return out, r.Summary(), nil
		}
		if err != nil {
			return nil, Summary{}, err
		}
		e.Data = bytes.Clone(e.Data)
		out = append(out, e)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var extents []Extent
		for range rapid.IntRange(0, 8).Draw(t, "extents") {
			disk := rapid.IntRange(0, 1).Draw(t, "disk")
			size := testHeader().Disks[disk].Size
			first := rapid.Int64Range(0, (size-1)/checksum.BlockSize).Draw(t, "first")
			offset := first * checksum.BlockSize
			length := min(rapid.Int64Range(1, 8).Draw(t, "blocks")*checksum.BlockSize, size-offset)
			if rapid.Bool().Draw(t, "zero") {
				extents = append(extents, Extent{Disk: disk, Offset: offset, Length: length, Zero: true})
				continue
			}
			data := make([]byte, length)
			if rapid.Bool().Draw(t, "random") {
				for i := range data {
					data[i] = byte(rand.Uint32())
				}
			} else {
				copy(data, "text that is compressed well")
			}
			extents = append(extents, extent(disk, offset, data))
		}
		c := codec.Codec(rapid.IntRange(0, 2).Draw(t, "codec"))
		file, summary := build(t, c, extents...)
		got, read, err := readAll(file, testKeys)
		require.NoError(t, err)
		require.Equal(t, len(extents), len(got))
		for i := range got {
			require.Equal(t, extents[i], got[i])
		}
		require.Equal(t, summary.Digest, read.Digest)
		require.Equal(t, summary.Header, read.Header)
		require.Equal(t, summary.Extents, read.Extents)
		require.True(t, summary.Cut.SourceTime.Equal(read.Cut.SourceTime))
		other, again := build(t, (c+1)%3, extents...)
		require.Equal(t, summary.Digest, again.Digest, "the digest is over what is said, not over how it is stored")
		require.NotEqual(t, file, other)
	})
}

func TestRewind(t *testing.T) {
	file, _ := build(t, codec.Zstd, extent(0, 0, make([]byte, 4096)), extent(1, 4096, bytes.Repeat([]byte("x"), 8192)))
	r, err := Open(bytes.NewReader(file), int64(len(file)), testKeys)
	require.NoError(t, err)
	for range 2 {
		for i := range 2 {
			e, err := r.Next()
			require.NoError(t, err)
			require.Equal(t, i, e.Disk)
		}
		_, err = r.Next()
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, r.Rewind())
	}
}

// TestDisksAtOnce goes over the disks of a set at once: each gives what it gives in the
// whole, whether decoded chunks were kept or are decoded again.
func TestDisksAtOnce(t *testing.T) {
	var extents []Extent
	for i := range int64(12) {
		disk := int(i/2) % 2 // two extents in a chunk
		extents = append(extents, extent(disk, i%4*4096, bytes.Repeat([]byte{byte(i)}, 4096)))
	}
	extents = append(extents, Extent{Disk: 1, Length: 4096, Zero: true})
	file, _ := build(t, codec.Zstd, extents...)
	for _, keep := range []int64{0, 3 * MaxExtentBytes, 1 << 30} {
		r, err := Open(bytes.NewReader(file), int64(len(file)), testKeys)
		require.NoError(t, err)
		r.Keep(keep)
		held := new(Held)
		for range extents {
			e, err := r.Next()
			require.NoError(t, err)
			held.Add([]Extent{e}, bytes.Clone(e.Data), func() {})
		}
		var wg sync.WaitGroup
		got := make([][]Extent, 3)
		for disk := range got {
			wg.Go(func() {
				a, b := r.Disk(disk), held.Disk(disk)
				for {
					e, err := a.Next()
					same, err2 := b.Next()
					assert.Equal(t, err, err2)
					assert.Equal(t, e, same)
					if err != nil {
						assert.ErrorIs(t, err, io.EOF)
						return
					}
					e.Data = bytes.Clone(e.Data)
					got[disk] = append(got[disk], e)
				}
			})
		}
		wg.Wait()
		require.Empty(t, got[2])
		for disk := range 2 {
			want := slices.DeleteFunc(slices.Clone(extents), func(e Extent) bool { return e.Disk != disk })
			require.Equal(t, want, got[disk])
		}
		r.Free()
	}
}

func TestDamageIsNoticed(t *testing.T) {
	data := make([]byte, 16<<10)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	file, _ := build(t, codec.Zstd, extent(0, 0, data), Extent{Disk: 1, Offset: 0, Length: 4096, Zero: true})
	for n := 0; n < len(file); n += 1 + n%97 {
		_, _, err := readAll(file[:n], testKeys)
		require.Error(t, err, "cut at %d", n)
	}
	for i := 0; i < len(file); i += 1 + i%13 {
		bad := bytes.Clone(file)
		bad[i] ^= 0x10
		_, _, err := readAll(bad, testKeys)
		require.Error(t, err, "bit flipped at %d of %d", i, len(file))
	}
	_, _, err := readAll(append(bytes.Clone(file), 0), testKeys)
	require.ErrorIs(t, err, ErrCorrupt)
}

func TestKeys(t *testing.T) {
	file, _ := build(t, codec.None, extent(0, 0, bytes.Repeat([]byte("secret"), 1000)[:4096]))
	require.NotContains(t, string(file), "secretsecret")
	_, _, err := readAll(file, keyring{})
	require.ErrorIs(t, err, ErrKey)
	_, _, err = readAll(file, keyring{"k1": {ID: "k1", Secret: [32]byte{8}}})
	require.ErrorIs(t, err, ErrKey)
}

func TestWhatIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Header){
		"no machine": func(h *Header) { h.Machine = ident.MachineID{} }, "no sequence": func(h *Header) { h.Seq = 0 },
		"kind": func(h *Header) { h.Kind = 9 }, "no disks": func(h *Header) { h.Disks = nil }, "size": func(h *Header) { h.Disks[0].Size = 100 },
	} {
		h := testHeader()
		change(&h)
		_, err := NewWriter(io.Discard, h, testKey)
		require.Error(t, err, name)
	}
	w, err := NewWriter(io.Discard, testHeader(), testKey)
	require.NoError(t, err)
	good := extent(0, 0, make([]byte, 4096))
	for name, change := range map[string]func(*Extent){
		"no such disk": func(e *Extent) { e.Disk = 2 }, "inside a block": func(e *Extent) { e.Offset = 100 },
		"past the end": func(e *Extent) { e.Offset = 1 << 20 }, "sums": func(e *Extent) { e.Sums = nil }, "data": func(e *Extent) { e.Data = e.Data[:10] },
		"negative": func(e *Extent) { e.Offset = -4096 }, "zero with sums": func(e *Extent) { e.Zero = true }, "huge": func(e *Extent) { e.Length = 1 << 62 },
	} {
		e := good
		change(&e)
		if name == "data" {
			c := single(good)
			c.Data = c.Data[:10]
			require.Error(t, w.Add(c), name)
			continue
		}
		require.Error(t, w.Add(&Chunk{Disk: e.Disk, Extents: []Extent{e}, Data: e.Data}), name)
	}
	_, err = w.Finish(Cut{})
	require.Error(t, err)
	_, err = w.Finish(testCut())
	require.NoError(t, err)
	require.Error(t, w.Add(single(good)), "after Finish")
}

func TestDiskEndInsideABlock(t *testing.T) {
	file, _ := build(t, codec.None, extent(0, 1<<20, make([]byte, 512)))
	got, _, err := readAll(file, testKeys)
	require.NoError(t, err)
	require.Len(t, got[0].Data, 512)
}

func TestLimits(t *testing.T) {
	h := testHeader()
	h.Disks[0].Size = MaxDiskSize
	w, err := NewWriter(io.Discard, h, testKey)
	require.NoError(t, err)
	zero := Extent{Length: 4096, Zero: true}
	for range MaxExtents {
		if err = w.Add(single(zero)); err != nil {
			break
		}
	}
	if err == nil {
		err = w.Add(single(zero))
	}
	require.ErrorIs(t, err, ErrTooLarge, "extents, or the index that describes them")

	w, err = NewWriter(io.Discard, h, testKey)
	require.NoError(t, err)
	full := extent(0, 0, make([]byte, MaxExtentBytes))
	for range MaxBytes / MaxExtentBytes {
		require.NoError(t, w.Add(single(full)))
	}
	require.ErrorIs(t, w.Add(single(full)), ErrTooLarge, "data")
	require.NoError(t, w.Add(single(zero)), "what fits still does")
}
