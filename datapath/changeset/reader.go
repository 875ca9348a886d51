package changeset

import (
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ident"
)

// Reader reads one change set. Not safe for concurrent use.
type Reader struct {
	r       io.ReaderAt
	version uint32
	summary Summary
	seal    cipher.AEAD
	index   []byte // entries
	only    int    // disk whose extents are given; allDisks: of all
	rest    []byte // of the index, from the next extent on
	n       uint64 // number of the next extent
	left    []byte // of the chunk that was decoded last
	stored  []byte
	plain   []byte
	keep    int64                // plain bytes that may still be kept
	kept    map[uint64]keptChunk // by the number of the first extent with data
}

// Extents are gone over from the first to the last; io.EOF comes after it. The slices of
// an extent are valid until the next call.
type Extents interface {
	Next() (Extent, error)
}

const allDisks = -1

// keptChunk is a decoded chunk in memory that is given back.
type keptChunk struct {
	memory *[MaxExtentBytes]byte
	plain  []byte
}

// memories are used again for chunks that were kept.
var memories = sync.Pool{New: func() any { return new([MaxExtentBytes]byte) }}

// Open opens a change set of size bytes and verifies everything but the data:
// that is authenticated as it is read. Errors wrap ErrCorrupt, ErrKey or ErrVersion.
func Open(r io.ReaderAt, size int64, keys Keys) (*Reader, error) {
	out, err := open(r, size, keys)
	if err != nil {
		return nil, fmt.Errorf("open change set: %w", err)
	}
	return out, nil
}

func open(r io.ReaderAt, size int64, keys Keys) (*Reader, error) {
	version, header, raw, salt, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	key, err := keys.Key(header.Machine, header.KeyID)
	if err != nil {
		return nil, fmt.Errorf("%w: key %s of machine %s: %w", ErrKey, header.KeyID, header.Machine, err)
	}
	out := &Reader{r: r, version: version, only: allDisks, summary: Summary{Header: header, StoredBytes: size}}
	if out.seal, err = sealer(key, salt, raw); err != nil {
		return nil, err
	}
	at, length, digest, err := readTrailer(r, size)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, length)
	if err := readFull(r, sealed, at); err != nil {
		return nil, err
	}
	plain, err := out.seal.Open(sealed[:0], nonce(indexNonce), sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w, or was written with another key %s", ErrKey, ErrCorrupt, header.KeyID)
	}
	if err := out.readIndex(plain, raw, at, digest); err != nil {
		return nil, err
	}
	return out, out.Rewind()
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	if n, err := r.ReadAt(b, at); n < len(b) {
		if err == io.EOF {
			return fmt.Errorf("%w: it ends too early", ErrCorrupt)
		}
		return err
	}
	return nil
}

func readHeader(r io.ReaderAt, size int64) (version uint32, h Header, raw, salt []byte, err error) {
	var fixed [12]byte
	if err := readFull(r, fixed[:], 0); err != nil {
		return 0, h, nil, nil, err
	}
	version, length := binary.LittleEndian.Uint32(fixed[4:]), binary.LittleEndian.Uint32(fixed[8:])
	switch {
	case [4]byte(fixed[:4]) != magicHead:
		return 0, h, nil, nil, fmt.Errorf("%w: not a change set", ErrCorrupt)
	case version < firstVersion || version > formatVersion:
		return 0, h, nil, nil, fmt.Errorf("%w: %d, this program reads %d to %d: upgrade", ErrVersion, version, firstVersion, formatVersion)
	case length > maxHeader || int64(length)+saltBytes+12+trailerBytes > size:
		return 0, h, nil, nil, fmt.Errorf("%w: header of %d bytes", ErrCorrupt, length)
	}
	b := make([]byte, length+saltBytes)
	if err := readFull(r, b, int64(len(fixed))); err != nil {
		return 0, h, nil, nil, err
	}
	raw, salt = b[:length:length], b[length:]
	var j headerJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return 0, h, nil, nil, fmt.Errorf("%w: header: %w", ErrCorrupt, err)
	}
	h = Header(j)
	if err := h.validate(); err != nil {
		return 0, h, nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return version, h, raw, salt, nil
}

