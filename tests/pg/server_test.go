package pg

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	debian "drover/tests/postgres"
)

// postgres is a server with its data in a directory.
type postgres struct {
	debian.Installed
	t    *testing.T
	data string
	port int
}

// newPostgres finds the programs; nothing runs.
func newPostgres(t *testing.T, data string, port int) *postgres {
	t.Helper()
	return &postgres{Installed: debian.Find(t), t: t, data: data, port: port}
}

// cmd runs one of its programs as its user.
func (p *postgres) cmd(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := p.Command(ctx, name, args...)
	c.Env = append(c.Env, "PGHOST="+p.Dir, "PGPORT="+strconv.Itoa(p.port), "PGDATABASE=postgres", "PGUSER=postgres")
	return c
}

func (p *postgres) run(name string, args ...string) string {
	p.t.Helper()
	out, err := p.cmd(p.t.Context(), name, args...).CombinedOutput()
	require.NoError(p.t, err, "%s %v: %s", name, args, out)
	return strings.TrimSpace(string(out))
}

// create makes the database under its data's mount point.
func (p *postgres) create(mount string) {
	p.t.Helper()
	require.NoError(p.t, os.Chown(mount, int(p.As.Uid), int(p.As.Gid)))
	p.run("initdb", "-D", p.data, "-A", "trust", "-U", "postgres", "--data-checksums", "-N")
	f, err := os.OpenFile(filepath.Join(p.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(p.t, err)
	_, err = f.WriteString("shared_buffers = 32MB\nmax_wal_size = 96MB\nmin_wal_size = 32MB\nlog_checkpoints = off\n")
	require.NoError(p.t, err)
	require.NoError(p.t, f.Close())
}

// start starts it, recovery included, and stops it when the test ends.
func (p *postgres) start() {
	p.t.Helper()
	log := filepath.Join(p.Dir, "log")
	options := fmt.Sprintf("-c listen_addresses='' -c unix_socket_directories=%s -c port=%d", p.Dir, p.port)
	out, err := p.cmd(p.t.Context(), "pg_ctl", "-D", p.data, "-w", "-t", "120", "-l", log, "-o", options, "start").CombinedOutput()
	text, _ := os.ReadFile(log)
	require.NoError(p.t, err, "%s\n%s", out, text)
	p.t.Cleanup(p.stop)
}

func (p *postgres) stop() {
	if _, err := os.Stat(filepath.Join(p.data, "postmaster.pid")); err != nil {
		return
	}
	_ = p.cmd(context.Background(), "pg_ctl", "-D", p.data, "-w", "-m", "immediate", "stop").Run()
}

// ask gives the answer to a query.
func (p *postgres) ask(query string) string {
	p.t.Helper()
	return p.run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", query)
}

func (p *postgres) number(query string) int64 {
	p.t.Helper()
	n, err := strconv.ParseInt(p.ask(query), 10, 64)
	require.NoError(p.t, err, query)
	return n
}

// bench runs pgbench until the context ends.
func (p *postgres) bench(ctx context.Context, done *sync.WaitGroup) {
	c := p.cmd(ctx, "pgbench", "-n", "-c", "4", "-T", "3600")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 10 * time.Second
	done.Go(func() { _ = c.Run() }) // interrupted
}

// inserted is a row that the server was asked to keep.
type inserted struct{ asked, acknowledged time.Time }

// ledger is a client that inserts rows with the numbers from 0 on, one transaction
// each, and notes when each was acknowledged.
type ledger struct {
	mu   sync.Mutex
	rows []inserted
	err  error
}

// keep inserts until the context ends.
func (p *postgres) keep(ctx context.Context, done *sync.WaitGroup) *ledger {
	p.t.Helper()
	l := &ledger{}
	c := p.cmd(ctx, "psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", "-")
	in, err := c.StdinPipe()
	require.NoError(p.t, err)
	out, err := c.StdoutPipe()
	require.NoError(p.t, err)
	require.NoError(p.t, c.Start())
	done.Go(func() {
		defer func() { _ = in.Close(); _ = c.Wait() }() // its answers count
		answers := bufio.NewScanner(out)
		for ctx.Err() == nil {
			if err := l.insert(in, answers); err != nil {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
				return
			}
		}
	})
	return l
}

func (l *ledger) insert(in io.Writer, answers *bufio.Scanner) error {
	l.mu.Lock()
	n := len(l.rows)
	l.rows = append(l.rows, inserted{asked: time.Now()})
	l.mu.Unlock()
	if _, err := fmt.Fprintf(in, "INSERT INTO ledger VALUES (%d);\n", n); err != nil {
		return err
	}
	if !answers.Scan() || answers.Text() != "INSERT 0 1" {
		return fmt.Errorf("row %d: %q: %w", n, answers.Text(), io.ErrUnexpectedEOF)
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows[n].acknowledged = now
	return nil
}

// at gives how many rows were acknowledged before a time, and how many were asked for
// up to another.
func (l *ledger) at(before, until time.Time) (acknowledged, asked int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.rows {
		if !r.acknowledged.IsZero() && r.acknowledged.Before(before) {
			acknowledged++
		}
		if r.asked.Before(until) {
			asked++
		}
	}
	return acknowledged, asked
}
