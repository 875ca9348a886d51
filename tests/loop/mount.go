package loop

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/tests/lab/guest"
)

// How long somebody may look at a file system that is to be unmounted.
const (
	lookedAt  = 30 * time.Second
	lookAgain = 10 * time.Millisecond
)

// Unmount waits for the last process that looks at the file system to let go: a guard of
// freezes, or whoever looks at all mounts of the machine.
func Unmount(t testing.TB, point string) {
	t.Helper()
	require.Eventually(t, func() bool { return exec.Command(guest.Tool("umount"), point).Run() == nil }, lookedAt, lookAgain, point)
}

// Digests are those of all files below a folder, by their paths in it.
func Digests(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, root)] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	}))
	return out
}
