package session

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"drover/datapath/changeset"
)

// Metrics of a source. A nil Metrics counts nothing.
type Metrics struct {
	bytes  prometheus.Counter
	passes prometheus.Counter
	whole  *prometheus.CounterVec
	cuts   *prometheus.CounterVec
	freeze prometheus.Histogram
	last   atomic.Pointer[changeset.Cut]
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		bytes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "drover_agent_data_bytes_total", Help: "Bytes of blocks sent."}),
		passes: prometheus.NewCounter(prometheus.CounterOpts{Name: "drover_agent_passes_total", Help: "Passes over all disks."}),
		whole:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "drover_agent_comparisons_total", Help: "Comparisons of all disks with the replica, by their cause."}, []string{"cause"}),
		cuts:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "drover_agent_cuts_total", Help: "Cuts, by consistency."}, []string{"consistency"}),
		freeze: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "drover_agent_freeze_seconds", Help: "How long the machine was frozen for a cut.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 5, 10},
		}),
	}
	r.MustRegister(m.bytes, m.passes, m.whole, m.cuts, m.freeze)
	return m
}

func (m *Metrics) sent(n int64) {
	if m != nil {
		m.bytes.Add(float64(n))
	}
}

func (m *Metrics) pass() {
	if m != nil {
		m.passes.Inc()
	}
}

func (m *Metrics) compared(cause string) {
	if m != nil {
		m.whole.WithLabelValues(cause).Inc()
	}
}

func (m *Metrics) cut(c changeset.Cut) {
	if m == nil {
		return
	}
	m.last.Store(&c)
	m.cuts.WithLabelValues(c.Consistency.String()).Inc()
	if c.Freeze > 0 {
		m.freeze.Observe(c.Freeze.Seconds())
	}
}
