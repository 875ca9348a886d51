package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTargetsAreFoundAndHaveFirstInputs(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	all, err := targets(t.Context(), root)
	require.NoError(t, err)
	require.Contains(t, all, target{"drover/datapath/wire", "FuzzReceive"})
	require.Contains(t, all, target{"drover/worker/controlserver", "FuzzRequests"})
	for _, f := range all {
		dir := filepath.Join(root, strings.TrimPrefix(f.pkg, "drover/"), "testdata", "fuzz", f.name)
		files, err := os.ReadDir(dir)
		require.NoError(t, err, "%s has no first inputs in git: go test -run %s -seeds", f, f.name)
		require.NotEmpty(t, files, "%s", f)
	}
}
