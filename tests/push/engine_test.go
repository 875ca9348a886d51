package push

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	engines = "drover-docker-*" // their directories, in the one for temporary files
	young   = time.Minute       // an engine that may not have its lock yet
)

// engine stands for a container engine, whose docker comes first on this process's PATH
// while a test runs. A machine with docker has it behind this one.
type engine struct {
	t     *testing.T
	dir   string
	owner *os.File // locked: when this process ends, so do the containers
}

// newEngine makes one, and removes what killed tests left of theirs.
func newEngine(t *testing.T) *engine {
	t.Helper()
	sweep(t)
	dir, err := os.MkdirTemp("", engines)
	require.NoError(t, err)
	e := &engine{t: t, dir: dir, owner: lock(t, dir, unix.LOCK_EX)}
	t.Cleanup(e.close)
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "docker"), "drover/tests/vsim/docker").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	t.Setenv("VCSIM_INSPECT_INTERVAL", "1h") // nothing changes by itself
	e.probe()
	return e
}

// lock locks an engine's directory; nil if another process has it.
func lock(t *testing.T, dir string, how int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "owner"), os.O_CREATE|os.O_RDWR, 0o600)
	require.NoError(t, err)
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		require.ErrorIs(t, err, unix.EWOULDBLOCK)
		require.NoError(t, f.Close())
		return nil
	}
	return f
}

// sweep removes directories of engines whose process has ended. Their keepers do it
// themselves, unless they were killed too; their mounts end with them.
func sweep(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), engines))
	require.NoError(t, err)
	for _, dir := range left {
		info, err := os.Stat(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		if time.Since(info.ModTime()) < young {
			continue
		}
		if f := lock(t, dir, unix.LOCK_EX|unix.LOCK_NB); f != nil {
			remove(t, dir)
			require.NoError(t, f.Close())
		}
	}
}

// remove removes an engine's directory, in which nothing is mounted here.
func remove(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), dir, "something is mounted there")
	require.NoError(t, os.RemoveAll(dir))
}

// probe finds out whether there can be containers here.
func (e *engine) probe() {
	e.t.Helper()
	out, err := exec.CommandContext(e.t.Context(), "docker", "create", "--name", "probe", "plain").CombinedOutput()
	switch {
	case err == nil:
		e.docker("rm", "-f", "probe")
	case os.Getenv("CI") == "true":
		e.t.Fatalf("there can be no containers here: %s", out)
	default:
		e.t.Skipf("there can be no containers here: %s", out)
	}
}

// close ends what is left, and looks that nothing is.
func (e *engine) close() {
	for _, name := range e.containers() {
		e.docker("rm", "-f", name)
	}
	require.Empty(e.t, e.containers())
	remove(e.t, e.dir)
	require.NoError(e.t, e.owner.Close())
}

// containers gives their names.
func (e *engine) containers() (names []string) {
	entries, err := os.ReadDir(e.dir)
	require.NoError(e.t, err)
	for _, entry := range entries {
		if entry.Type() == os.ModeSymlink {
			names = append(names, entry.Name())
		}
	}
	return names
}

