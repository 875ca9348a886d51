package config

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

const (
	rawSMBIOS = 'R'<<24 | 'S'<<16 | 'M'<<8 | 'B'
	maxSMBIOS = 1 << 20 // bytes
)

var firmwareTable = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetSystemFirmwareTable")

// DefaultFile is where the configuration is.
func DefaultFile() string { return filepath.Join(os.Getenv("ProgramData"), "Drover", "agent.yaml") }

// firmwareUUID is the hardware uuid that vCenter shows too.
func firmwareUUID() (string, error) {
	b := make([]byte, maxSMBIOS)
	n, _, err := firmwareTable.Call(rawSMBIOS, 0, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if n == 0 || n > uintptr(len(b)) {
		return "", fmt.Errorf("ask for the firmware's table: %w", err)
	}
	return parseSMBIOS(b[:n])
}
