package pg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/quiesce"
	"drover/datapath/ident"
	"drover/tests/lab"
	"drover/tests/lab/guest"
	"drover/tests/loop"
)

const (
	mysqlDisk   = 768 << 20
	mysqlPoints = 4
	mysqlStart  = 60 * time.Second
)

// mysql is a MariaDB server on a data directory.
type mysql struct {
	t       *testing.T
	data    string
	sockets string
	server  *exec.Cmd
	done    chan struct{}
}

func newMySQL(t *testing.T, data string) *mysql {
	t.Helper()
	for _, name := range []string{"mariadbd", "mariadb", "mariadb-install-db", "mariadb-check"} {
		if !filepath.IsAbs(guest.Tool(name)) {
			loop.Missing(t, name+" is not installed: apt-get install mariadb-server")
		}
	}
	sockets, err := os.MkdirTemp("/tmp", "my")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(sockets) })
	return &mysql{t: t, data: data, sockets: sockets}
}

func (m *mysql) socket() string { return filepath.Join(m.sockets, "s") }

// start starts it, recovery included.
func (m *mysql) start() {
	m.t.Helper()
	log, err := os.Create(filepath.Join(m.sockets, "log"))
	require.NoError(m.t, err)
	m.server = exec.Command(guest.Tool("mariadbd"), "--no-defaults", "--user=root", "--datadir="+m.data, "--socket="+m.socket(), "--pid-file="+filepath.Join(m.sockets, "pid"),
		"--skip-networking", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--myisam-recover-options=OFF", "--aria-recover-options=OFF")
	m.server.Stdout, m.server.Stderr = log, log
	require.NoError(m.t, m.server.Start())
	m.done = make(chan struct{})
	go func() {
		defer close(m.done)
		_ = m.server.Wait()
		_ = log.Close()
	}()
	m.t.Cleanup(m.stop)
	for begin := time.Now(); exec.Command(guest.Tool("mariadb"), m.args("SELECT 1")...).Run() != nil; time.Sleep(50 * time.Millisecond) {
		text, _ := os.ReadFile(log.Name())
		require.Less(m.t, time.Since(begin), mysqlStart, "%s", text)
	}
}

// stop ends it as a power cut does.
func (m *mysql) stop() {
	_ = m.server.Process.Signal(syscall.SIGKILL)
	<-m.done
}

func (m *mysql) args(query string) []string {
	return []string{"--no-defaults", "--socket=" + m.socket(), "--batch", "--skip-column-names", "-e", query}
}

func (m *mysql) ask(query string) string {
	m.t.Helper()
	return run(m.t, "mariadb", m.args(query)...)
}

func (m *mysql) number(query string) int64 {
	m.t.Helper()
	n, err := strconv.ParseInt(m.ask(query), 10, 64)
	require.NoError(m.t, err, query)
	return n
}

// keep inserts rows 0, 1, 2... into a table of each engine until the context ends.
func (m *mysql) keep(ctx context.Context, done *sync.WaitGroup) *ledger {
	l := &ledger{}
	done.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			l.mu.Lock()
			l.rows = append(l.rows, inserted{asked: time.Now()})
			l.mu.Unlock()
			query := fmt.Sprintf("INSERT INTO test.safe VALUES (%d, REPEAT('x', 500)); INSERT INTO test.other VALUES (%d, REPEAT('x', 500))", n, n)
			out, err := exec.Command(guest.Tool("mariadb"), m.args(query)...).CombinedOutput() //nolint:gosec // a test's
			l.mu.Lock()
			l.rows[n].acknowledged = time.Now()
			if err != nil {
				l.err = fmt.Errorf("%w: %s", err, out)
			}
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return l
}

// mysqlScript gives a directory with the script that comes with the agent, changed as its
// head says.
func mysqlScript(t *testing.T, m *mysql) quiesce.Scripts {
	t.Helper()
	b, err := os.ReadFile("../../agent/packaging/scripts/mysql")
	require.NoError(t, err)
	text := string(b)
	for from, to := range map[string]string{"SOCKET=  ": "SOCKET=" + m.socket() + "  ", "RUN=/run/drover-agent ": "RUN=" + m.sockets + " ",
		"OPTIONS=/etc/drover/mysql.cnf ": "OPTIONS=" + filepath.Join(m.sockets, "none") + " "} {
		require.Contains(t, text, from)
		text = strings.Replace(text, from, to, 1)
	}
	dir := filepath.Join(t.TempDir(), "scripts.d")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "50-mysql"), []byte(text), 0o755))
	return quiesce.Scripts{Dir: dir}
}

