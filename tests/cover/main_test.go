package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two test binaries ran the same code; a block counts once, and ran if it did in one.
const profile = `mode: set
drover/datapath/wire/conn.go:10.2,12.3 4 1
drover/datapath/wire/conn.go:14.2,16.3 6 0
drover/datapath/spool/file.go:1.2,3.4 10 0
drover/datapath/vfs/crashfs/file.go:1.2,3.4 100 0
mode: set
drover/datapath/wire/conn.go:10.2,12.3 4 0
drover/datapath/wire/conn.go:14.2,16.3 6 0
drover/datapath/spool/file.go:1.2,3.4 10 1
drover/datapath/vfs/crashfs/file.go:1.2,3.4 100 0
`

func TestSum(t *testing.T) {
	packages, err := read(strings.NewReader(profile))
	require.NoError(t, err)
	require.Equal(t, part{10, 4}, packages["drover/datapath/wire"])
	var out strings.Builder
	require.Equal(t, part{20, 14}, report(&out, packages), "without what is for tests")
	require.Contains(t, out.String(), "70.0 %")
}

func TestTooLittleFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cover.out")
	require.NoError(t, os.WriteFile(file, []byte(profile), 0o600))
	require.NoError(t, run(file, 70))
	require.ErrorContains(t, run(file, 70.1), "must be 70.1 %")
	require.Error(t, run(file+".absent", 0))
}

func TestWhatIsNoProfile(t *testing.T) {
	for _, text := range []string{"", "mode: set\n", "a.go:1.2,3.4 x 1\n", "a.go:1.2,3.4 1\n", "words\n"} {
		_, err := read(strings.NewReader(text))
		require.Error(t, err, "%q", text)
	}
	_, err := read(io.MultiReader(strings.NewReader("mode: set\n" + strings.Repeat("a", 1<<20))))
	require.Error(t, err)
}
