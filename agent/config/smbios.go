package config

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What there is in the firmware's table of the machine; SMBIOS 3.
const (
	smbiosHeader  = 8 // of Windows, before the table
	systemInfo    = 1 // type of the structure with the uuid
	uuidPlace     = 8
	uuidEnd       = uuidPlace + 16
	maxStructures = 4096
)

// parseSMBIOS finds the machine's uuid in what Windows gives of the firmware, written as
// Linux and vCenter write it.
func parseSMBIOS(b []byte) (string, error) {
	if len(b) < smbiosHeader {
		return "", fmt.Errorf("%d bytes of SMBIOS", len(b))
	}
	b = b[smbiosHeader:]
	for n := 0; len(b) >= 4 && n < maxStructures; n++ {
		length := int(b[1])
		if length < 4 || length > len(b) {
			return "", errors.New("the SMBIOS table is damaged")
		}
		if b[0] == systemInfo && length >= uuidEnd {
			u := b[uuidPlace:uuidEnd]
			return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(u), binary.LittleEndian.Uint16(u[4:]), binary.LittleEndian.Uint16(u[6:]), u[8:10], u[10:16]), nil
		}
		// Texts follow, each with a zero, and one more.
		b = b[length:]
		for len(b) >= 2 && (b[0] != 0 || b[1] != 0) {
			b = b[1:]
		}
		b = b[min(2, len(b)):]
	}
	return "", errors.New("the SMBIOS table has no uuid")
}
