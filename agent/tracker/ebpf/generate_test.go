package ebpf

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestObjectIsOfTheseSources holds that the committed object was made after the last
// change of the sources.
func TestObjectIsOfTheseSources(t *testing.T) {
	sums, err := os.ReadFile("track.sha256")
	require.NoError(t, err)
	files := 0
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		require.True(t, ok, line)
		text, err := os.ReadFile(filepath.Join("bpf", name))
		require.NoError(t, err)
		require.Equal(t, sum, fmt.Sprintf("%x", sha256.Sum256(text)), "%s has changed: run agent/tracker/ebpf/generate.sh", name)
		files++
	}
	all, err := filepath.Glob("bpf/*")
	require.NoError(t, err)
	require.Len(t, all, files)
}

// TestObjectCanBeMade makes the object again where there is a compiler: clang is too
// large to be installed for this alone, also in continuous integration, and another
// version makes another object.
func TestObjectCanBeMade(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil || !strings.Contains(string(version), "clang version 14.") {
		t.Skip("takes clang 14")
	}
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skip("takes libbpf-dev")
	}
	dir := t.TempDir()
	out, err := exec.Command("./generate.sh", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"track_bpfel.o", "track_bpfel.go", "track.sha256"} {
		old, err := os.ReadFile(name)
		require.NoError(t, err)
		now, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, old, now, "%s", name)
	}
}
