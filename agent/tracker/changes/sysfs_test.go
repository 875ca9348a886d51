package changes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDisksThatCannotBeFollowed holds that they are refused with a word that says what to
// do. The kernel's files are made up.
func TestDisksThatCannotBeFollowed(t *testing.T) {
	for _, c := range []struct {
		want  string // of the error; empty if there is to be none
		size  int64
		files map[string]string
	}{
		{"", 4096, map[string]string{"mq/0/cpu_list": "0\n", "queue/scheduler": "none\n", "queue/zoned": "none\n"}},
		{"", 4096, map[string]string{"queue/scheduler": "noop deadline [cfq]\n"}},
		{"8:1 is a partition: follow the disk that it is on", 4096, map[string]string{"partition": "1\n"}},
		{"8:1 has no queue of requests", 4096, map[string]string{"queue/scheduler": "none\n"}},
		{"follow the disks below it", 4096, map[string]string{"dm/name": "vg-root\n"}},
		{"8:1 has zones (host-managed)", 4096, map[string]string{"mq/0/cpu_list": "0\n", "queue/zoned": "host-managed\n"}},
		{"8:1 has a size of 0 bytes", 0, map[string]string{"mq/0/cpu_list": "0\n"}},
		{"there is no block device 8:1", 4096, nil},
	} {
		sys, d := t.TempDir(), Device{Path: "/dev/sda1", Major: 8, Minor: 1, Size: c.size}
		for name, text := range c.files {
			path := filepath.Join(Directory(sys, d), name)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		}
		err := Check(sys, d)
		if c.want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.want)
	}
}
