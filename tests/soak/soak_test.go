package soak

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/run"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire/wiretest"
	"drover/tests/ports"
	"drover/tests/rig"
)

var (
	lasts   = flag.Duration("for", 6*time.Second, "how long the streams run; memory is judged from a minute on")
	streams = flag.Int("streams", 4, "how many machines stream to the one server")
)

// What is promised.
const (
	serverLimit = 512 * mib // bytes, with 32 streams
	agentLimit  = 64 * mib  // beside the tracker's sums
	growth      = 1.10      // of the last quarter over the second
	noise       = 12        // MiB that a small heap may fill up with in a run shorter than settled
	settled     = 30 * time.Minute
	judged      = time.Minute
	lines       = 12 // parts of the run that are told
	mib         = 1 << 20
)

// What the machines are like.
const (
	diskBytes  = 32 << 20
	writesEach = 250 * time.Millisecond // of each machine's writer
	longestCut = 5 * time.Second
	parts      = 72 // cuts in a short run
	kept       = 6  // part of the run that recovery points are kept for
	lifeLimit  = 5 * time.Minute
)

// Environment of the children.
const (
	roleVariable = "DROVER_SOAK_ROLE" // server, or agents
	dirVariable  = "DROVER_SOAK_DIR"
	addrVariable = "DROVER_SOAK_ADDRESS"
	fromVariable = "DROVER_SOAK_FROM" // the first machine of an agents' process
	toVariable   = "DROVER_SOAK_TO"
)

func cut() time.Duration { return min(longestCut, *lasts/parts) }

// machine is the nth machine in the directory, whose disk is made by who comes first.
func machine(t *testing.T, dir string, n int) *rig.Rig {
	t.Helper()
	r := rig.New(t)
	r.Dir, r.CA, r.Address = filepath.Join(dir, strconv.Itoa(n)), wiretest.Load(t, dir), os.Getenv(addrVariable)
	r.Machine = ident.NewMachineID("soak", strconv.Itoa(n))
	r.Retention = replica.Retention{Keep: *lasts / kept, Steps: []replica.ThinStep{{Until: *lasts / kept}}}
	r.Disks = []controlapi.Disk{{ID: ident.NewDiskID(r.Machine, "a"), BackingUUID: "a", Size: diskBytes}}
	require.NoError(t, os.MkdirAll(r.Dir, 0o700))
	f, err := os.OpenFile(r.Path("a"), os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(diskBytes), f.Close()))
	return r
}

// place is the server's own directory, as a rig's.
func place(t *testing.T, dir string) *rig.Rig {
	t.Helper()
	r := rig.New(t)
	r.Dir, r.CA, r.Address = dir, wiretest.Load(t, dir), os.Getenv(addrVariable)
	return r
}

// TestChild is one of the processes; it ends with its standard input.
func TestChild(t *testing.T) {
	dir := os.Getenv(dirVariable)
	switch os.Getenv(roleVariable) {
	case "":
		t.Skip("run by TestMemoryStaysFlat")
	case "server":
		debug.SetGCPercent(server.GCPercent) // as the process server does
		here := place(t, dir)
		here.StartServer()
		for n := range *streams {
			m := machine(t, dir, n)
			m.Server = here.Server
			m.Grant(1, cut())
			defer m.Await("all is applied", func(st pipe.Status) bool { return st.BacklogSets == 0 })
		}
	case "agents":
		from, err := strconv.Atoi(os.Getenv(fromVariable))
		require.NoError(t, err)
		to, err := strconv.Atoi(os.Getenv(toVariable))
		require.NoError(t, err)
		for n := from; n < to; n++ {
			m := machine(t, dir, n)
			if to-from == 1 { // the process is one machine's, as agents are
				debug.SetMemoryLimit(run.HeapLimit(config.DefaultMemory, m.Disks))
			}
			m.StartAgent(1)
		}
	}
	fmt.Println("\nready")
	_, err := io.Copy(io.Discard, os.Stdin)
	require.NoError(t, err)
}

// process is a child.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	memory []int64 // resident bytes, second by second
}

func start(t *testing.T, dir, address string, env ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), *lasts+lifeLimit)
	t.Cleanup(cancel)
	p := &process{cmd: exec.CommandContext(ctx, os.Args[0], "-test.run=^TestChild$", "-test.count=1", "-test.timeout=0", //nolint:gosec // this program
		"-for="+lasts.String(), fmt.Sprintf("-streams=%d", *streams))}
	p.cmd.Env = append(os.Environ(), append(env, dirVariable+"="+dir, addrVariable+"="+address)...)
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = os.Stderr
	require.NoError(t, p.cmd.Start())
	ready := false
	for in := bufio.NewScanner(out); !ready && in.Scan(); {
		ready = in.Text() == "ready"
	}
	require.True(t, ready, "the process did not start")
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
	return p
}

// stop ends a process, which must end well.
func (p *process) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, p.stdin.Close())
	require.NoError(t, p.cmd.Wait())
}

