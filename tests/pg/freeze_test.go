package pg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"drover/agent/session"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/tests/loop"
	"drover/tests/rig"
)

const (
	// goal for the median under pgbench. It is printed when it is missed; only the limit
	// counts.
	goal      = 60 * time.Millisecond
	often     = 500 * time.Millisecond // points
	benchName = "pgbench"
	fioDisk   = 512 << 20
	fioFile   = "192M"
	fioTool   = "fio"
	fioSlack  = 20 * time.Second
)

// load is what writes to a file system; it ends with the context.
type load struct {
	name, fstype string
	start        func(ctx context.Context, t *testing.T, mount string, done *sync.WaitGroup)
}

var loads = []load{
	{benchName, "ext4", benchLoad},
	{benchName, "xfs", benchLoad},
	{"fio, as fast as it goes", "ext4", fioLoad},
	{"fio, as fast as it goes", "xfs", fioLoad},
}

func benchLoad(ctx context.Context, t *testing.T, mount string, done *sync.WaitGroup) {
	p := newPostgres(t, filepath.Join(mount, "data"), firstPort)
	p.create(mount)
	p.start()
	p.run("pgbench", "-i", "-q", "-s", "5")
	p.bench(ctx, done)
}

func fioLoad(ctx context.Context, t *testing.T, mount string, done *sync.WaitGroup) {
	if _, err := exec.LookPath(fioTool); err != nil {
		loop.Missing(t, err.Error())
	}
	c := exec.CommandContext(ctx, fioTool, "--name=w", "--directory="+mount, "--size="+fioFile, "--rw=randwrite", "--bs=4k", "--ioengine=psync",
		"--numjobs=2", "--time_based", "--runtime=3600", "--fallocate=none", "--output=/dev/null")
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = fioSlack
	require.NoError(t, c.Start())
	done.Go(func() { _ = c.Wait() }) // interrupted
}

// TestFreezeTimes measures for how long file systems are frozen for a point, and how
// often there is none.
func TestFreezeTimes(t *testing.T) {
	if *length == 0 {
		t.Skip("measures; run make freeze")
	}
	var table []string
	for _, l := range loads {
		t.Run(l.name+" on "+l.fstype, func(t *testing.T) { table = append(table, measure(t, l)) })
	}
	t.Logf("frozen for a point\n%s", strings.Join(table, "\n"))
}

func measure(t *testing.T, l load) string {
	size := int64(diskSize)
	if strings.HasPrefix(l.name, fioTool) {
		size = fioDisk
	}
	r, mount := protected(t, l.fstype, size)
	metrics := prometheus.NewRegistry()
	r.Metrics = session.NewMetrics(metrics)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	l.start(ctx, t, mount, &running)
	r.StartServer()
	r.Grant(1, often)
	r.StartAgent(1)
	r.Await("points", func(st pipe.Status) bool { return st.Complete })
	time.Sleep(*length)
	r.StopAgent()
	return evaluate(t, l, r, metrics)
}

// evaluate fails when a freeze was longer than the limit.
func evaluate(t *testing.T, l load, r *rig.Rig, metrics *prometheus.Registry) string {
	var times []time.Duration
	limit := r.Hooks.Freezer.MaxTime()
	for _, p := range r.Points() {
		require.LessOrEqual(t, p.Freeze, limit, "point %d", p.ID)
		if p.Consistency >= ident.FileSystemConsistent {
			times = append(times, p.Freeze)
		}
	}
	name := "  " + l.name + " on " + l.fstype + ": "
	if len(times) == 0 { // the disk is slower than what is written
		require.NotEqual(t, benchName, l.name, "a server under pgbench has points")
		return name + "no points" + counts(t, metrics)
	}
	slices.Sort(times)
	at := func(percent int) time.Duration {
		return times[(len(times)-1)*percent/100].Round(100 * time.Microsecond)
	}
	line := name + strings.Join([]string{"median", at(50).String(), "p95", at(95).String(), "max", at(100).String()}, " ") + counts(t, metrics)
	if l.name == benchName {
		if at(50) <= goal {
			line += " (goal of the median, " + goal.String() + ": met)"
		} else {
			line += " (goal of the median, " + goal.String() + ": MISSED)"
		}
	}
	return line
}

// counts tells how many cuts were made, by what they were good for.
func counts(t *testing.T, metrics *prometheus.Registry) (out string) {
	families, err := metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "drover_agent_cuts_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			out += fmt.Sprintf("; %.0f %s", m.GetCounter().GetValue(), m.GetLabel()[0].GetValue())
		}
	}
	return out
}
