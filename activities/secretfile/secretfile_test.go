package secretfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
	"drover/workflows/fault"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "guests"), []byte("user: root"), 0o600))
	b, err := Read(dir, "credentials", "guests", "the file", 10)
	require.NoError(t, err)
	require.Equal(t, "user: root", string(b))
	for name, code := range map[string]string{
		"": api.CodeInvalid, "../x": api.CodeInvalid, ".hidden": api.CodeInvalid, "a/b": api.CodeInvalid, "absent": api.CodeNotFound,
	} {
		_, err := Read(dir, "credentials", name, "the file", 10)
		require.Equal(t, code, fault.Code(err), name)
	}
	_, err = Read(dir, "credentials", "guests", "the file", 9)
	require.Equal(t, api.CodeInvalid, fault.Code(err))
	require.NotContains(t, err.Error(), "root")
	require.NoError(t, os.Symlink("/etc/hostname", filepath.Join(dir, "out")))
	_, err = Read(dir, "credentials", "out", "the file", 1<<20)
	require.Error(t, err)
}

// TestReadOfTheEnvironment: of variables that are meant for it alone.
func TestReadOfTheEnvironment(t *testing.T) {
	t.Setenv("DROVER_SECRET_VC", "user: root")
	t.Setenv("OTHER", "user: root")
	b, err := Read(t.TempDir(), "credentials", "env:DROVER_SECRET_VC", "the file", 10)
	require.NoError(t, err)
	require.Equal(t, "user: root", string(b))
	for name, code := range map[string]string{
		"env:": api.CodeInvalid, "env:OTHER": api.CodeInvalid, "env:DROVER_SECRET_NONE": api.CodeNotFound, "env:../DROVER_SECRET_VC": api.CodeInvalid,
	} {
		_, err := Read(t.TempDir(), "credentials", name, "the file", 10)
		require.Equal(t, code, fault.Code(err), name)
	}
	_, err = Read(t.TempDir(), "credentials", "env:DROVER_SECRET_VC", "the file", 9)
	require.Equal(t, api.CodeInvalid, fault.Code(err))
	require.NotContains(t, err.Error(), "root")
}
