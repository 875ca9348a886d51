package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/codec"
)

// TestOurSide runs our two ends as the measurements do, on a small disk, so that they
// do not rot: whether what arrives is the same is checked, how fast it is is not.
func TestOurSide(t *testing.T) {
	self := filepath.Join(t.TempDir(), "drover-peers")
	out, err := exec.Command("go", "build", "-o", self, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	b := &bench{self: self, dir: t.TempDir(), size: 24 << 20, runs: 1, seconds: 3, images: map[string]string{}}
	image, err := b.image(t.Context(), "random")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "real.img"), nil, 0o600))
	b.images["real"] = image
	r, err := b.copyOurs(t.Context(), codec.Choice{Codec: "s2"}, false, image)
	require.NoError(t, err)
	require.GreaterOrEqual(t, r.uploaded, b.size, "random data does not shrink")
	require.Positive(t, r.agentMem)
	blocks, _, err := b.sustained(t.Context(), 500, 200e6)
	require.NoError(t, err)
	require.Positive(t, blocks)
}

func TestRows(t *testing.T) {
	require.True(t, row{Measured: 2, Goal: 1.5}.met())
	require.False(t, row{Measured: 1, Goal: 1.5}.met())
	require.True(t, row{Measured: 1, Goal: 1.5, Most: true}.met())
	require.False(t, row{Measured: 2, Goal: 1.5, Most: true}.met())
	require.Contains(t, row{Name: "n", Measured: 1, Goal: 2, Unit: "x"}.String(), "MISSED")
	require.Equal(t, 3.0, median([]float64{9, 1, 3}))
}
