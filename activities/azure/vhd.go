package azure

import (
	"encoding/binary"
)

const (
	mib        = 1 << 20
	footerSize = 512
	pageSize   = 512
	// Bounds of a disk's size, without the footer.
	minDisk = 20 * mib
	maxDisk = 32 << 40

	vhdVersion = 0x00010000
	vhdFixed   = 2
	sectorSize = 512
)

// rounded is the size of a managed disk for so many bytes.
func rounded(size int64) int64 { return max((size+mib-1)/mib*mib, minDisk) }

// footer makes the last 512 bytes of a fixed VHD. All fields are big-endian.
func footer(size int64) []byte {
	b := make([]byte, footerSize)
	copy(b, "conectix")
	put32 := func(at int, v uint32) { binary.BigEndian.PutUint32(b[at:], v) }
	put32(8, 2) // features: the bit that is always set
	put32(12, vhdVersion)
	binary.BigEndian.PutUint64(b[16:], ^uint64(0)) // no next header
	copy(b[28:], "drvr")
	put32(32, vhdVersion)
	copy(b[36:], "Wi2k")
	binary.BigEndian.PutUint64(b[40:], uint64(size)) //nolint:gosec // checked by the caller
	binary.BigEndian.PutUint64(b[48:], uint64(size)) //nolint:gosec // as above
	cylinders, heads, sectors := geometry(size / sectorSize)
	binary.BigEndian.PutUint16(b[56:], uint16(cylinders)) //nolint:gosec // at most 65535
	b[58], b[59] = byte(heads), byte(sectors)
	put32(60, vhdFixed)
	binary.BigEndian.PutUint64(b[68:], uint64(size)) //nolint:gosec // an id: the same for the same disk
	sum := uint32(0)
	for _, c := range b {
		sum += uint32(c)
	}
	put32(64, ^sum)
	return b
}

// geometry is what the VHD specification's appendix computes.
func geometry(total int64) (cylinders, heads, sectors int64) {
	const most = 65535 * 16 * 255
	total = min(total, most)
	if total >= 65535*16*63 {
		return total / 255 / 16, 16, 255
	}
	sectors = 17
	perHead := total / sectors
	heads = max((perHead+1023)/1024, 4)
	if perHead >= heads*1024 || heads > 16 {
		sectors, heads = 31, 16
		perHead = total / sectors
	}
	if perHead >= heads*1024 {
		sectors, heads = 63, 16
		perHead = total / sectors
	}
	return perHead / heads, heads, sectors
}
