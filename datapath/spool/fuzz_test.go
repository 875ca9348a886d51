package spool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/tests/fuzz"
)

// FuzzNames puts a file of any name beside the change sets: it is one only if its
// name is what the spool would have given it.
func FuzzNames(f *testing.F) {
	m := ident.NewMachineID("vc", "vm")
	good := "00000000000000000007-00000000000000000003"
	for name, text := range map[string]string{
		"good": good + suffix, "unfinished": good + tempSuffix, "short": "7-3.cs", "signs": "+0000000000000000007-00000000000000000003.cs",
		"overflow": "99999999999999999999-00000000000000000003.cs", "more": good + "-1.cs", "bare": ".cs",
	} {
		fuzz.Seed(f, name, text)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if name == "" || len(name) > 255 || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
			return // no file can have it
		}
		dir := t.TempDir()
		path := filepath.Join(dir, m.String(), name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
		s, err := Open(dir, minFree)
		require.NoError(t, err)
		list, err := s.List(m)
		require.NoError(t, err)
		used, _ := s.Usage()
		if len(list) == 0 {
			require.Zero(t, used)
			return
		}
		require.Len(t, list, 1)
		require.Equal(t, path, s.path(m, list[0].Epoch, list[0].Seq)+suffix)
		require.Equal(t, int64(7), used)
		o, err := s.Open(list[0])
		require.NoError(t, err)
		require.NoError(t, o.Close())
	})
}
