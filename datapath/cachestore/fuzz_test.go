package cachestore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/tests/fuzz"
)

// FuzzMachine puts a file of any name, and any fence, into a machine's folder. A
// file is an object only under the name the cache would give it; a fence that
// cannot be read lets nobody put.
func FuzzMachine(f *testing.F) {
	m := ident.NewMachineID("vc", "vm")
	good := "00000000000000000007-00000000000000000003.cs"
	for name, c := range map[string]struct{ file, fence string }{
		"good": {good, "3\n"}, "short": {"7-3.cs", "4"}, "empty-fence": {good, ""}, "signs": {"-" + good, "-1"},
		"overflow": {"99999999999999999999-00000000000000000003.cs", "18446744073709551616"},
		"long":     {".put-1", "3" + strings.Repeat(" ", 40) + "4"}, "words": {"x.cs", "epoch"},
	} {
		fuzz.Seed(f, name, c.file, []byte(c.fence))
	}
	f.Fuzz(func(t *testing.T, name string, fence []byte) {
		switch name {
		case "", ".", "..", "fence", "lock":
			return
		}
		if len(name) > 255 || strings.ContainsAny(name, "/\x00") {
			return // no file can have it
		}
		d, err := NewDirectory(t.TempDir())
		require.NoError(t, err)
		path := filepath.Join(d.machine(m), name)
		require.NoError(t, os.MkdirAll(d.machine(m), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(d.machine(m), "fence"), fence, 0o600))
		list, err := d.List(t.Context(), m)
		require.NoError(t, err)
		for _, n := range list {
			require.Equal(t, path, d.path(n))
		}
		at, err := d.fence(m)
		if err != nil {
			require.Error(t, d.Put(t.Context(), Name{Machine: m, Seq: 1, Epoch: 1 << 63}, strings.NewReader("x"), 1))
			return
		}
		require.LessOrEqual(t, len(fence), maxFence)
		if at > 0 {
			err = d.Put(t.Context(), Name{Machine: m, Seq: 1, Epoch: at - 1}, strings.NewReader("x"), 1)
			require.ErrorIs(t, err, ErrFenced)
		}
	})
}
