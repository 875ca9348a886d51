package scale

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/standalone/temporalserver"
	"drover/tests/ports"
	"drover/tests/postgres"
)

// startPostgres runs PostgreSQL as Debian's package has it, in a directory of its own.
func startPostgres(t *testing.T) *temporalserver.Postgres {
	t.Helper()
	installed := postgres.Find(t)
	run := func(name string, args ...string) {
		t.Helper()
		out, err := installed.Command(context.WithoutCancel(t.Context()), name, args...).Output()
		require.NoError(t, err, "%s %v: %s", name, args, out)
	}
	address, err := ports.Free()
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	data := filepath.Join(installed.Dir, "data")
	run("initdb", "-D", data, "-A", "trust", "-U", "temporal")
	run("pg_ctl", "-D", data, "-w", "-l", filepath.Join(installed.Dir, "log"),
		"-o", fmt.Sprintf("-p %s -k %s -c listen_addresses=127.0.0.1", port, installed.Dir), "start")
	t.Cleanup(func() { run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop") })
	return &temporalserver.Postgres{Address: address, User: "temporal", Database: "temporal"}
}
