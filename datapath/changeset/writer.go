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

	"github.com/klauspost/compress/zstd"
)

// Writer writes one change set. Not safe for concurrent use.
type Writer struct {
	w       io.Writer
	at      int64 // bytes written
	header  Header
	seal    cipher.AEAD
	zstd    *zstd.Encoder // nil: not compressed
	digest  *digester
	index   []byte
	summary Summary
	scratch []byte
	sealed  []byte
	err     error // the first; the writer is of no use afterwards
}

// maxNote bounds Cut.Note.
const maxNote = 200

// NewWriter begins a change set. What it writes is of no use without Finish.
func NewWriter(w io.Writer, h Header, key Key, o Options) (*Writer, error) {
	h.KeyID = key.ID
	header, err := encodeHeader(h)
	if err != nil {
		return nil, fmt.Errorf("begin change set %d: %w", h.Seq, err)
	}
	out := &Writer{w: w, header: h, digest: newDigester(header), summary: Summary{Header: h}}
	if o.Compression == CompressZstd {
		if out.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevel(max(o.Level, 1))), zstd.WithEncoderConcurrency(1)); err != nil {
			return nil, fmt.Errorf("begin change set %d: %w", h.Seq, err)
		}
	}
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
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

// Add appends an extent. Its slices are not kept.
func (w *Writer) Add(e Extent) error {
	if w.err != nil {
		return w.err
	}
	if err := w.header.check(e); err != nil {
		return fmt.Errorf("change set %d: %w", w.header.Seq, err)
	}
	if !e.Zero && int64(len(e.Data)) != e.Length {
		return fmt.Errorf("change set %d: extent of %d bytes with %d bytes of data", w.header.Seq, e.Length, len(e.Data))
	}
	switch s := &w.summary; {
	case s.Extents >= MaxExtents:
		return fmt.Errorf("%w: %d with more than %d extents", ErrTooLarge, w.header.Seq, MaxExtents)
	case !e.Zero && s.PlainBytes+e.Length > MaxBytes:
		return fmt.Errorf("%w: %d with more than %d bytes of data", ErrTooLarge, w.header.Seq, int64(MaxBytes))
	case len(w.index)+entryBytes+8*len(e.Sums) > maxIndex:
		return fmt.Errorf("%w: %d with an index of more than %d bytes", ErrTooLarge, w.header.Seq, maxIndex)
	}
	en := entry{Extent: e}
	if e.Zero {
		w.summary.ZeroBytes += e.Length
	} else if err := w.chunk(&en); err != nil {
		return err
	}
	w.index = appendEntry(w.index, en)
	w.digest.extent(e)
	w.summary.Extents++
	return nil
}

// chunk compresses, encrypts and writes an extent's data.
func (w *Writer) chunk(e *entry) error {
	plain := e.Data
	if w.zstd != nil {
		w.scratch = w.zstd.EncodeAll(e.Data, w.scratch[:0])
		if len(w.scratch) < len(e.Data) {
			plain, e.compressed = w.scratch, true
		}
	}
	w.sealed = w.seal.Seal(w.sealed[:0], nonce(uint64(w.summary.Extents)), plain, nil)
	e.at, e.stored = w.at, uint32(len(w.sealed))
	w.summary.PlainBytes += e.Length
	return w.write(w.sealed)
}

// Finish ends the change set with its cut. It does not sync the file.
func (w *Writer) Finish(c Cut) (Summary, error) {
	if w.err != nil {
		return Summary{}, w.err
	}
	if len(c.Note) > maxNote || !c.Consistency.Valid() || c.SourceTime.IsZero() {
		return Summary{}, fmt.Errorf("finish change set %d: cut with %s consistency, time %s, note of %d bytes", w.header.Seq, c.Consistency, c.SourceTime, len(c.Note))
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
	if w.zstd != nil {
		err = errors.Join(err, w.zstd.Close())
	}
	w.index, w.scratch, w.sealed = nil, nil, nil
	w.summary.StoredBytes = w.at
	if err != nil {
		w.err = err
		return Summary{}, err
	}
	w.err = errors.New("change set is finished")
	return w.summary, nil
}
