package scale

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/standalone/temporalserver"
	"drover/tests/ports"
)

// startPostgres runs PostgreSQL as Debian's package has it, in a directory of its own.
func startPostgres(t *testing.T) *temporalserver.Postgres {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	account, noUser := user.Lookup("postgres")
	if len(found) == 0 || noUser != nil || os.Getuid() != 0 {
		missing(t, "PostgreSQL is not installed (Debian's package postgresql), or this is not root, who may start it as its user")
	}
	uid, err := strconv.Atoi(account.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(account.Gid)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/tmp", "pg") // a socket's path is short
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chown(dir, uid, gid))
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(filepath.Join(found[len(found)-1], name), args...)
		c.Dir, c.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		out, err := c.Output()
		require.NoError(t, err, "%s %v: %s", name, args, out)
	}
	address, err := ports.Free()
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	data := filepath.Join(dir, "data")
	run("initdb", "-D", data, "-A", "trust", "-U", "temporal")
	run("pg_ctl", "-D", data, "-w", "-l", filepath.Join(dir, "log"),
		"-o", fmt.Sprintf("-p %s -k %s -c listen_addresses=127.0.0.1", port, dir), "start")
	t.Cleanup(func() { run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop") })
	return &temporalserver.Postgres{Address: address, User: "temporal", Database: "temporal"}
}

// missing skips what cannot be done here; where everything should be there it fails.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		require.FailNow(t, why)
	}
	t.Skip(why)
}