// look notes the memory that the process has now.
func (p *process) look(t *testing.T) {
	t.Helper()
	p.memory = append(p.memory, p.status(t, "VmRSS"))
}

func (p *process) status(t *testing.T, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, field+": %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	require.Fail(t, "no "+field)
	return 0
}

// part is the median of one of so many equal parts of the run, from 0 on, in MiB.
func (p *process) part(n, of int) float64 {
	part := slices.Sorted(slices.Values(p.memory[n*len(p.memory)/of : (n+1)*len(p.memory)/of]))
	if len(part) == 0 {
		return 0
	}
	return float64(part[len(part)/2]) / mib
}

// judge holds a process to its limit and to staying where it is.
func (p *process) judge(t *testing.T, name string, most, limit int64) {
	t.Helper()
	var line strings.Builder
	for n := range lines {
		fmt.Fprintf(&line, " %.1f", p.part(n, lines))
	}
	t.Logf("%s: %.1f MiB at most, of %.1f; over time%s", name, float64(most)/mib, float64(limit)/mib, line.String())
	if *lasts < judged {
		return
	}
	assert.LessOrEqual(t, most, limit, "%s", name)
	until := growth * p.part(1, 4)
	if *lasts < settled {
		until += noise
	}
	assert.LessOrEqual(t, p.part(3, 4), until, "%s grows from the second quarter to the last", name)
}

// TestMemoryStaysFlat writes small blocks to all machines' disks all the time.
func TestMemoryStaysFlat(t *testing.T) {
	if os.Getenv(roleVariable) != "" {
		t.Skip("this is a child")
	}
	dir := t.TempDir()
	address, err := ports.Free()
	require.NoError(t, err)
	wiretest.NewCA(t).Save(dir)
	machines := make([]*rig.Rig, *streams)
	for n := range machines {
		machines[n] = machine(t, dir, n)
		fill(t, machines[n])
	}
	server := start(t, dir, address, roleVariable+"=server")
	one := start(t, dir, address, roleVariable+"=agents", fromVariable+"=0", toVariable+"=1")
	rest := start(t, dir, address, roleVariable+"=agents", fromVariable+"=1", fmt.Sprintf("%s=%d", toVariable, *streams))
	write(t, machines, func() { server.look(t); one.look(t) })
	serverMost, agentMost := server.status(t, "VmHWM"), one.status(t, "VmHWM")

	store := place(t, dir)
	for n, m := range machines {
		store.Machine = m.Machine
		want := m.Digest()
		for begin := time.Now(); newest(t, store) != want; time.Sleep(cut()) {
			require.Less(t, time.Since(begin), lifeLimit/2, "the newest point of machine %d is what its disk is", n)
		}
	}
	one.stop(t)
	rest.stop(t)
	server.stop(t)
	server.judge(t, fmt.Sprintf("server with %d streams", *streams), serverMost, serverLimit)
	one.judge(t, "agent", agentMost, agentLimit+8*checksum.Blocks(diskBytes))
}

// newest is the content of the newest recovery point, which is held while it is read.
func newest(t *testing.T, store *rig.Rig) string {
	t.Helper()
	points := store.Points()
	require.NotEmpty(t, points)
	p := points[len(points)-1]
	reader := store.Reader()
	defer func() { require.NoError(t, reader.Close()) }()
	err := reader.Hold(t.Context(), p.ID, replica.Hold{Owner: "soak", Expires: time.Now().Add(lifeLimit)})
	if errors.Is(err, replica.ErrNotFound) { // newer ones were made, and it was thinned
		return ""
	}
	require.NoError(t, err)
	defer func() { require.NoError(t, reader.Release(t.Context(), p.ID, "soak")) }()
	return store.DigestAt(p)
}

// fill gives a disk content on half of it.
func fill(t *testing.T, m *rig.Rig) {
	t.Helper()
	f, err := os.OpenFile(m.Path("a"), os.O_WRONLY, 0)
	require.NoError(t, err)
	b := make([]byte, diskBytes/2)
	_, _ = rand.NewChaCha8(sha256.Sum256(m.Machine[:])).Read(b)
	_, err = f.WriteAt(b, 0)
	require.NoError(t, errors.Join(err, f.Close()))
}

// write changes a random block of every machine, again and again, and looks once a
// second.
func write(t *testing.T, machines []*rig.Rig, look func()) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, rig.Block)
	tick := time.NewTicker(writesEach)
	defer tick.Stop()
	looked := time.Now()
	for end := time.Now().Add(*lasts); time.Now().Before(end); <-tick.C {
		for _, m := range machines {
			for i := range data[:rig.Block/2] { // half noise, half zeros
				data[i] = byte(rnd.Uint32())
			}
			m.Write(0, rnd.Int64N(diskBytes/rig.Block), data)
		}
		if time.Since(looked) >= time.Second {
			look()
			looked = time.Now()
		}
	}
}
