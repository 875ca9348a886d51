package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"drover/tests/ports"
	"drover/workflows/api"
)

const (
	// asProgram in the environment makes the test binary the program itself.
	asProgram = "DROVER_STANDALONE_PROGRAM"
	patience  = 90 * time.Second
	stopLimit = 20 * time.Second
)

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func address(t *testing.T) string {
	t.Helper()
	a, err := ports.Free()
	require.NoError(t, err)
	return a
}

// site is a configuration file with everything under a temporary folder.
type site struct{ file, dir, api, metrics, temporal, ui string }

func newSite(t *testing.T) site {
	t.Helper()
	s := site{dir: t.TempDir(), api: address(t), metrics: address(t), temporal: address(t), ui: address(t)}
	s.file = filepath.Join(s.dir, "config-server.yaml")
	// Nothing answers at the Temporal address of the file.
	content := fmt.Sprintf(`name: cs-1
state: state
listen: %q
advertise: [127.0.0.1]
metrics: %q
temporal: {address: "127.0.0.1:1", namespace: drover}
store: {file: seed}
cache: {directory: cache}
target: {local: {directory: target}}
scripts: scripts
secrets: secrets
`, s.api, s.metrics)
	if os.Geteuid() == 0 {
		content += "scriptUser: nobody\n" // else it warns
	}
	require.NoError(t, os.WriteFile(s.file, []byte(content), 0o600))
	return s
}

// output is a program's stderr, read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// program is a running drover-standalone.
type program struct {
	process *os.Process
	out     *output
	done    chan error // gives the program's end once
}

func (s site) start(t *testing.T) program {
	t.Helper()
	p := program{out: &output{}, done: make(chan error, 1)}
	cmd := exec.Command(os.Args[0], "serve", "--config", s.file, "--listen", s.temporal, "--ui", s.ui)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stderr = p.out
	require.NoError(t, cmd.Start())
	p.process = cmd.Process
	ended := make(chan struct{})
	go func() { p.done <- cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = p.process.Kill(); <-ended })
	return p
}

// end waits for the program's end.
func (p program) end(t *testing.T, limit time.Duration) error {
	t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(limit):
		require.FailNow(t, "the program does not end", p.out.String())
		return nil
	}
}

func (p program) healthy(t *testing.T, s site) {
	t.Helper()
	for deadline := time.Now().Add(patience); get("http://"+s.metrics+"/healthz") != http.StatusOK; {
		select {
		case err := <-p.done:
			require.FailNow(t, "the program ended", "%v\n%s", err, p.out)
		case <-time.After(50 * time.Millisecond):
		}
		require.True(t, time.Now().Before(deadline), p.out.String())
	}
}

func get(url string) int {
	resp, err := http.Get(url) //nolint:gosec // our own address
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestServe: on SIGTERM the configuration server stops, then Temporal; and a
// second run goes on with the state of the first.
func TestServe(t *testing.T) {
	s := newSite(t)
	for range 2 {
		p := s.start(t)
		p.healthy(t, s)
		requireVault(t, s)
		require.Equal(t, http.StatusOK, get("http://"+s.ui+"/"))
		require.FileExists(t, filepath.Join(s.dir, "state", "temporal", "temporal.sqlite"))

		require.NoError(t, p.process.Signal(syscall.SIGTERM))
		require.NoError(t, p.end(t, stopLimit), p.out.String())
		first := strings.Index(p.out.String(), "the configuration server stopped")
		second := strings.Index(p.out.String(), "Temporal stopped")
		require.True(t, 0 < first && first < second, p.out.String())
		for line := range strings.Lines(p.out.String()) {
			// It never missed Temporal. That a poll under way is cancelled at the end is
			// told by the SDK or not, as it happens.
			if strings.Contains(line, `"server":"cs-1"`) && !strings.Contains(line, `"Error":"context canceled"`) {
				require.Contains(t, line, `"level":"INFO"`)
			}
		}
		for _, a := range []string{s.api, s.metrics, s.temporal, s.ui} {
			l, err := net.Listen("tcp", a)
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
	}
}

// requireVault: the frontend answers, and the configuration server runs its
// workflow there, in the file's namespace.
func requireVault(t *testing.T, s site) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{HostPort: s.temporal, Namespace: "drover", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.CheckHealth(ctx, &client.CheckHealthRequest{})
	require.NoError(t, err)
	_, err = c.DescribeWorkflowExecution(ctx, api.VaultID, "")
	require.NoError(t, err)
}

// TestServeStopsWhileStarting: asked to stop before it is ready, it ends without error.
func TestServeStopsWhileStarting(t *testing.T) {
	s := newSite(t)
	p := s.start(t)
	file := filepath.Join(s.dir, "state", "temporal", "temporal.sqlite")
	require.Eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, patience, 5*time.Millisecond)
	require.NoError(t, p.process.Signal(syscall.SIGTERM))
	require.NoError(t, p.end(t, stopLimit), p.out.String())
}

// TestServeWithoutItsPort: when the configuration server cannot run, Temporal is
// stopped and the program says why; when Temporal cannot, nothing starts.
func TestServeWithoutItsPort(t *testing.T) {
	for name, want := range map[string]string{
		"api":      "run the configuration server cs-1: listen for agents and servers",
		"temporal": "start Temporal's frontend: listen tcp",
		"ui":       "start Temporal's web UI: listen tcp",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			taken, err := net.Listen("tcp", map[string]string{"api": s.api, "temporal": s.temporal, "ui": s.ui}[name])
			require.NoError(t, err)
			defer func() { require.NoError(t, taken.Close()) }()
			p := s.start(t)
			require.Error(t, p.end(t, patience))
			require.Contains(t, p.out.String(), "drover-standalone: "+want)
			require.Equal(t, name == "api", strings.Contains(p.out.String(), "Temporal stopped"), p.out.String())
			require.NotContains(t, p.out.String(), "panic")
		})
	}
}

func TestServeArguments(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("name: cs-1\ncolour: blue\n"), 0o600))
	for want, args := range map[string][]string{
		`required flag(s) "config"`: {"serve"},
		bad + ":2: ":                {"serve", "--config", bad},
		"unknown command":           {"serve", "--config", bad, "more"},
	} {
		cmd := root(slog.New(slog.DiscardHandler))
		cmd.SetArgs(args)
		require.ErrorContains(t, cmd.Execute(), want)
	}
	for _, verb := range []string{"serve", "temporal"} {
		var out bytes.Buffer
		cmd := root(slog.New(slog.DiscardHandler))
		cmd.SetArgs([]string{verb, "--help"})
		cmd.SetOut(&out)
		require.NoError(t, cmd.Execute())
		require.Contains(t, out.String(), "Examples:\n  drover-standalone "+verb)
	}
}
