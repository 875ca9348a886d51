package packages

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Bounds of what is done in the copy.
const (
	limit = 60 * time.Second
	often = 50 * time.Millisecond
)

const (
	unit = "drover-agent.service"
	deb  = "drover-agent_%s-1_*.deb"
	rpm  = "drover-agent-%s-1.*.rpm"
)

// need skips the test where it cannot run, and fails it where it must.
func need(t *testing.T, why string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(why, args...)
	}
	t.Skipf(why, args...)
}

// build makes the packages of a version in dir, of the program that `make` has built.
func build(t *testing.T, dir, version string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	tools, err := filepath.Glob(filepath.Join(root, "build/tools/nfpm-*"))
	require.NoError(t, err)
	bin := filepath.Join(root, "build/bin")
	if _, err := os.Stat(filepath.Join(bin, "drover-agent")); err != nil || len(tools) == 0 {
		need(t, "there is no agent or no nfpm; run `make packages`")
	}
	for _, kind := range []string{"deb", "rpm"} {
		cmd := exec.CommandContext(t.Context(), tools[len(tools)-1], "package", "--config", "agent/packaging/nfpm.yaml", "--packager", kind, "--target", dir+"/")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "VERSION="+version, "ARCH=amd64", "BIN="+bin)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

// world is a running copy of this system.
type world struct {
	t        *testing.T
	packages string // a directory that is /packages inside
	pid      string // of its systemd
}

func boot(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		need(t, "a copy of this system needs root")
	}
	for _, tool := range []string{"/lib/systemd/systemd", "/usr/bin/dpkg", "/usr/bin/rpm", "/usr/bin/unshare", "/usr/bin/nsenter"} {
		if _, err := os.Stat(tool); err != nil {
			need(t, "%v; tests/setup.sh installs it on Debian", err)
		}
	}
	w := &world{t: t, packages: t.TempDir()}
	require.NoError(t, os.Chmod(w.packages, 0o755))
	build(t, w.packages, "1.0.0")
	build(t, w.packages, "1.1.0")
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "/bin/sh", "testdata/boot.sh", t.TempDir(), w.packages)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-done
		w.forget(cmd.Process.Pid)
	})
	require.Eventually(t, func() bool {
		if len(done) > 0 {
			return true
		}
		_, err := os.Stat(filepath.Join(w.packages, "ready"))
		return err == nil
	}, limit, often)
	if len(done) > 0 {
		need(t, "a system within this one cannot be started: %s", out.String())
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	require.NoError(t, err)
	w.pid = strings.TrimSpace(string(children))
	var state string
	require.Eventually(t, func() bool {
		state, _ = w.try("systemctl", "is-system-running")
		return state == "running" || state == "degraded"
	}, limit, often, "systemd %s does not come up: %s", w.pid, lazy(func() string { o, _ := w.try("systemctl", "list-jobs"); return state + o }))
	return w
}

// forget removes the control groups that were the copy's: those of the process that
// became its parent.
func (w *world) forget(pid int) {
	for range 10 { // its last processes are just ending
		var left []string
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() && strings.Contains(path, fmt.Sprintf("/drover-packages-%d", pid)) {
					left = append(left, path)
				}
				return nil
			})
		}
		for _, path := range slices.Backward(left) {
			_ = os.Remove(path) // what is not empty yet is tried again
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(often)
	}
}

// try runs a program inside.
func (w *world) try(args ...string) (string, error) {
	cmd := exec.CommandContext(w.t.Context(), "nsenter", append([]string{"-t", w.pid, "-m", "-p", "-u", "-i", "-C", "-r", "-w",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}, args...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	require.NoError(w.t, err, "%v: %s", args, out)
	return out
}

// file gives a path of the world, as seen from outside.
func (w *world) file(path string) string { return "/proc/" + w.pid + "/root" + path }

func (w *world) write(path, content string) {
	w.t.Helper()
	require.NoError(w.t, os.MkdirAll(filepath.Dir(w.file(path)), 0o755))
	require.NoError(w.t, os.WriteFile(w.file(path), []byte(content), 0o600))
}

func (w *world) has(path string) bool {
	_, err := os.Lstat(w.file(path))
	return err == nil
}

// pkg is a package's path inside.
func (w *world) pkg(pattern, version string) string {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.packages, fmt.Sprintf(pattern, version)))
	require.NoError(w.t, err)
	require.Len(w.t, found, 1, pattern)
	return "/packages/" + filepath.Base(found[0])
}

// is holds the unit to a state: active, inactive; enabled, disabled.
func (w *world) is(active, enabled string) {
	w.t.Helper()
	var a, e string
	require.Eventually(w.t, func() bool {
		a, _ = w.try("systemctl", "is-active", unit)
		e, _ = w.try("systemctl", "is-enabled", unit)
		return a == active && strings.HasPrefix(e, enabled)
	}, limit, often, "want %s and %s; %s", active, enabled, lazy(func() string { return a + " and " + e }))
}

// lazy is a text that is made when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

// process is the agent's process number.
func (w *world) process() string {
	w.t.Helper()
	return w.run("systemctl", "show", "-p", "MainPID", "--value", unit)
}

// configure writes what an operator writes.
func (w *world) configure() {
	w.t.Helper()
	w.write("/etc/drover/agent.yaml", "configServer: https://127.0.0.1:1\nstate: /var/lib/drover/agent\ninstance: 4211aaaa-0000-4000-8000-000000000001\n")
}

// works waits until the agent says that it runs.
func (w *world) works() {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		out, err := w.try("drover-agent", "status")
		return err == nil && strings.Contains(out, "not-enrolled")
	}, limit, often, "the agent does not answer")
}
