package disk

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// What Windows answers about disks and volumes, as bytes. Nothing here calls it.

// Volume is a volume of Windows, and where on which disk it lies.
type Volume struct {
	Name       string   // \\?\Volume{...}\
	FileSystem string   // as Windows calls it, "NTFS"; empty: none that it knows
	Mounts     []string // drive letters and folders
	Extents    []Extent // more than one: it spans disks, or parts of them
}

// Extent is a part of a disk.
type Extent struct {
	Disk           string // path of the disk; empty: none of those that were asked for
	Offset, Length int64
}

// Sizes and places in the structures of winioctl.h, in bytes.
const (
	extentsHeader  = 8
	extentSize     = 24
	maxExtents     = 64
	descriptorRest = 36 // of STORAGE_DEVICE_DESCRIPTOR, up to what follows the fixed part
	idHeader       = 12 // of STORAGE_DEVICE_ID_DESCRIPTOR, and of each identifier but its bytes
	maxIdentifiers = 32
	codeBinary     = 1
	codeASCII      = 2
	typeNAA        = 3 // STORAGE_IDENTIFIER_TYPE FCPHName
	associatedDisk = 0
	naaBytes       = 16
)

// volumeExtent is a DISK_EXTENT.
type volumeExtent struct {
	number         uint32 // the disk's
	offset, length int64
}

// parseExtents reads VOLUME_DISK_EXTENTS.
func parseExtents(b []byte) ([]volumeExtent, error) {
	if len(b) < extentsHeader {
		return nil, fmt.Errorf("extents of a volume: %d bytes", len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxExtents || len(b) < extentsHeader+int(n)*extentSize {
		return nil, fmt.Errorf("extents of a volume: %d in %d bytes, at most %d", n, len(b), maxExtents)
	}
	out := make([]volumeExtent, n)
	for i := range out {
		e := b[extentsHeader+i*extentSize:]
		out[i] = volumeExtent{binary.LittleEndian.Uint32(e), int64(binary.LittleEndian.Uint64(e[8:])), int64(binary.LittleEndian.Uint64(e[16:]))} //nolint:gosec // looked at below
		if out[i].offset < 0 || out[i].length <= 0 {
			return nil, fmt.Errorf("extents of a volume: %d bytes at %d", out[i].length, out[i].offset)
		}
	}
	return out, nil
}

// description is what a disk says of itself.
type description struct {
	vendor, product, serial string
	removable               bool
}

// parseDescription reads STORAGE_DEVICE_DESCRIPTOR.
func parseDescription(b []byte) (description, error) {
	if len(b) < descriptorRest {
		return description{}, fmt.Errorf("description of a disk: %d bytes", len(b))
	}
	text := func(place int) string {
		at := binary.LittleEndian.Uint32(b[place:])
		if at == 0 || int64(at) >= int64(len(b)) {
			return ""
		}
		s, _, _ := strings.Cut(string(b[at:]), "\x00")
		return strings.TrimSpace(strings.Map(printable, s))
	}
	return description{vendor: text(12), product: text(16), serial: text(24), removable: b[10] != 0}, nil
}

// parseNAA reads the disk's NAA identifier from STORAGE_DEVICE_ID_DESCRIPTOR, as
// lower-case digits; nothing when it has none of 16 bytes.
func parseNAA(b []byte) string {
	if len(b) < idHeader {
		return ""
	}
	n := binary.LittleEndian.Uint32(b[8:])
	for at := idHeader; n > 0 && n <= maxIdentifiers && at+16 <= len(b); n-- {
		id := b[at:]
		code, kind := binary.LittleEndian.Uint32(id), binary.LittleEndian.Uint32(id[4:])
		size, next := int(binary.LittleEndian.Uint16(id[8:])), int(binary.LittleEndian.Uint16(id[10:]))
		association := binary.LittleEndian.Uint32(id[12:])
		if association == associatedDisk && kind == typeNAA && len(id) >= 16+size {
			switch bytes := id[16 : 16+size]; {
			case code == codeBinary && size == naaBytes:
				return hex.EncodeToString(bytes)
			case code == codeASCII && isNAA(string(bytes)):
				return strings.ToLower(string(bytes))
			}
		}
		if next < 16 {
			return ""
		}
		at += next
	}
	return ""
}

// isNAA reports whether a text is the 16 bytes of an identifier in digits.
func isNAA(s string) bool {
	return len(s) == naaDigits && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}

// identity gives a disk's backing as VMware shows it with disk.EnableUUID: by its NAA
// identifier, or by its serial number, which is the same there.
func identity(serial, naa string) string {
	if naa == "" && isNAA(serial) {
		naa = serial
	}
	return strings.ToLower(naa)
}
