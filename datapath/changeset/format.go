package changeset

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"

	"drover/datapath/checksum"
	"drover/datapath/ident"
)

// Errors that callers act upon.
var (
	// ErrCorrupt: the file is not what was written.
	ErrCorrupt = errors.New("change set is damaged")
	// ErrTooLarge: a change set would grow beyond what one may hold.
	ErrTooLarge = errors.New("change set is too large")
	// ErrKey: the data key is missing, or is not the one it was written with.
	ErrKey = errors.New("change set cannot be decrypted")
)

// Compression says how chunks are compressed.
type Compression uint8

// The compressions. A chunk that does not get smaller is stored as it is.
const (
	CompressNone Compression = 0
	CompressZstd Compression = 1
)

// Options of a writer.
type Options struct {
	Compression Compression
	Level       int // zstd: 1 (fastest) to 4 (best); 0 is 1
}

// The format; see FORMAT.md.
const (
	formatVersion = 1
	saltBytes     = 32
	maxHeader     = 64 << 10
	maxIndex      = 256 << 20
	trailerBytes  = 8 + 8 + 32 + 4 + 4
	tagBytes      = 16 // of AES-GCM
	entryBytes    = 2 + 1 + 8 + 8 + 8 + 4

	flagZero       = 1 << 0
	flagCompressed = 1 << 1

	// indexNonce is the nonce of the index; chunks count from 0.
	indexNonce = ^uint64(0)
)

var (
	magicHead  = [4]byte{'D', 'R', 'V', 'C'}
	magicTail  = [4]byte{'D', 'R', 'V', 'E'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// headerJSON is the header as it is stored.
type headerJSON struct {
	Machine    ident.MachineID `json:"machine"`
	Generation uint32          `json:"generation"`
	Epoch      ident.Epoch     `json:"epoch"`
	Seq        ident.Seq       `json:"seq"`
	Prev       ident.Digest    `json:"prev"`
	Kind       Kind            `json:"kind"`
	KeyID      string          `json:"keyId"`
	Disks      []Disk          `json:"disks"`
}

func encodeHeader(h Header) ([]byte, error) {
	if err := h.validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(headerJSON(h))
	if err == nil && len(b) > maxHeader {
		err = fmt.Errorf("header of %d bytes, at most %d", len(b), maxHeader)
	}
	return b, err
}

func (h Header) validate() error {
	switch {
	case h.Machine.IsZero():
		return errors.New("change set without a machine")
	case h.Seq == 0 || h.Epoch == 0:
		return errors.New("change set without a sequence number or epoch")
	case h.Kind != Base && h.Kind != Delta:
		return fmt.Errorf("change set of unknown kind %d", h.Kind)
	case len(h.Disks) == 0 || len(h.Disks) > MaxDisks:
		return fmt.Errorf("change set over %d disks, want 1 to %d", len(h.Disks), MaxDisks)
	}
	for _, d := range h.Disks {
		if d.Size <= 0 || d.Size > MaxDiskSize || d.Size%512 != 0 {
			return fmt.Errorf("disk %s of %d bytes: want a multiple of 512, at most %d", d.ID, d.Size, MaxDiskSize)
		}
	}
	return nil
}

// check judges an extent without its data.
func (h Header) check(e Extent) error {
	if e.Disk < 0 || e.Disk >= len(h.Disks) {
		return fmt.Errorf("extent of disk %d, there are %d", e.Disk, len(h.Disks))
	}
	size := h.Disks[e.Disk].Size
	switch {
	case e.Offset < 0 || e.Offset%checksum.BlockSize != 0 || e.Length <= 0 || e.Length > size || e.Offset > size-e.Length:
		return fmt.Errorf("extent at %d of %d bytes on a disk of %d bytes", e.Offset, e.Length, size)
	case e.Length%checksum.BlockSize != 0 && e.Offset+e.Length != size:
		return fmt.Errorf("extent at %d of %d bytes ends inside a block", e.Offset, e.Length)
	case e.Zero && len(e.Sums) != 0:
		return errors.New("extent of zeros with checksums")
	case !e.Zero && (e.Length > MaxExtentBytes || int64(len(e.Sums)) != blocks(e.Length)):
		return fmt.Errorf("extent of %d bytes with %d checksums", e.Length, len(e.Sums))
	}
	return nil
}

func blocks(length int64) int64 { return (length + checksum.BlockSize - 1) / checksum.BlockSize }

// entry is an extent in the index.
type entry struct {
	Extent
	at         int64  // of the chunk in the file
	stored     uint32 // bytes of the chunk, with its tag
	compressed bool
}

func appendEntry(b []byte, e entry) []byte {
	flags := byte(0)
	if e.Zero {
		flags |= flagZero
	}
	if e.compressed {
		flags |= flagCompressed
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(e.Disk))
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Length))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.at))
	b = binary.LittleEndian.AppendUint32(b, e.stored)
	for _, s := range e.Sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	return b
}

// decodeEntry reads one entry and gives the rest.
func decodeEntry(h Header, b []byte) (entry, []byte, error) {
	if len(b) < entryBytes {
		return entry{}, nil, fmt.Errorf("%w: index ends inside an entry", ErrCorrupt)
	}
	flags := b[2]
	e := entry{
		Extent: Extent{
			Disk: int(binary.LittleEndian.Uint16(b)), Zero: flags&flagZero != 0,
			Offset: int64(binary.LittleEndian.Uint64(b[3:])), Length: int64(binary.LittleEndian.Uint64(b[11:])),
		},
		at: int64(binary.LittleEndian.Uint64(b[19:])), stored: binary.LittleEndian.Uint32(b[27:]), compressed: flags&flagCompressed != 0,
	}
	b = b[entryBytes:]
	if !e.Zero {
		if e.Length <= 0 || e.Length > MaxExtentBytes || int64(len(b)) < 8*blocks(e.Length) {
			return entry{}, nil, fmt.Errorf("%w: entry of %d bytes", ErrCorrupt, e.Length)
		}
		e.Sums = make([]uint64, blocks(e.Length))
		for i := range e.Sums {
			e.Sums[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		b = b[8*len(e.Sums):]
		if e.stored < tagBytes || int64(e.stored) > e.Length+tagBytes {
			return entry{}, nil, fmt.Errorf("%w: chunk of %d bytes for %d", ErrCorrupt, e.stored, e.Length)
		}
	}
	if err := h.check(e.Extent); err != nil {
		return entry{}, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return e, b, nil
}

// digester computes the digest of a change set: over what it says, not over how it
// is stored, so that the same content after the same past has the same digest.
type digester struct {
	h   hash.Hash
	buf []byte
}

func newDigester(header []byte) *digester {
	d := &digester{h: sha256.New()}
	d.field(header)
	return d
}

func (d *digester) field(b []byte) {
	d.h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
	d.h.Write(b)
}

func (d *digester) extent(e Extent) {
	d.buf = appendEntry(d.buf[:0], entry{Extent: e})
	d.field(d.buf)
}

func (d *digester) sum(cut []byte) (out ident.Digest) {
	d.field(nil)
	d.field(cut)
	copy(out[:], d.h.Sum(nil))
	return out
}

// sealer encrypts the parts of one file with a key of its own.
func sealer(key Key, salt, header []byte) (cipher.AEAD, error) {
	sub, err := hkdf.Key(sha256.New, key.Secret[:], salt, "drover change set v1\x00"+string(header), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(sub)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// nonce of part n. Every file has its own key, so a counter never repeats.
func nonce(n uint64) []byte {
	b := make([]byte, 12)
	binary.LittleEndian.PutUint64(b[4:], n)
	return b
}
