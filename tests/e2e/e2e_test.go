package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/tests/azurearm"
	"drover/tests/lab"
	"drover/workflows/api"
)

// Limits of waiting; on a slow machine things take longer, not for ever.
const (
	testLimit  = 10 * time.Minute
	stateLimit = 3 * time.Minute
	planLimit  = 4 * time.Minute
)

// programs gives the directory of the built programs. `make e2e` sets DROVER_BIN.
func programs(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("DROVER_BIN")
	missing := ""
	if bin == "" {
		missing = "DROVER_BIN is not set; run `make e2e`"
	} else if err := lab.NeedTools(); err != nil {
		missing = err.Error()
	}
	switch {
	case missing != "" && os.Getenv("CI") == "true":
		t.Fatal(missing)
	case missing != "":
		t.Skip(missing)
	}
	return bin
}

// content is a directory of real files that every machine with Go has.
func content(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	return filepath.Join(strings.TrimSpace(string(out)), "src", "cmd")
}

// world is a lab with what a test knows of it.
type world struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context
	vms map[string]api.VM
}

// newWorld starts a lab with a database on two disks and an application server,
// and discovers and enrols them.
func newWorld(t *testing.T) *world {
	t.Helper()
	disk := lab.DiskSpec{Size: 192 << 20, Content: content(t)}
	return startWorld(t, lab.Options{VMs: []lab.VMSpec{
		{Name: "db-1", Disks: []lab.DiskSpec{disk, disk}}, {Name: "app-1", Disks: []lab.DiskSpec{disk}, Tags: []string{"tier/gold"}},
	}})
}

// startWorld starts a lab and discovers and enrols its machines.
func startWorld(t *testing.T, o lab.Options) *world {
	t.Helper()
	o.Dir, o.Bin = t.TempDir(), programs(t)
	ctx, cancel := context.WithTimeout(context.Background(), testLimit) // clean-up needs it too
	l, err := lab.New(o)
	require.NoError(t, err)
	w := &world{Lab: l, t: t, ctx: ctx, vms: map[string]api.VM{}}
	t.Cleanup(func() {
		if t.Failed() {
			w.showStatus()
		}
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("stop the lab: %v", err)
		}
		if t.Failed() {
			w.showLogs()
		}
	})
	require.NoError(t, l.Start(ctx))
	require.NoError(t, l.FormatDisks(ctx))
	require.NoError(t, l.StartGuests(ctx))
	w.drover(l.AddVCenterArgs()...)
	var found api.DiscoveryStatus
	require.NoError(t, l.DroverJSON(ctx, &found, "discover", lab.VCenterName))
	for _, vm := range found.VMs {
		w.vms[vm.Name] = vm
	}
	for _, vm := range l.VMs {
		require.NoError(t, l.EnrolAgent(ctx, vm.Name))
	}
	return w
}

// showStatus prints what the operator would see of a test that failed.
func (w *world) showStatus() {
	for _, args := range [][]string{{"status"}, {"plan", "list"}} {
		out, err := w.Drover(w.ctx, args...)
		w.t.Logf("drover %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// showLogs prints the ends of the logs of a failed test, and what programs were at that
// did not stop.
func (w *world) showLogs() {
	const most, dump = 6 << 10, 200 << 10
	files, _ := filepath.Glob(w.Path("log", "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		end := b[max(0, len(b)-most):]
		if at := bytes.Index(b, []byte("SIGQUIT: quit")); at >= 0 {
			end = b[at:min(len(b), at+dump)]
		}
		w.t.Logf("%s:\n%s", filepath.Base(f), end)
	}
}

func (w *world) drover(args ...string) string {
	w.t.Helper()
	out, err := w.Drover(w.ctx, args...)
	require.NoError(w.t, err)
	return string(out)
}

// write puts a file into the lab.
func (w *world) write(name, text string, mode os.FileMode) string {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(w.Path(name), []byte(text), mode))
	return w.Path(name)
}

const policy = `name: gold
rpoThreshold: 1m
cutInterval: 5s
`

const cutInterval = 5 * time.Second // of the policy

// protect puts the machines under the policy; it does not wait.
func (w *world) protect(names ...string) {
	w.t.Helper()
	w.drover("policy", "apply", "-f", w.write("policy.yaml", policy, 0o600))
	args := append([]string{"protect"}, names...)
	w.drover(append(args, "--policy", "gold", "--network", lab.Network, "--subnet", lab.Subnet, "--test-network", lab.TestNetwork)...)
}

func (w *world) await(state api.State, names ...string) map[string]lab.MachineLine {
	w.t.Helper()
	status, err := w.WaitStatus(w.ctx, stateLimit, string(state), lab.InState(state, names...))
	require.NoError(w.t, err)
	return status
}

// prove compares all recovery points of a machine in a store with what its guest
// had at each cut.
func (w *world) prove(store, name string) lab.Proof {
	w.t.Helper()
	p, err := w.ProvePoints(w.ctx, store, w.vms[name].Machine, name, 0)
	require.NoError(w.t, err)
	require.Empty(w.t, p.Problems, "%s in %s", name, store)
	require.True(w.t, p.OK(), "%s in %s: %d of %d points", name, store, p.Matched, p.Points)
	return p
}

// noSecrets looks for the lab's secrets where they must not be: in Temporal's
// database, with all histories, and in the logs of all programs.
func (w *world) noSecrets() {
	w.t.Helper()
	secrets := [][]byte{[]byte(lab.VCenterPassword), []byte(azurearm.Secret), []byte(azurearm.Token), []byte("sig=")}
	tokens, err := filepath.Glob(w.Path("secrets", "*.token"))
	require.NoError(w.t, err)
	require.NotEmpty(w.t, tokens)
	for _, file := range tokens {
		b, err := os.ReadFile(file)
		require.NoError(w.t, err)
		_, secret, ok := bytes.Cut(bytes.TrimSpace(b), []byte("."))
		require.True(w.t, ok)
		secrets = append(secrets, secret)
	}
	readable := false // that what is looked through is in clear at all
	for _, dir := range []string{"temporal", "log", "target", "seed", "cache", "retention"} {
		require.NoError(w.t, filepath.WalkDir(w.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".img") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, s := range secrets {
				require.False(w.t, bytes.Contains(b, s), "a secret is in %s", path)
			}
			readable = readable || dir == "temporal" && bytes.Contains(b, []byte(lab.VCenterName))
			return err
		}))
	}
	require.True(w.t, readable)
}

// TestDemo runs the demo as `make demo` does and reads its report.
func TestDemo(t *testing.T) {
	bin := programs(t)
	dir := filepath.Join(t.TempDir(), "demo")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "drover-demo"), "--dir", dir, "--bin", bin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(filepath.Join(dir, "report.json"))
	require.NoError(t, err)
	var report struct {
		Proven   bool
		Steps    []struct{ OK bool }
		Machines []struct {
			Name, Verdict string
			Proofs        map[string]lab.Proof
		}
	}
	require.NoError(t, json.Unmarshal(b, &report))
	require.True(t, report.Proven)
	require.Len(t, report.Steps, 14)
	require.Len(t, report.Machines, 3)
	for _, m := range report.Machines {
		require.Equal(t, "proven", m.Verdict, m.Name)
		require.NotEmpty(t, m.Proofs, m.Name)
	}
}
