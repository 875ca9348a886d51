package changeset

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"drover/datapath/codec"
)

// Writer writes one change set. Not safe for concurrent use.
type Writer struct {
	w       io.Writer
	at      int64 // bytes written
	header  Header
	seal    cipher.AEAD
	digest  *digester
	index   []byte
	summary Summary
	sealed  []byte
	err     error // the first; the writer is of no use afterwards
}

// maxNote bounds Cut.Note.
const maxNote = 200

// NewWriter begins a change set. What it writes is of no use without Finish.
func NewWriter(w io.Writer, h Header, key Key) (*Writer, error) {
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	return newWriter(w, h, key, salt)
}

func newWriter(w io.Writer, h Header, key Key, salt []byte) (*Writer, error) {
	h.KeyID = key.ID
	header, err := encodeHeader(h)
	if err != nil {
		return nil, fmt.Errorf("begin change set %d: %w", h.Seq, err)
	}
	out := &Writer{w: w, header: h, digest: newDigester(header), summary: Summary{Header: h}}
	if out.seal, err = sealer(key, salt, header); err != nil {
		return nil, err
	}
	head := append([]byte(nil), magicHead[:]...)
	head = binary.LittleEndian.AppendUint32(head, formatVersion)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(header)))
	head = append(head, header...)
	head = append(head, salt...)
	return out, out.write(head)
}

func (w *Writer) write(b []byte) error {
	n, err := w.w.Write(b)
	w.at += int64(n)
	if err != nil {
		w.err = fmt.Errorf("write change set %d: %w", w.header.Seq, err)
	}
	return w.err
}

// Add appends a chunk. Its slices are not kept. That its data can be decoded, and
// to what its checksums say, is for the caller to know.
func (w *Writer) Add(c *Chunk) error {
	if w.err != nil {
		return w.err
	}
	plain, err := w.check(c)
	if err != nil {
		return err
	}
	p := place{codec: c.Codec, at: w.at, stored: uint32(len(c.Data) + tagBytes), plain: uint32(plain)}
	if plain > 0 {
		if err := p.fits(0); err != nil {
			return fmt.Errorf("change set %d: %w", w.header.Seq, err)
		}
		first := slices.IndexFunc(c.Extents, func(e Extent) bool { return !e.Zero })
		w.sealed = w.seal.Seal(w.sealed[:0], nonce(uint64(w.summary.Extents)+uint64(first)), c.Data, nil)
		if err := w.write(w.sealed); err != nil {
			return err
		}
	}
	first := true
	for i := range c.Extents {
		e := entry{Extent: c.Extents[i]}
		switch {
		case e.Zero:
			w.summary.ZeroBytes += e.Length
		case first:
			first, e.place = false, p
		default:
			e.joined = true
		}
		w.index = appendEntry(w.index, &e)
		w.digest.extent(&e.Extent)
	}
	w.summary.Extents += int64(len(c.Extents))
	w.summary.PlainBytes += plain
	return nil
}

// check judges a chunk before anything of it is written.
func (w *Writer) check(c *Chunk) (plain int64, err error) {
	sums := 0
	for i := range c.Extents {
		e := &c.Extents[i]
		if e.Disk != c.Disk {
			return 0, fmt.Errorf("change set %d: a chunk of disk %d has an extent of disk %d", w.header.Seq, c.Disk, e.Disk)
		}
		if err := w.header.check(e); err != nil {
			return 0, fmt.Errorf("change set %d: %w", w.header.Seq, err)
		}
		sums += len(e.Sums)
	}
	n, plain := len(c.Extents), c.Plain()
	switch s := &w.summary; {
	case n == 0 || n > MaxChunk || plain > MaxExtentBytes:
		return 0, fmt.Errorf("change set %d: chunk of %d extents with %d bytes, want 1 to %d with at most %d", w.header.Seq, n, plain, MaxChunk, MaxExtentBytes)
	case plain == 0 && len(c.Data) > 0 || c.Codec == codec.None && int64(len(c.Data)) != plain:
		return 0, fmt.Errorf("change set %d: chunk of %d bytes with %d bytes of data", w.header.Seq, plain, len(c.Data))
	case s.Extents+int64(n) > MaxExtents:
		return 0, fmt.Errorf("%w: %d with more than %d extents", ErrTooLarge, w.header.Seq, MaxExtents)
	case s.PlainBytes+plain > MaxBytes:
		return 0, fmt.Errorf("%w: %d with more than %d bytes of data", ErrTooLarge, w.header.Seq, int64(MaxBytes))
	case len(w.index)+n*(entryBytes+placeBytes)+8*sums > maxIndex:
		return 0, fmt.Errorf("%w: %d with an index of more than %d bytes", ErrTooLarge, w.header.Seq, maxIndex)
	}
	return plain, nil
}

// Finish ends the change set with its cut. It does not sync the file.
func (w *Writer) Finish(c Cut) (Summary, error) {
	if w.err != nil {
		return Summary{}, w.err
	}
	if err := c.validate(); err != nil {
		return Summary{}, fmt.Errorf("finish change set %d: %w", w.header.Seq, err)
	}
	c.SourceTime = c.SourceTime.UTC().Round(0)
	cut, err := json.Marshal(c)
	if err != nil {
		return Summary{}, err
	}
	plain := binary.LittleEndian.AppendUint32(nil, uint32(len(cut)))
	plain = append(plain, cut...)
	plain = append(plain, w.index...)
	w.sealed = w.seal.Seal(w.sealed[:0], nonce(indexNonce), plain, nil)
	w.summary.Cut, w.summary.Digest = c, w.digest.sum(cut)
	at := w.at
	err = w.write(w.sealed)
	if err == nil {
		trailer := binary.LittleEndian.AppendUint64(nil, uint64(at))
		trailer = binary.LittleEndian.AppendUint64(trailer, uint64(len(w.sealed)))
		trailer = append(trailer, w.summary.Digest[:]...)
		trailer = binary.LittleEndian.AppendUint32(trailer, crc32.Checksum(trailer, castagnoli))
		err = w.write(append(trailer, magicTail[:]...))
	}
	w.index, w.sealed = nil, nil
	w.summary.StoredBytes = w.at
	if err != nil {
		w.err = err
		return Summary{}, err
	}
	w.err = errors.New("change set is finished")
	return w.summary, nil
}