// TestMySQL: MariaDB under writes, on a protected disk. It recovers on the disk of any
// point, and has in InnoDB all that was acknowledged before the freeze; on that of an
// application-consistent one the tables of other engines are whole too.
func TestMySQL(t *testing.T) {
	r, mount := protected(t, "ext4", mysqlDisk)
	m := newMySQL(t, filepath.Join(mount, "data"))
	run(t, "mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+m.data, "--skip-test-db")
	m.start()
	m.ask("CREATE DATABASE test; CREATE TABLE test.safe (n BIGINT PRIMARY KEY, t TEXT) ENGINE=InnoDB; CREATE TABLE test.other (n BIGINT PRIMARY KEY, t TEXT) ENGINE=MyISAM")
	r.Hooks.Scripts = mysqlScript(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	rows := m.keep(ctx, &load)
	r.StartServer()
	r.Grant(1, cadence)
	r.StartAgent(1)
	var ordered []ident.Seq
	for range mysqlPoints {
		p := r.AfterNow() // what is ordered is with scripts
		require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
		ordered = append(ordered, p.ID)
		time.Sleep(cadence / 2)
	}
	rows.mu.Lock()
	require.NoError(t, rows.err)
	require.Greater(t, len(rows.rows), mysqlPoints, "it goes on between the points")
	rows.mu.Unlock()
	r.StopAgent()
	cancel()
	load.Wait()
	m.stop()

	reader := r.Reader()
	for _, q := range r.Points() {
		image := filepath.Join(t.TempDir(), "disk")
		export(t, reader, r, q.ID, image)
		_, err := lab.CheckFS(t.Context(), image)
		require.NoError(t, err)
		app := q.Consistency == ident.ApplicationConsistent
		t.Run(fmt.Sprintf("%d-%s", q.ID, q.Consistency), func(t *testing.T) {
			mysqlRecovered(t, image, app, q.Time.Add(-q.Freeze-clockError), q.Time.Add(clockError), rows)
		})
	}
	t.Logf("%d points, ordered %v", len(r.Points()), ordered)
}

// mysqlRecovered looks at what a server makes of a point's disk.
func mysqlRecovered(t *testing.T, image string, app bool, frozen, thawed time.Time, rows *ledger) {
	mount := mountPoint(t)
	run(t, "mount", "-o", "loop", image, mount)
	m := newMySQL(t, filepath.Join(mount, "data"))
	if _, err := os.Stat(filepath.Join(m.data, "test", "safe.ibd")); err != nil { // of before the table
		loop.Unmount(t, mount)
		return
	}
	m.start()
	defer loop.Unmount(t, mount)
	defer m.stop()
	acknowledged, asked := rows.at(frozen, thawed)
	has := m.number("SELECT COUNT(*) FROM test.safe")
	require.GreaterOrEqual(t, has, acknowledged, "rows that were acknowledged before the freeze")
	require.LessOrEqual(t, has, asked, "rows that nobody had asked for")
	require.Contains(t, m.ask("CHECK TABLE test.safe EXTENDED"), "OK")
	if app {
		// Checked and not repaired: the server does not mend it by itself here.
		require.Contains(t, m.ask("CHECK TABLE test.other EXTENDED"), "OK")
		other := m.number("SELECT COUNT(*) FROM test.other")
		require.GreaterOrEqual(t, other, acknowledged)
		require.LessOrEqual(t, other, has)
	}
	t.Logf("%d rows, %d acknowledged before, %d asked until then", has, acknowledged, asked)
}
