// Package monitor measures a process server or master target and keeps its health:
// processors and memory from /proc, room in the spool's file system, and how fast
// the backlog is worked off.
package monitor

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"drover/datapath/health"
)

const (
	// Every is how often is measured.
	Every = 10 * time.Second
	// Short peaks are none: processors count over cpuWindow, the backlog's rate over
	// drainWindow.
	cpuWindow   = time.Minute
	drainWindow = 5 * time.Minute
	maxTicks    = int(drainWindow/Every) + 1
)

// Config of a monitor.
type Config struct {
	Load    func() health.Load
	Proc    string // "" is /proc
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// tick is one measurement of what is counted up.
type tick struct {
	at      time.Time
	cpu     cpuTimes
	drained int64
	backlog int64
}

// Monitor measures again and again.
type Monitor struct {
	Config
	ticks    []tick // oldest first; of the goroutine that measures
	progress time.Time

	mu     sync.Mutex
	sample health.Sample
	report health.Report
}

// New makes a monitor; its report is that all is well until it has measured.
func New(c Config) *Monitor {
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	m := &Monitor{Config: c, sample: health.Sample{CPU: -1, Memory: -1, DiskFree: -1}, report: health.Report{Status: health.OK}}
	if c.Metrics != nil {
		m.register(c.Metrics)
	}
	return m
}

// Report gives what was found last.
func (m *Monitor) Report() health.Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.report
	r.Findings = slices.Clone(r.Findings)
	return r
}

// Run measures until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	ticker := time.NewTicker(Every)
	defer ticker.Stop()
	for {
		m.measure(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// measure takes one sample and judges it.
func (m *Monitor) measure(now time.Time) {
	load := m.Load()
	s := health.Sample{Time: now.UTC(), SpoolUsed: load.SpoolUsed, SpoolLimit: load.SpoolLimit,
		BacklogBytes: load.BacklogBytes, Agents: load.Agents}
	s.DiskFree = diskFree(load.SpoolDir)
	s.Memory = memory(m.Proc)
	t := tick{at: now, cpu: readCPU(m.Proc), drained: load.DrainedBytes, backlog: load.BacklogBytes}
	if n := len(m.ticks); n == 0 || m.ticks[n-1].drained != t.drained || t.backlog == 0 {
		m.progress = now
	}
	m.ticks = append(m.ticks, t)
	if len(m.ticks) > maxTicks {
		m.ticks = m.ticks[1:]
	}
	s.CPU = m.busy()
	s.DrainRate, s.Stalled = m.drainRate(), now.Sub(m.progress)
	m.tell(s, health.Evaluate(s))
}

// busy is the percentage of the processors over cpuWindow; negative when not known.
func (m *Monitor) busy() float64 {
	last := m.ticks[len(m.ticks)-1]
	for _, t := range m.ticks {
		if last.at.Sub(t.at) <= cpuWindow {
			return last.cpu.since(t.cpu)
		}
	}
	return -1
}

// drainRate is what was applied per second of the time in which there was a backlog.
func (m *Monitor) drainRate() float64 {
	var drained, seconds float64
	for i := 1; i < len(m.ticks); i++ {
		before, after := m.ticks[i-1], m.ticks[i]
		if before.backlog == 0 && after.drained == before.drained {
			continue
		}
		drained += float64(after.drained - before.drained)
		seconds += after.at.Sub(before.at).Seconds()
	}
	if seconds <= 0 {
		return 0
	}
	return drained / seconds
}

// tell keeps the report, and logs what is new in it and what is over.
func (m *Monitor) tell(s health.Sample, r health.Report) {
	m.mu.Lock()
	before := m.report
	m.sample, m.report = s, r
	m.mu.Unlock()
	for _, f := range r.Findings {
		if !slices.ContainsFunc(before.Findings, func(b health.Finding) bool { return b.Code == f.Code && b.Status == f.Status }) {
			m.Logger.Warn("the server is not well", "code", f.Code, "component", f.Component, "status", string(f.Status), "cause", f.Cause, "action", f.Action)
		}
	}
	for _, b := range before.Findings {
		if !slices.ContainsFunc(r.Findings, func(f health.Finding) bool { return f.Code == b.Code }) {
			m.Logger.Info("the server is well again", "code", b.Code, "component", b.Component)
		}
	}
}

func (m *Monitor) register(r prometheus.Registerer) {
	gauge := func(name, help string, value func(health.Sample, health.Report) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "drover_health_" + name, Help: help}, func() float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return value(m.sample, m.report)
		}))
	}
	gauge("status", "0 OK, 1 Warning, 2 Critical.", func(_ health.Sample, r health.Report) float64 { return level(r.Status) })
	gauge("cpu_percent", "Processors in use over a minute; -1 not known.", func(s health.Sample, _ health.Report) float64 { return s.CPU })
	gauge("memory_percent", "Memory in use; -1 not known.", func(s health.Sample, _ health.Report) float64 { return s.Memory })
	gauge("spool_room_bytes", "What the spool can still take, by its limit and its file system.", func(s health.Sample, _ health.Report) float64 { n, _ := s.Room(); return float64(n) })
	gauge("backlog_bytes", "Change sets that are acknowledged and not applied.", func(s health.Sample, _ health.Report) float64 { return float64(s.BacklogBytes) })
	gauge("backlog_drain_seconds", "How long the backlog takes to be applied.", func(s health.Sample, _ health.Report) float64 { return s.Drain().Seconds() })
	gauge("agent_silence_seconds", "How long the agent that is silent for longest was not heard.", func(s health.Sample, _ health.Report) float64 {
		var most time.Duration
		for _, a := range s.Agents {
			most = max(most, a.Silent)
		}
		return most.Seconds()
	})
}

func level(s health.Status) float64 {
	switch s {
	case health.Critical:
		return 2
	case health.Warning:
		return 1
	}
	return 0
}
