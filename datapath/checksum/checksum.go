// Package checksum computes and compares the checksums by which two sides of a
// replication find their differences without sending the data.
//
// A disk is divided into blocks of [BlockSize]. Level 0 is one sum per block;
// level n is one sum per [Fanout]^n blocks, taken over the level-0 sums of its
// range. Two sides compare the coarsest useful level first and descend only
// where it differs.
package checksum

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

const (
	// BlockSize is the unit of change tracking and of checksums, in bytes.
	BlockSize = 4096
	// Fanout is the number of sums of one level that one sum of the next covers.
	Fanout = 16
	// MaxLevel bounds the levels: Fanout^7 blocks of 4 KiB are 1 TiB under one sum.
	MaxLevel = 7
	// MaxSums bounds how many sums one query may ask for (64 KiB on the wire).
	MaxSums = 8192
	// MaxCompared bounds how many blocks the sums of one query of a comparison cover:
	// 512 MiB of a disk, which may have to be read for the answer.
	MaxCompared = 128 << 10
)

// Range is a part of a disk in bytes, aligned to BlockSize (the disk's end
// excepted).
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the first byte after the range.
func (r Range) End() int64 { return r.Offset + r.Length }

// Blocks is how many blocks a disk of size bytes has; the last may be short.
func Blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Sum is the checksum of one block of a disk: xxhash64 seeded with the disk's
// random seed and the block's offset, so that the right data at a wrong place
// does not match. A block of zeros has the sum 0 by definition (and no other
// block has: a computed 0 becomes 1), so that an empty disk needs no hashing.
func Sum(seed uint64, offset int64, block []byte) uint64 {
	if IsZero(block) {
		return 0
	}
	var d xxhash.Digest
	d.ResetWithSeed(seed ^ (uint64(offset) * 0x9E3779B97F4A7C15))
	_, _ = d.Write(block)
	if s := d.Sum64(); s != 0 {
		return s
	}
	return 1
}

// SumAll gives the sums of all blocks of data, which starts at offset (a
// multiple of BlockSize), appended to dst.
func SumAll(dst []uint64, seed uint64, offset int64, data []byte) []uint64 {
	for len(data) > 0 {
		n := min(BlockSize, len(data))
		dst = append(dst, Sum(seed, offset, data[:n]))
		data, offset = data[n:], offset+int64(n)
	}
	return dst
}

// IsZero reports whether all bytes are zero.
func IsZero(b []byte) bool {
	for len(b) >= 32 {
		if binary.LittleEndian.Uint64(b)|binary.LittleEndian.Uint64(b[8:])|
			binary.LittleEndian.Uint64(b[16:])|binary.LittleEndian.Uint64(b[24:]) != 0 {
			return false
		}
		b = b[32:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Leaves gives the level-0 sums of one disk.
type Leaves interface {
	// Len is the number of blocks.
	Len() int64
	// ReadSums fills dst with the sums of the blocks from first on.
	ReadSums(first int64, dst []uint64) error
}

// Memory is a disk's level-0 sums in memory.
type Memory []uint64

// Len is the number of blocks.
func (m Memory) Len() int64 { return int64(len(m)) }

// ReadSums copies from first on.
func (m Memory) ReadSums(first int64, dst []uint64) error {
	if first < 0 || first > int64(len(m)-len(dst)) {
		return fmt.Errorf("read checksums: blocks %d to %d of %d", first, first+int64(len(dst)), len(m))
	}
	copy(dst, m[first:])
	return nil
}

// Span is how many blocks one sum of the level covers.
func Span(level int) int64 {
	span := int64(1)
	for range level {
		span *= Fanout
	}
	return span
}

// LevelLen is how many sums the level has for a disk of that many blocks.
func LevelLen(blocks int64, level int) int64 {
	span := Span(level)
	return (blocks + span - 1) / span
}

// Level fills dst with sums of the level, from the first-th on. A range whose
// blocks are all zero has the sum 0.
func Level(l Leaves, level int, first int64, dst []uint64) error {
	if level < 0 || level > MaxLevel || first < 0 || first > LevelLen(l.Len(), level)-int64(len(dst)) {
		return fmt.Errorf("checksums of level %d from %d, %d of them: the disk has %d blocks", level, first, len(dst), l.Len())
	}
	if level == 0 {
		return l.ReadSums(first, dst)
	}
	const chunk = 4096 // leaf sums read at once
	leaves := make([]uint64, min(Span(level), chunk))
	raw := make([]byte, 8*len(leaves))
	for i := range dst {
		from := (first + int64(i)) * Span(level)
		to := min(from+Span(level), l.Len())
		sum, err := hashLeaves(l, from, to, leaves, raw)
		if err != nil {
			return err
		}
		dst[i] = sum
	}
	return nil
}

func hashLeaves(l Leaves, from, to int64, leaves []uint64, raw []byte) (uint64, error) {
	var d xxhash.Digest
	d.Reset()
	zero := true
	for from < to {
		part := leaves[:min(int64(len(leaves)), to-from)]
		if err := l.ReadSums(from, part); err != nil {
			return 0, err
		}
		for i, s := range part {
			zero = zero && s == 0
			binary.LittleEndian.PutUint64(raw[8*i:], s)
		}
		_, _ = d.Write(raw[:8*len(part)])
		from += int64(len(part))
	}
	if zero {
		return 0, nil
	}
	if s := d.Sum64(); s != 0 {
		return s, nil
	}
	return 1, nil
}
