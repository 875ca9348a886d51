package ebpf

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker/changes"
)

// TestDisksThatCannotBeFollowed holds that they are refused with a word that says what
// to do. The kernel's files are made up.
func TestDisksThatCannotBeFollowed(t *testing.T) {
	real := sysfs
	defer func() { sysfs = real }()
	dev := changes.Device{Path: "/dev/sda", Major: 8, Minor: 1, Size: 8 * 512}
	for want, files := range map[string]map[string]string{
		"":                    {"mq": ""},
		"no queue of request": {},
		"has 4608 bytes":      {"mq": "", "size": "9\n"},
	} {
		sysfs = t.TempDir()
		all := map[string]string{"size": "8\n", "diskseq": "77\n"}
		for name, text := range files {
			all[name] = text
		}
		for name, text := range all {
			path := filepath.Join(changes.Directory(sysfs, dev), name)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		}
		id, err := check(dev)
		if want == "" {
			require.NoError(t, err)
			require.Equal(t, uint64(77), id.Seq)
			require.NotZero(t, id.Inode)
			continue
		}
		require.ErrorContains(t, err, want)
	}
}
