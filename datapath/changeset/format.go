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
	"drover/datapath/codec"
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
	// ErrVersion: the file is of a format that this program does not know.
	ErrVersion = errors.New("change set of another format")
)

// The format; see FORMAT.md.
const (
	formatVersion = 2 // what is written
	firstVersion  = 1 // the oldest that is read
	saltBytes     = 32
	maxHeader     = 64 << 10
	maxCut        = 64 << 10
	maxKeyID      = 128
	maxIndex      = 256 << 20
	trailerBytes  = 8 + 8 + 32 + 4 + 4
	tagBytes      = 16 // of AES-GCM
	entryBytes    = 2 + 1 + 8 + 8
	placeBytes    = 8 + 4 + 4 // where a chunk is, in the entry of its first data
	entryBytesV1  = entryBytes + 8 + 4

	// Flags of an entry. The codec of a chunk is in the upper four bits.
	flagZero   = 1 << 0
	flagJoined = 1 << 1 // the data is in the chunk of the data before, after it
	codecShift = 4
	// flagCompressedV1: the chunk is encoded with zstd.
	flagCompressedV1 = 1 << 1

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
	case len(h.KeyID) > maxKeyID:
		return fmt.Errorf("change set with a key id of %d bytes, at most %d", len(h.KeyID), maxKeyID)
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

func (c Cut) validate() error {
	if len(c.Note) > maxNote || !c.Consistency.Valid() || c.SourceTime.IsZero() {
		return fmt.Errorf("cut with %s consistency, time %s, note of %d bytes", c.Consistency, c.SourceTime, len(c.Note))
	}
	if g := c.Group; g != nil && (g.Name == "" || len(g.Name) > MaxGroupName || g.Round == 0 || g.Members < 1 || g.Members > MaxMembers) {
		return fmt.Errorf("cut of group %.64q, round %s of %d machines", g.Name, g.Round, g.Members)
	}
	return nil
}

// check judges an extent without its data.
func (h *Header) check(e *Extent) error {
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
	joined bool
	place  // of the chunk, unless zero or joined
}

// place is where a chunk is, and how it is encoded.
type place struct {
	codec  codec.Codec
	at     int64  // in the file
	stored uint32 // bytes, with the tag
	plain  uint32 // bytes when decoded
}

func appendEntry(b []byte, e *entry) []byte {
	flags := byte(e.codec) << codecShift
	if e.Zero {
		flags |= flagZero
	}
	if e.joined {
		flags |= flagJoined
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(e.Disk))
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Length))
	if !e.Zero && !e.joined {
		b = binary.LittleEndian.AppendUint64(b, uint64(e.at))
		b = binary.LittleEndian.AppendUint32(b, e.stored)
		b = binary.LittleEndian.AppendUint32(b, e.plain)
	}
	return appendSums(b, e.Sums)
}

func appendSums(b []byte, sums []uint64) []byte {
	for _, s := range sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	return b
}

// decodeEntry reads one entry of the version and gives the rest.
func decodeEntry(h *Header, version uint32, b []byte) (e entry, rest []byte, err error) {
	if version == 1 {
		e, b, err = decodePlaceV1(b)
	} else {
		e, b, err = decodePlace(b)
	}
	if err != nil {
		return e, nil, err
	}
	if !e.Zero {
		if e.Length <= 0 || e.Length > MaxExtentBytes || int64(len(b)) < 8*blocks(e.Length) {
			return e, nil, fmt.Errorf("%w: entry of %d bytes", ErrCorrupt, e.Length)
		}
		e.Sums = make([]uint64, blocks(e.Length))
		for i := range e.Sums {
			e.Sums[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		b = b[8*len(e.Sums):]
	}
	if err := h.check(&e.Extent); err != nil {
		return e, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return e, b, nil
}

// decodePlace reads an entry up to its sums.
func decodePlace(b []byte) (e entry, rest []byte, err error) {
	if len(b) < entryBytes {
		return e, nil, fmt.Errorf("%w: index ends inside an entry", ErrCorrupt)
	}
	flags := b[2]
	e = entry{Extent: extentOf(b), joined: flags&flagJoined != 0}
	e.Zero, e.codec = flags&flagZero != 0, codec.Codec(flags>>codecShift)
	b = b[entryBytes:]
	switch {
	case flags&^byte(flagZero|flagJoined|0xf<<codecShift) != 0 || !e.codec.Valid():
		return e, nil, fmt.Errorf("%w: unknown flags %#x", ErrCorrupt, flags)
	case e.Zero || e.joined:
		if e.Zero && e.joined || e.codec != codec.None {
			return e, nil, fmt.Errorf("%w: flags %#x", ErrCorrupt, flags)
		}
		return e, b, nil
	case len(b) < placeBytes:
		return e, nil, fmt.Errorf("%w: index ends inside an entry", ErrCorrupt)
	}
	e.at, e.stored, e.plain = int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	return e, b[placeBytes:], e.fits(e.Length)
}

func extentOf(b []byte) Extent {
	return Extent{
		Disk:   int(binary.LittleEndian.Uint16(b)),
		Offset: int64(binary.LittleEndian.Uint64(b[3:])), Length: int64(binary.LittleEndian.Uint64(b[11:])),
	}
}

// decodePlaceV1 reads an entry of version 1, where every extent has its own chunk.
func decodePlaceV1(b []byte) (e entry, rest []byte, err error) {
	if len(b) < entryBytesV1 {
		return e, nil, fmt.Errorf("%w: index ends inside an entry", ErrCorrupt)
	}
	flags := b[2]
	e = entry{Extent: extentOf(b)}
	e.Zero = flags&flagZero != 0
	if flags&^byte(flagZero|flagCompressedV1) != 0 {
		return e, nil, fmt.Errorf("%w: unknown flags %#x", ErrCorrupt, flags)
	}
	rest = b[entryBytesV1:]
	if e.Zero {
		return e, rest, nil
	}
	if flags&flagCompressedV1 != 0 {
		e.codec = codec.Zstd
	}
	e.at, e.stored = int64(binary.LittleEndian.Uint64(b[entryBytes:])), binary.LittleEndian.Uint32(b[entryBytes+8:])
	e.plain = uint32(min(max(e.Length, 0), MaxExtentBytes))
	return e, rest, e.fits(e.Length)
}

// fits judges the place of a chunk whose first extent has so many bytes.
func (p place) fits(first int64) error {
	if p.plain > MaxExtentBytes || int64(p.plain) < first || p.stored < tagBytes || p.stored > p.plain+tagBytes ||
		p.codec == codec.None && p.stored != p.plain+tagBytes {
		return fmt.Errorf("%w: chunk of %d bytes for %d", ErrCorrupt, p.stored, p.plain)
	}
	return nil
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

// extent takes in what the extent says, in the form of an entry of version 1 that
// has no place, with its length before it.
func (d *digester) extent(e *Extent) {
	b := binary.LittleEndian.AppendUint64(d.buf[:0], uint64(entryBytesV1+8*len(e.Sums)))
	b = binary.LittleEndian.AppendUint16(b, uint16(e.Disk))
	if e.Zero {
		b = append(b, flagZero)
	} else {
		b = append(b, 0)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Length))
	b = append(b, make([]byte, entryBytesV1-entryBytes)...)
	d.buf = appendSums(b, e.Sums)
	d.h.Write(d.buf)
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