func readTrailer(r io.ReaderAt, size int64) (at, length int64, digest ident.Digest, err error) {
	var b [trailerBytes]byte
	if size < trailerBytes {
		return 0, 0, digest, fmt.Errorf("%w: %d bytes", ErrCorrupt, size)
	}
	if err := readFull(r, b[:], size-trailerBytes); err != nil {
		return 0, 0, digest, err
	}
	if [4]byte(b[52:]) != magicTail || crc32.Checksum(b[:48], castagnoli) != binary.LittleEndian.Uint32(b[48:]) {
		return 0, 0, digest, fmt.Errorf("%w: it was not finished, or its end is lost", ErrCorrupt)
	}
	at, length = int64(binary.LittleEndian.Uint64(b[:])), int64(binary.LittleEndian.Uint64(b[8:]))
	if length < tagBytes || length > maxIndex+4+maxCut+tagBytes || at < 0 || at != size-trailerBytes-length {
		return 0, 0, digest, fmt.Errorf("%w: index of %d bytes at %d", ErrCorrupt, length, at)
	}
	copy(digest[:], b[16:])
	return at, length, digest, nil
}

// readIndex verifies the cut, all entries and the digest over them.
func (r *Reader) readIndex(plain, header []byte, end int64, digest ident.Digest) error {
	if len(plain) < 4 || int64(binary.LittleEndian.Uint32(plain)) > int64(len(plain)-4) {
		return fmt.Errorf("%w: index", ErrCorrupt)
	}
	n := binary.LittleEndian.Uint32(plain)
	if n > maxCut {
		return fmt.Errorf("%w: cut of %d bytes", ErrCorrupt, n)
	}
	cut, entries := plain[4:4+n], plain[4+n:]
	if err := json.Unmarshal(cut, &r.summary.Cut); err != nil {
		return fmt.Errorf("%w: cut: %w", ErrCorrupt, err)
	}
	if err := r.summary.Cut.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	d := newDigester(header)
	var c chunkCount
	for rest := entries; len(rest) > 0; {
		var e entry
		var err error
		if e, rest, err = decodeEntry(&r.summary.Header, r.version, rest); err != nil {
			return err
		}
		if err = r.count(&e, &c, end); err != nil {
			return err
		}
		d.extent(&e.Extent)
	}
	if c.left != 0 {
		return fmt.Errorf("%w: %d bytes of a chunk belong to no extent", ErrCorrupt, c.left)
	}
	if d.sum(cut) != digest {
		return fmt.Errorf("%w: its digest is another", ErrCorrupt)
	}
	r.summary.Digest, r.index = digest, entries
	return nil
}

// chunkCount is the chunk whose extents are being counted.
type chunkCount struct {
	left int64 // bytes that no extent has spoken for yet
	disk int
}

// count adds an entry to the summary and to its chunk.
func (r *Reader) count(e *entry, c *chunkCount, end int64) error {
	s := &r.summary
	switch {
	case e.Zero:
		s.ZeroBytes += e.Length
	case e.joined:
		c.left -= e.Length
		if e.Disk != c.disk {
			return fmt.Errorf("%w: a chunk of disk %d has an extent of disk %d", ErrCorrupt, c.disk, e.Disk)
		}
	case c.left != 0:
		return fmt.Errorf("%w: %d bytes of a chunk belong to no extent", ErrCorrupt, c.left)
	default:
		c.left, c.disk = int64(e.plain)-e.Length, e.Disk
		if e.at < 0 || e.at > end-int64(e.stored) {
			return fmt.Errorf("%w: chunk at %d", ErrCorrupt, e.at)
		}
	}
	if c.left < 0 {
		return fmt.Errorf("%w: an extent reaches %d bytes beyond its chunk", ErrCorrupt, -c.left)
	}
	if !e.Zero {
		s.PlainBytes += e.Length
	}
	if s.Extents++; s.Extents > MaxExtents || s.PlainBytes > MaxBytes {
		return fmt.Errorf("%w: more than a change set may hold", ErrCorrupt)
	}
	return nil
}

