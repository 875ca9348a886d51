// Package postgres finds PostgreSQL as Debian's package has it, for tests that run a server
// as its own user.
package postgres

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/loop"
)

// Installed is a version of PostgreSQL.
type Installed struct {
	Bin string              // its programs
	Dir string              // of that user, under a short path, as sockets need it
	As  *syscall.Credential // its user
}

// Find finds the newest version. Without one, or where nobody may start it as its user, the
// test is skipped.
func Find(t *testing.T) Installed {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	if len(found) == 0 || os.Getuid() != 0 {
		loop.Missing(t, "PostgreSQL is not installed (Debian's package postgresql), or this is not root, who may start it as its user")
	}
	u, err := user.Lookup("postgres")
	require.NoError(t, err)
	uid, err := strconv.Atoi(u.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(u.Gid)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/tmp", "pg")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chown(dir, uid, gid))
	return Installed{Bin: found[len(found)-1], Dir: dir, As: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// Command is one of its programs, run as its user.
func (i Installed) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(i.Bin, name), args...)
	c.Dir, c.Env = "/", []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: i.As}
	return c
}
