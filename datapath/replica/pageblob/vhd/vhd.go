// Package vhd writes and reads the footer that makes a raw disk image a fixed VHD, the
// form in which Azure takes page blobs as disks.
//
// A fixed VHD is the disk's bytes and then 512 bytes of footer, all numbers big-endian:
//
//	 0  8  "conectix"
//	 8  4  features: 2, a bit that is always set
//	12  4  format version 0x00010000
//	16  8  offset of the next structure: all ones, a fixed disk has none
//	24  4  time of creation, seconds since 2000-01-01
//	28  4  creating program: "win " (Hyper-V), by which readers take the size from 48 and not from the geometry
//	32  4  its version 0x00010000
//	36  4  creating system "Wi2k"
//	40  8  size at creation, in bytes
//	48  8  size now
//	56  4  geometry: cylinders (2), heads (1), sectors per track (1)
//	60  4  type: 2, fixed
//	64  4  checksum: the complement of the sum of all other bytes
//	68 16  unique id
//	84  1  saved state: 0
//	85     zeros
//
// Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006);
// Azure asks for a size that is a multiple of 1 MiB.
package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// FooterSize is what a fixed VHD has beside the disk's bytes.
	FooterSize = 512
	// Align is what the size of a disk in Azure is a multiple of.
	Align = 1 << 20

	cookie       = "conectix"
	features     = 2
	version      = 0x00010000
	creator      = "win "
	creatorOS    = "Wi2k"
	typeFixed    = 2
	noNext       = ^uint64(0)
	checksumAt   = 64
	maxTotal     = 65535 * 16 * 255 // sectors that the geometry can say
	maxSmall     = 65535 * 16 * 63
	bytesPerSect = 512
)

// ErrFooter says that the bytes are not the footer of a fixed VHD.
var ErrFooter = errors.New("not the footer of a fixed VHD")

// Size is the size of the VHD's disk for a disk of so many bytes.
func Size(disk int64) int64 { return (disk + Align - 1) / Align * Align }

// Footer gives the footer of a disk whose size is a multiple of [Align].
func Footer(size int64, id [16]byte) [FooterSize]byte {
	var b [FooterSize]byte
	be := binary.BigEndian
	copy(b[0:], cookie)
	be.PutUint32(b[8:], features)
	be.PutUint32(b[12:], version)
	be.PutUint64(b[16:], noNext)
	copy(b[28:], creator)
	be.PutUint32(b[32:], version)
	copy(b[36:], creatorOS)
	be.PutUint64(b[40:], uint64(size)) //nolint:gosec // not negative
	be.PutUint64(b[48:], uint64(size)) //nolint:gosec // not negative
	cylinders, heads, sectors := geometry(size / bytesPerSect)
	be.PutUint16(b[56:], cylinders)
	b[58], b[59] = heads, sectors
	be.PutUint32(b[60:], typeFixed)
	copy(b[68:], id[:])
	be.PutUint32(b[checksumAt:], sum(b[:]))
	return b
}

// Parse gives the disk's size and id.
func Parse(b []byte) (size int64, id [16]byte, err error) {
	if len(b) != FooterSize || string(b[:8]) != cookie {
		return 0, id, ErrFooter
	}
	be := binary.BigEndian
	if be.Uint32(b[checksumAt:]) != sum(b) {
		return 0, id, fmt.Errorf("%w: its checksum is wrong", ErrFooter)
	}
	if kind := be.Uint32(b[60:]); kind != typeFixed || be.Uint32(b[12:]) != version || be.Uint64(b[16:]) != noNext {
		return 0, id, fmt.Errorf("%w: type %d, version %#x", ErrFooter, kind, be.Uint32(b[12:]))
	}
	size = int64(be.Uint64(b[48:])) //nolint:gosec // checked next
	if size < 0 || size%Align != 0 {
		return 0, id, fmt.Errorf("%w: a size of %d bytes", ErrFooter, size)
	}
	copy(id[:], b[68:])
	return size, id, nil
}

// sum is the complement of the sum of all bytes but the checksum's own.
func sum(b []byte) uint32 {
	var s uint32
	for i, c := range b {
		if i < checksumAt || i >= checksumAt+4 {
			s += uint32(c)
		}
	}
	return ^s
}

// geometry is the specification's appendix "CHS calculation".
func geometry(total int64) (cylinders uint16, heads, sectors byte) {
	total = min(total, maxTotal)
	var s, h, c int64
	if total >= maxSmall {
		s, h = 255, 16
		c = total / s
	} else {
		s = 17
		c = total / s
		h = max(4, (c+1023)/1024)
		if c >= h*1024 || h > 16 {
			s, h = 31, 16
			c = total / s
		}
		if c >= h*1024 {
			s, h = 63, 16
			c = total / s
		}
	}
	return uint16(c / h), byte(h), byte(s) //nolint:gosec // at most 65535, 16 and 255
}
