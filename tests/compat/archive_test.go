package compat

import (
	"archive/zip"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// pack writes a sample of a directory, unless it is there already.
func pack(t *testing.T, sample, dir string) {
	t.Helper()
	if _, err := os.Stat(sample); err == nil {
		return
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	require.NoError(t, z.AddFS(os.DirFS(dir)))
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(sample, out.Bytes(), 0o600))
}

// unpack gives a copy of the sample that the test may change.
func unpack(t *testing.T, sample string) string {
	t.Helper()
	z, err := zip.OpenReader(sample)
	require.NoError(t, err)
	defer func() { require.NoError(t, z.Close()) }()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, z))
	// The files of the sample are read-only in a copy.
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chmod(path, 0o600)
		}
		return err
	}))
	return dir
}

// samples gives the samples of a format, of which there is one at least.
func samples(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("testdata", pattern))
	require.NoError(t, err)
	require.NotEmpty(t, found, pattern)
	return found
}
