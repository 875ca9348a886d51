package mountinfo

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// read gives the mounts of a list, and the last error.
func read(text string) (out []Mount, last error) {
	for m, err := range All(strings.NewReader(text)) {
		if err != nil {
			last = err
			continue
		}
		out = append(out, m)
	}
	return out, last
}

func TestMounts(t *testing.T) {
	got, err := read(strings.Join([]string{
		`26 22 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=remount-ro`,
		`27 26 0:50 /sub /a\040b\134c ro - fuse.x /dev/with\011tab ro,x`,
		`28 26 0:51 / /none rw - tmpfs  rw`, ""}, "\n"))
	require.NoError(t, err)
	require.Equal(t, []Mount{
		{ID: "26", Device: Number{8, 1}, Root: "/", Point: "/", Type: "ext4", Source: "/dev/sda1"},
		{ID: "27", Device: Number{0, 50}, Root: "/sub", Point: `/a b\c`, Type: "fuse.x", Source: "/dev/with\ttab", ReadOnly: true},
		{ID: "28", Device: Number{0, 51}, Root: "/", Point: "/none", Type: "tmpfs"},
	}, got, "a file system that was mounted without a source is one too")
}

func TestHostileLists(t *testing.T) {
	const good = "1 2 8:1 / / rw - ext4 /dev/sda rw\n"
	for _, text := range []string{"x", "1 2 3 4 5 6", "1 2 x:1 / / rw - ext4 /dev/sda rw", "1 2 8: / / rw - ext4 /dev/sda rw",
		"1 2 8:-1 / / rw - ext4 /dev/sda rw", "1 2 8:1 / / rw - ext4 rw", "garbage", " - ", "1 2 3 / - tracefs"} {
		got, err := read(text + "\n" + good)
		require.Error(t, err, text)
		require.Len(t, got, 1, "the lines after it are read: %s", text)
	}
	got, err := read(strings.Repeat(good, maxMounts+1))
	require.ErrorContains(t, err, "more than")
	require.Len(t, got, maxMounts)
	_, err = read(good + strings.Repeat("x", maxLine+1))
	require.ErrorContains(t, err, "too long")
	for range All(strings.NewReader(good + good)) {
		break // and nothing goes on
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{``: ``, `a\040b\9`: `a b\9`, `\134`: `\`, `\04`: `\04`, `\777`: `\777`, `x\`: `x\`, `\043`: `#`} {
		require.Equal(t, want, Unescape(in), in)
	}
}
