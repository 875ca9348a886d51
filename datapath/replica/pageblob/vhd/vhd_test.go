package vhd

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var testID = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// TestGoldenFooter pins the bytes: a footer that changes makes other disks.
func TestGoldenFooter(t *testing.T) {
	b := Footer(37<<20, testID)
	require.Equal(t, "636f6e6563746978"+"00000002"+"00010000"+"ffffffffffffffff"+"00000000"+"77696e20"+"00010000"+"5769326b"+
		"0000000002500000"+"0000000002500000"+"037b0511"+"00000002"+"fffff019"+hex.EncodeToString(testID[:]), hex.EncodeToString(b[:84]))
	require.Equal(t, make([]byte, FooterSize-84), b[84:])
}

func TestParse(t *testing.T) {
	for _, size := range []int64{0, Align, 37 << 20, 1 << 40, 8 << 40} {
		b := Footer(size, testID)
		got, id, err := Parse(b[:])
		require.NoError(t, err)
		require.Equal(t, size, got)
		require.Equal(t, testID, id)
		for i := range b { // no byte can change unseen
			c := b
			c[i] ^= 1
			_, _, err := Parse(c[:])
			require.ErrorIs(t, err, ErrFooter, "byte %d", i)
		}
	}
	_, _, err := Parse(make([]byte, 511))
	require.ErrorIs(t, err, ErrFooter)
	require.Equal(t, int64(0), Size(0))
	require.Equal(t, int64(Align), Size(1))
	require.Equal(t, int64(2*Align), Size(Align+512))
}

// TestAnotherProgramReadsIt has qemu-img read images of ours and tell their size.
func TestAnotherProgramReadsIt(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing")
		}
		t.Skip("qemu-img is missing: make setup-test installs it")
	}
	for _, size := range []int64{Align, 37 << 20, 1<<30 + 5*Align, 64<<30 + Align, 2040 << 30} {
		path := filepath.Join(t.TempDir(), "disk.vhd")
		f, err := os.Create(path)
		require.NoError(t, err)
		footer := Footer(size, testID)
		_, err = f.WriteAt(footer[:], size)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		out, err := exec.CommandContext(t.Context(), tool, "info", "-f", "vpc", "--output=json", path).Output()
		require.NoError(t, err)
		var info struct {
			Format string `json:"format"`
			Size   int64  `json:"virtual-size"`
		}
		require.NoError(t, json.Unmarshal(out, &info))
		require.Equal(t, "vpc", info.Format)
		require.Equal(t, size, info.Size)
		// qemu-img has no check for this format: it says so, after it has opened the image.
		out, err = exec.CommandContext(t.Context(), tool, "check", "-f", "vpc", path).CombinedOutput()
		var exit *exec.ExitError
		if err != nil {
			require.ErrorAs(t, err, &exit)
			require.Equal(t, 63, exit.ExitCode(), string(out))
		}
	}
}