// docker does what there must be no error of. It is called when the test has ended, too.
func (e *engine) docker(args ...string) string {
	e.t.Helper()
	out, err := exec.Command(filepath.Join(e.dir, "docker"), args...).CombinedOutput() //nolint:noctx // see above; it is quick
	require.NoError(e.t, err, "docker %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// pid is that of a running container's process 1, and 0 if it does not run.
func (e *engine) pid(name string) int {
	e.t.Helper()
	var found []struct{ State struct{ Pid int } }
	require.NoError(e.t, json.Unmarshal([]byte(e.docker("inspect", name)), &found))
	return found[0].State.Pid
}

// TestContainersEndWithTheirOwner: nothing is left when a test is killed.
func TestContainersEndWithTheirOwner(t *testing.T) {
	need(t)
	e := newEngine(t)
	id := e.docker("create", "--name", "a", "plain")
	e.docker("create", "--name", "b", "systemd")
	e.docker("start", id)
	e.docker("exec", "a", "/bin/sh", "-c", "echo private > /usr/private; sleep 1000 >/dev/null 2>&1 &")
	sleeps := func() error {
		return exec.CommandContext(t.Context(), "docker", "exec", "a", "/bin/sh", "-c", "grep -qsx sleep /proc/[0-9]*/comm").Run()
	}
	require.NoError(t, sleeps())
	_, err := os.Stat("/usr/private")
	require.ErrorIs(t, err, os.ErrNotExist, "not in this system")
	require.Equal(t, "private", e.docker("exec", "a", "cat", "/usr/private"))

	e.docker("stop", "a")
	require.Zero(t, e.pid("a"))
	e.docker("start", "a")
	require.Equal(t, "private", e.docker("exec", "a", "cat", "/usr/private"), "a disk is not empty after a power cycle")
	var exit *exec.ExitError
	require.ErrorAs(t, sleeps(), &exit, "and nothing runs")
	require.ErrorAs(t, exec.CommandContext(t.Context(), "docker", "exec", "a", "/bin/sh", "-c", "exit 7").Run(), &exit)
	require.Equal(t, 7, exit.ExitCode())

	// One that waits for a program is killed: the program ends, too.
	waits := exec.CommandContext(t.Context(), "docker", "exec", "a", "/bin/sh", "-c", "echo $$ > /waits; exec sleep 1000")
	require.NoError(t, waits.Start())
	inside := func(path string) string {
		b, _ := os.ReadFile(filepath.Join("/proc", itoa(e.pid("a")), "root", path))
		return strings.TrimSpace(string(b))
	}
	require.Eventually(t, func() bool { return strings.Contains(inside("/proc/"+inside("/waits")+"/cmdline"), "1000") }, limit, look)
	require.NoError(t, waits.Process.Kill())
	_ = waits.Wait()
	require.Eventually(t, func() bool { return inside("/proc/"+inside("/waits")+"/cmdline") == "" }, limit, look)

	one := e.pid("a")
	require.NoError(t, e.owner.Close()) // as if this process had been killed
	require.Eventually(t, func() bool {
		_, dir := os.Stat(e.dir)
		_, process := os.Stat(filepath.Join("/proc", itoa(one)))
		return errors.Is(dir, os.ErrNotExist) && errors.Is(process, os.ErrNotExist)
	}, limit, look)
	require.NoError(t, os.Mkdir(e.dir, 0o700)) // for close
	e.owner = lock(t, e.dir, unix.LOCK_EX)
}

// nest makes containers in containers, until one has a small root, and looks what that can.
const nest = `set -e
if [ -d /.usr ]; then
	sha256sum /bin/sh >/dev/null
	echo own > /usr/bin/own
	if touch /usr/lib/own 2>/dev/null; then echo "/usr/lib is not read-only"; fi
	cat /usr/bin/own
	exit
fi
n=$(mktemp -d /n.XXXXXX)
cp /docker "$n"
exec flock -o "$n/owner" sh -c "set -e; $n/docker create --name n systemd >/dev/null; $n/docker start n >/dev/null; $n/docker exec -i n /bin/sh -s </nest"
`

// TestContainersNest: where this system is in a container itself, overlays are two deep sooner
// or later, and there is a root without.
func TestContainersNest(t *testing.T) {
	need(t)
	e := newEngine(t)
	e.docker("create", "--name", "a", "plain")
	e.docker("start", "a")
	root := filepath.Join("/proc", itoa(e.pid("a")), "root")
	program, err := os.ReadFile(filepath.Join(e.dir, "docker"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "docker"), program, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "nest"), []byte(nest), 0o600))
	script := exec.CommandContext(t.Context(), "docker", "exec", "-i", "a", "/bin/sh", "-s")
	script.Stdin = strings.NewReader(nest)
	out, err := script.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "own\n", string(out))
}
