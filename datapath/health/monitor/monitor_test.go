package monitor

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/health"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRealProc(t *testing.T) {
	before := readCPU("/proc")
	require.Positive(t, before.all)
	require.Positive(t, before.busy)
	require.Less(t, before.busy, before.all)
	var busy float64
	require.Eventually(t, func() bool { // two readings in one tick tell nothing
		for begin := time.Now(); time.Since(begin) < 20*time.Millisecond; { // work for a processor
		}
		busy = readCPU("/proc").since(before)
		return busy >= 0
	}, 10*time.Second, time.Millisecond)
	require.Positive(t, busy, "this test works")
	require.LessOrEqual(t, busy, 100.0)

	used := memory("/proc")
	require.Greater(t, used, 0.0)
	require.Less(t, used, 100.0)
	require.Positive(t, diskFree(t.TempDir()))
	require.Negative(t, diskFree(filepath.Join(t.TempDir(), "none")))
}

// proc writes files as /proc has them.
func proc(t *testing.T, dir, stat, meminfo string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "meminfo"), []byte(meminfo), 0o600))
}

func TestProcFiles(t *testing.T) {
	dir := t.TempDir()
	require.Zero(t, readCPU(dir))
	require.Negative(t, memory(dir))
	//          user nice system idle iowait irq softirq steal guest guest_nice
	proc(t, dir, "cpu  100 0 50 800 50 0 0 0 77 7\ncpu0 1 2 3 4\n", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n")
	first := readCPU(dir)
	require.Equal(t, cpuTimes{busy: 150, all: 1000}, first)
	require.InDelta(t, 75, memory(dir), 1e-9)
	proc(t, dir, "cpu  150 0 60 810 80 0 0 0 0 0\n", "MemTotal: 1000 kB\n")
	require.InDelta(t, 60, readCPU(dir).since(first), 1e-9, "60 of 100 ticks; waiting for disks is idle")
	require.Negative(t, memory(dir), "no MemAvailable")
	require.Negative(t, first.since(readCPU(dir)), "counters that went back")
	require.Negative(t, first.since(cpuTimes{}))
	for _, bad := range []string{"", "cpu", "cpu a b c d e f", "cpu0 1 2 3 4 5 6"} {
		proc(t, dir, bad, "MemTotal: x kB\n")
		require.Zero(t, readCPU(dir), bad)
	}
	require.Negative(t, memory(dir))
}

// rig is a monitor with a clock and a load of the test's.
type rig struct {
	*Monitor
	now  time.Time
	load health.Load
	log  bytes.Buffer
}

func newRig(t *testing.T) *rig {
	r := &rig{now: time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)}
	r.load = health.Load{SpoolDir: t.TempDir(), SpoolLimit: 1 << 20}
	dir := t.TempDir()
	proc(t, dir, "cpu 1 0 0 1 0 0 0 0\n", "MemTotal: 100 kB\nMemAvailable: 90 kB\n")
	r.Monitor = New(Config{Load: func() health.Load { return r.load }, Proc: dir, Logger: slog.New(slog.NewTextHandler(&r.log, nil)), Metrics: prometheus.NewRegistry()})
	return r
}

func (r *rig) step(backlog, drained int64) health.Sample {
	r.load.BacklogBytes = backlog
	r.load.DrainedBytes += drained
	r.measure(r.now)
	r.now = r.now.Add(Every)
	return r.sample
}

func TestDrainRate(t *testing.T) {
	r := newRig(t)
	require.Zero(t, r.step(1000, 0).DrainRate)
	require.InDelta(t, 10, r.step(900, 100).DrainRate, 1e-9)
	require.Equal(t, 90*time.Second, r.sample.Drain())
	require.InDelta(t, 10, r.step(800, 100).DrainRate, 1e-9)
	// Times without a backlog do not count.
	r.step(0, 800)
	rate := r.sample.DrainRate
	for range 5 {
		require.InDelta(t, rate, r.step(0, 0).DrainRate, 1e-9)
	}
	require.Zero(t, r.sample.Stalled)
	// What is long ago does not count either.
	for range maxTicks {
		r.step(0, 0)
	}
	require.Zero(t, r.sample.DrainRate)
}

func TestStalledBacklog(t *testing.T) {
	r := newRig(t)
	r.step(0, 0)
	for r.step(5000, 0).Stalled <= health.DrainWarning {
		require.Equal(t, health.OK, r.Report().Status, "stalled for %s", r.sample.Stalled)
	}
	require.Equal(t, health.Warning, r.Report().Status)
	require.Equal(t, health.CodeBacklog, r.Report().Findings[0].Code)
	require.Contains(t, r.log.String(), "the server is not well")
	for r.step(5000, 0).Stalled <= health.DrainCritical {
	}
	require.Equal(t, health.Critical, r.Report().Status)
	r.step(4000, 1000)
	require.Equal(t, health.OK, r.Report().Status, "4000 bytes, at 1000 in five minutes")
	require.Contains(t, r.log.String(), "the server is well again")
	require.Equal(t, 3, bytes.Count(r.log.Bytes(), []byte("\n")), "each change is told once: %s", r.log.String())
}

func TestProcessorsCountOverAMinute(t *testing.T) {
	r := newRig(t)
	require.Negative(t, r.step(0, 0).CPU)
	busy, idle := 1, 1
	for i := range 12 {
		// Idle for a minute, then all busy.
		if i < 6 {
			idle += 1000
		} else {
			busy += 1000
		}
		proc(t, r.Proc, "cpu "+itoa(busy)+" 0 0 "+itoa(idle)+" 0 0 0 0\n", "MemTotal: 100 kB\nMemAvailable: 10 kB\n")
		r.step(0, 0)
		switch i {
		case 5:
			require.InDelta(t, 0, r.sample.CPU, 1e-9)
		case 8:
			require.InDelta(t, 50, r.sample.CPU, 1e-9)
		case 11:
			require.InDelta(t, 100, r.sample.CPU, 1e-9)
		}
	}
	require.Equal(t, health.Critical, r.Report().Status)
	require.Len(t, r.Report().Findings, 2)
}

func itoa(n int) string { return slog.IntValue(n).String() }

func TestMetricsAndRun(t *testing.T) {
	metrics := prometheus.NewRegistry()
	m := New(Config{Logger: slog.New(slog.DiscardHandler), Metrics: metrics, Load: func() health.Load {
		return health.Load{SpoolDir: t.TempDir(), SpoolLimit: 100, SpoolUsed: 80, BacklogBytes: 7, Agents: []health.Agent{{Name: "a", Silent: time.Minute}}}
	}})
	require.Equal(t, health.Report{Status: health.OK}, m.Report())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	require.Eventually(t, func() bool { return m.Report().Status == health.Critical }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	found, err := metrics.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range found {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	require.Len(t, got, 7)
	require.InDelta(t, 2, got["drover_health_status"], 0)
	require.InDelta(t, 20, got["drover_health_spool_room_bytes"], 0)
	require.InDelta(t, 7, got["drover_health_backlog_bytes"], 0)
	require.InDelta(t, 60, got["drover_health_agent_silence_seconds"], 0)
	require.Positive(t, got["drover_health_memory_percent"])
}
