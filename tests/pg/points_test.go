package pg

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/quiesce"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/tests/lab"
	"drover/tests/loop"
	"drover/tests/rig"
)

const (
	diskSize  = 640 << 20
	firstPort = 54320
	atOnce    = 2 // servers that recover
	// clockError is how much a point's time may be off: by half of a round trip of the
	// line, on a machine that is busy.
	clockError = 100 * time.Millisecond
)

// scripts gives a directory with the script for PostgreSQL that comes with the agent,
// changed as its head says.
func scripts(t *testing.T, p *postgres) quiesce.Scripts {
	t.Helper()
	b, err := os.ReadFile("../../agent/packaging/scripts/postgresql")
	require.NoError(t, err)
	text := strings.Replace(string(b), "SOCKETS=/var/run/postgresql ", "SOCKETS="+p.Dir+" ", 1)
	require.NotEqual(t, string(b), text)
	dir := filepath.Join(t.TempDir(), "scripts.d")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "50-postgresql"), []byte(text), 0o755))
	return quiesce.Scripts{Dir: dir}
}

// TestEveryAcknowledgedTransactionIsThere: a server under load, on a protected disk. It
// recovers on the disk of any point, and has all that was acknowledged before the
// freeze, nothing that was asked for after it, and no half of a transaction.
func TestEveryAcknowledgedTransactionIsThere(t *testing.T) {
	r, mount := protected(t, "ext4", diskSize)
	p := newPostgres(t, filepath.Join(mount, "data"), firstPort)
	p.create(mount)
	p.start()
	p.run("pgbench", "-i", "-q", "-s", "5")
	p.ask("CREATE TABLE ledger (n bigint PRIMARY KEY)")
	r.Hooks.Scripts = scripts(t, p)
	r.App = 4 * cadence
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	p.bench(ctx, &load)
	rows := p.keep(ctx, &load)
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	deadline := time.Now().Add(time.Duration(*points)*20*cadence + 2*time.Minute)
	for r.Status().Points < *points {
		require.True(t, time.Now().Before(deadline), "%d points; %s", r.Status().Points, r.State().Detail)
		time.Sleep(cadence / 4)
	}
	rows.mu.Lock()
	require.NoError(t, rows.err)
	rows.mu.Unlock()
	ordered := r.AfterNow()
	require.Equal(t, ident.ApplicationConsistent, ordered.Consistency, ordered.Note)
	r.StopAgent()
	cancel()
	load.Wait()
	p.stop()
	recoverAll(t, r, p, rows)
}

// recoverAll recovers points taken at random.
func recoverAll(t *testing.T, r *rig.Rig, p *postgres, rows *ledger) {
	all := r.Points()
	shown := map[ident.Consistency]int{}
	for _, q := range all {
		shown[q.Consistency]++
		require.GreaterOrEqual(t, q.Consistency, ident.FileSystemConsistent, "point %d: %s", q.ID, q.Note)
		require.LessOrEqual(t, q.Freeze, r.Hooks.Freezer.MaxTime()+clockError)
	}
	require.Positive(t, shown[ident.ApplicationConsistent])
	require.Positive(t, shown[ident.FileSystemConsistent])
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = all[:min(len(all), *points)]
	reader := r.Reader()
	room := make(chan struct{}, atOnce)
	t.Run("points", func(t *testing.T) {
		for i, q := range all {
			t.Run(strconv.FormatUint(uint64(q.ID), 10), func(t *testing.T) {
				t.Parallel()
				room <- struct{}{}
				defer func() { <-room }()
				recovered(t, r, reader, q, firstPort+1+i, rows)
			})
		}
	})
	t.Logf("%d points recovered; of all %v", len(all), shown)
}

// recovered looks at what a server makes of a point.
func recovered(t *testing.T, r *rig.Rig, reader replica.Reader, q replica.Point, port int, rows *ledger) {
	image := filepath.Join(t.TempDir(), "disk")
	export(t, reader, r, q.ID, image)
	_, err := lab.CheckFS(t.Context(), image)
	require.NoError(t, err)
	mount := mountPoint(t)
	run(t, "mount", "-o", "loop", image, mount)
	defer loop.Unmount(t, mount)
	p := newPostgres(t, filepath.Join(mount, "data"), port)
	// The disk is another machine's. Its lock file names a process there; here that
	// number may be anyone's, the server of another point included.
	require.NoError(t, os.Remove(filepath.Join(p.data, "postmaster.pid")))
	p.start()
	defer p.stop()

	has := p.number("SELECT count(*) FROM ledger")
	acknowledged, asked := rows.at(q.Time.Add(-q.Freeze-clockError), q.Time.Add(clockError))
	require.GreaterOrEqual(t, has, acknowledged, "rows that were acknowledged before the freeze")
	require.LessOrEqual(t, has, asked, "rows that nobody had asked for")
	require.Equal(t, has, p.number("SELECT coalesce(max(n)+1, 0) FROM ledger"), "none is missing between")
	sum := p.number("SELECT coalesce(sum(delta), 0) FROM pgbench_history")
	for _, query := range []string{"SELECT sum(abalance) FROM pgbench_accounts", "SELECT sum(bbalance) FROM pgbench_branches", "SELECT sum(tbalance) FROM pgbench_tellers"} {
		require.Equal(t, sum, p.number(query), query)
	}
	if _, err := os.Stat(filepath.Join(p.Bin, "pg_amcheck")); err == nil {
		require.Empty(t, p.run("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres"))
	}
	t.Logf("point %d (%s), frozen for %s: %d rows, %d acknowledged before, %d asked until then", q.ID, q.Consistency, q.Freeze.Round(time.Millisecond), has, acknowledged, asked)
}