// Summary says what is in the change set.
func (r *Reader) Summary() Summary { return r.summary }

// Rewind starts with the first extent again.
func (r *Reader) Rewind() error {
	r.rest, r.n, r.left = r.index, 0, nil
	return nil
}

// Next gives the next extent, io.EOF after the last. Its data is authentic; its
// checksums are for the replica to compare. The slices are valid until the next call.
func (r *Reader) Next() (Extent, error) {
	e, rest, err := r.entry()
	if err != nil {
		return Extent{}, err
	}
	if !e.Zero {
		if !e.joined {
			if r.left, err = r.keptChunk(e.place); err != nil {
				return Extent{}, fmt.Errorf("read change set %d: extent %d: %w", r.summary.Header.Seq, r.n, err)
			}
		}
		e.Data, r.left = r.left[:e.Length:e.Length], r.left[e.Length:]
	}
	r.rest = rest
	r.n++
	return e.Extent, nil
}

// entry gives the next entry of the disks that are wanted, and what is behind it.
func (r *Reader) entry() (e entry, rest []byte, err error) {
	for len(r.rest) > 0 {
		e, rest, err = decodeEntry(&r.summary.Header, r.version, r.rest)
		if err != nil || r.only == allDisks || e.Disk == r.only {
			return e, rest, err
		}
		r.rest = rest
		r.n++
	}
	return e, nil, io.EOF
}

// Disk gives the extents of one disk, by its place in the header. Those of several disks
// may be gone over at once, as long as the Reader itself is left alone.
func (r *Reader) Disk(disk int) Extents {
	return &Reader{r: r.r, version: r.version, summary: r.summary, seal: r.seal, only: disk, rest: r.index, kept: r.kept}
}

// Keep lets the reader keep so many decoded bytes until Free, so that going over the
// set again does not decode them again.
func (r *Reader) Keep(bytes int64) { r.keep, r.kept = bytes, map[uint64]keptChunk{} }

// Free gives the memory back that Keep took.
func (r *Reader) Free() {
	for _, k := range r.kept {
		memories.Put(k.memory)
	}
	r.keep, r.kept, r.left = 0, nil, nil
}

func (r *Reader) keptChunk(p place) ([]byte, error) {
	if k, ok := r.kept[r.n]; ok {
		return k.plain, nil
	}
	if r.keep < MaxExtentBytes {
		return r.chunk(p)
	}
	memory := memories.Get().(*[MaxExtentBytes]byte)
	other := r.plain
	r.plain = memory[:]
	b, err := r.chunk(p)
	r.plain = other
	if err != nil {
		memories.Put(memory)
		return nil, err
	}
	if p.codec == codec.None {
		b = memory[:copy(memory[:], b)]
	}
	r.keep -= MaxExtentBytes
	r.kept[r.n] = keptChunk{memory, b}
	return b, nil
}

func (r *Reader) chunk(p place) ([]byte, error) {
	if cap(r.stored) < int(p.stored) {
		r.stored = make([]byte, p.stored)
	}
	r.stored = r.stored[:p.stored]
	if err := readFull(r.r, r.stored, p.at); err != nil {
		return nil, err
	}
	data, err := r.seal.Open(r.stored[:0], nonce(r.n), r.stored, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: its data is not authentic", ErrCorrupt)
	}
	plain, err := compress.Decode(p.codec, r.plain, data, int(p.plain))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if p.codec != codec.None {
		r.plain = plain
	}
	return plain, nil
}
