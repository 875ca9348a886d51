package config

import (
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestParseSMBIOS: the uuid as Linux shows the same machine's.
func TestParseSMBIOS(t *testing.T) {
	uuid, err := hex.DecodeString("44454c4c42003510" + "8054b7c04f4e4d31")
	require.NoError(t, err)
	bios := append([]byte{0, 6, 0, 0, 1, 2}, "Phoenix\x006.00\x00\x00"...)
	system := append([]byte{systemInfo, 27, 1, 0, 1, 2, 3, 4}, uuid...)
	system = append(append(system, 6, 0, 0), "VMware, Inc.\x00VMware7,1\x00\x00"...)
	table := append(make([]byte, smbiosHeader), append(bios, system...)...)
	got, err := parseSMBIOS(table)
	require.NoError(t, err)
	require.Equal(t, "4c4c4544-0042-1035-8054-b7c04f4e4d31", got)
	for name, bad := range map[string][]byte{"short": table[:3], "without": table[:smbiosHeader+len(bios)], "cut": table[:smbiosHeader+len(bios)+20], "no length": make([]byte, 20)} {
		_, err := parseSMBIOS(bad)
		require.Error(t, err, name)
	}
}
