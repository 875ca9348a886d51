package e2e

import (
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/lab"
	"drover/workflows/api"
)

// refused runs a command that must fail with the exit code, and gives what it said.
func (w *world) refused(exit int, args ...string) string {
	w.t.Helper()
	_, err := w.Drover(w.ctx, args...)
	var failed *lab.CLIError
	require.ErrorAs(w.t, err, &failed, "drover %s", strings.Join(args, " "))
	require.Equal(w.t, exit, failed.Exit, failed.Stderr)
	return failed.Stderr
}

// enrol tries to enrol an agent with a token.
func (w *world) enrol(name, token string) (string, error) {
	w.t.Helper()
	w.write("etc/"+name+".token", token, 0o600)
	config, err := os.ReadFile(w.agentConfig("db-1"))
	require.NoError(w.t, err)
	var lines []string
	for _, line := range strings.Split(string(config), "\n") {
		switch {
		case strings.HasPrefix(line, "state:"):
			line = "state: " + w.Path("guests", name)
		case strings.HasPrefix(line, "tokenFile:"):
			line = "tokenFile: " + w.Path("etc", name+".token")
		}
		lines = append(lines, line)
	}
	file := w.write("etc/"+name+".yaml", strings.Join(lines, "\n"), 0o600)
	out, err := exec.CommandContext(w.ctx, filepath.Join(w.Bin, "drover-agent"), "enrol", "--config", file).CombinedOutput()
	return string(out), err
}

func (w *world) agentConfig(name string) string {
	w.t.Helper()
	found, err := filepath.Glob(w.Path("etc", "agent-"+name+"-*.yaml"))
	require.NoError(w.t, err)
	require.Len(w.t, found, 1)
	return found[0]
}

// TestRefusals tries what must be refused, clearly and before anything changes.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.protect("app-1")
	w.await(api.StateProtected, "app-1")

	used, err := os.ReadFile(w.Path("secrets", "db-1.token"))
	require.NoError(t, err)
	print, _, _ := strings.Cut(string(used), ".")
	for name, c := range map[string]struct{ token, want string }{
		"reused":     {string(used), "DRV-1002"},
		"invented":   {print + "." + strings.Repeat("0", 43), "DRV-1002"},
		"foreign-ca": {strings.Repeat("ab", 32) + "." + strings.Repeat("0", 43), "fingerprint"},
		"garbage":    {"what?", "token"},
	} {
		out, err := w.enrol(name, c.token)
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), name)
		require.Contains(t, out, c.want, name)
		require.NotContains(t, out, strings.TrimSpace(c.token), "no secret in an error")
	}

	require.Contains(t, w.refused(2, "plan", "apply", "-f", w.write("bad.yaml", "name: p\ngroups:\n  - name: g\n    machines: [{name: app-1}, {name: app-1}]\n", 0o600)), "bad.yaml:4")
	require.Contains(t, w.refused(2, "plan", "apply", "-f", w.write("bad.yaml", "name: p\ncolour: red\n", 0o600)), "bad.yaml:2")
	require.Contains(t, w.refused(2, "plan", "apply", "-f", w.write("bad.yaml",
		"name: p\nbefore:\n  - name: a\n    script: {file: absent.sh}\ngroups:\n  - {name: g, machines: [{name: app-1}]}\n", 0o600)), "bad.yaml:4")
	require.Contains(t, w.refused(2, "policy", "apply", "-f", w.write("bad.yaml", "name: p\ncutInterval: soon\n", 0o600)), "bad.yaml:2")
	require.Contains(t, strings.ToLower(w.refused(4, "points", "nobody")), "nobody")
	out := w.refused(3, "commit", "app-1")
	require.Contains(t, out, api.CodeNotInState)

	status, err := w.Status(w.ctx)
	require.NoError(t, err)
	require.Equal(t, api.StateProtected, status["app-1"].Machine.State)
	require.NotContains(t, status, "db-1", "what was refused changed nothing")
	w.noSecrets()
	w.measured()
}

// measured asks every process for its metrics.
func (w *world) measured() {
	w.t.Helper()
	for process, metric := range map[string]string{
		"temporal": "service_requests", "config-server": "drover_temporal_worker_running 1", "process-server": "drover_stream_sessions 1",
		"master-target": "drover_spool_used_bytes 0", "agent-app-1": `drover_agent_cuts_total{consistency="app"}`,
	} {
		resp, err := http.Get("http://" + w.Metrics(process) + "/metrics")
		require.NoError(w.t, err, process)
		text, err := io.ReadAll(resp.Body)
		require.NoError(w.t, errors.Join(err, resp.Body.Close()), process)
		require.Equal(w.t, http.StatusOK, resp.StatusCode, process)
		require.Contains(w.t, string(text), metric, process)
	}
}
