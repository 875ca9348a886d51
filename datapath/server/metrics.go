package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"drover/datapath/stream"
	"drover/datapath/waterfall"
)

// metrics of the data path; docs/OPERATIONS names what to watch.
type metrics struct {
	sessions prometheus.Gauge
	refused  *prometheus.CounterVec
	received prometheus.Counter
	sets     *prometheus.CounterVec
	broken   prometheus.Counter
	dropped  *prometheus.CounterVec
	verdicts *prometheus.CounterVec
	differed prometheus.Counter
	rounds   *prometheus.CounterVec
	missed   *prometheus.CounterVec
	common   *prometheus.GaugeVec
	register prometheus.Registerer // nil: nobody reads them
}

func newMetrics(r prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "drover_stream_sessions", Help: "Agents that stream now."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_stream_refused_total", Help: "Sessions refused or ended, by code."}, []string{"code"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "drover_stream_data_bytes_total", Help: "Bytes of blocks received from agents."}),
		sets: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_stream_change_sets_total", Help: "Change sets that are spooled, stored, applied."}, []string{"level"}),
		broken: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "drover_stream_broken_total", Help: "Times a machine was marked for resync."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_stream_dropped_total", Help: "Connections dropped before their hello was accepted, by why."}, []string{"why"}),
		verdicts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_verify_total", Help: "Comparisons of a source with its replica, by verdict."}, []string{"verdict"}),
		differed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "drover_verify_differed_bytes_total", Help: "Bytes that comparisons found to differ though nothing was under way."}),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_group_rounds_total", Help: "Rounds of consistency groups: together, all were frozen at one moment; alone, somebody missed it."}, []string{"group", "outcome"}),
		missed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "drover_group_missed_total", Help: "Rounds of its consistency group that a machine missed."}, []string{"group", "machine"}),
		common: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "drover_group_point_timestamp_seconds", Help: "Time of the newest recovery point that all machines of a consistency group have in common."}, []string{"group"}),
		register: r,
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.sessions, m.refused, m.received, m.sets, m.broken, m.dropped, m.verdicts, m.differed, m.rounds, m.missed, m.common,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "drover_spool_used_bytes", Help: "Bytes in the spool."},
			func() float64 { used, _ := s.spool.Usage(); return float64(used) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "drover_spool_limit_bytes", Help: "Bytes the spool may take."},
			func() float64 { _, limit := s.spool.Usage(); return float64(limit) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "drover_throttle_limit_bytes_per_second", Help: "What all agents together may send now; 0 without a limit."},
			func() float64 { return float64(s.line.Limit()) }),
		waits{s},
	)
	return m
}

// waits collects where the time of every disk's chunks goes.
type waits struct{ s *Server }

var stageSeconds = prometheus.NewDesc("drover_stream_stage_seconds_total",
	"Time that chunks waited for each stage from the source to the replica, summed over the chunks.", []string{"machine", "disk", "stage"}, nil)

// Describe implements prometheus.Collector.
func (w waits) Describe(out chan<- *prometheus.Desc) { out <- stageSeconds }

// Collect implements prometheus.Collector.
func (w waits) Collect(out chan<- prometheus.Metric) {
	w.s.mu.Lock()
	machines := w.s.list()
	w.s.mu.Unlock()
	for _, m := range machines {
		for _, d := range m.status().Disks {
			for stage, spent := range d.Times.Spent {
				out <- prometheus.MustNewConstMetric(stageSeconds, prometheus.CounterValue, spent.Seconds(),
					m.id.String(), d.ID.String(), waterfall.Stage(stage).String())
			}
		}
	}
}

// watchGate shows how many connections wait at the gate of a server that serves.
func (m *metrics) watchGate(g *gate) {
	if m.register == nil {
		return
	}
	m.register.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "drover_stream_strangers",
		Help: "Connections whose hello was not accepted yet."}, func() float64 { return float64(g.waiting()) }))
}

// compared counts a comparison.
func (m *metrics) compared(r stream.Record) {
	m.verdicts.WithLabelValues(string(r.Verdict)).Inc()
	m.differed.Add(float64(r.Differed()))
}
