package run

import (
	"github.com/prometheus/client_golang/prometheus"

	"drover/agent/tracker/choose"
)

// trackerMetrics are what the source of changes has counted.
type trackerMetrics struct {
	of   *choose.Tracker
	desc *prometheus.Desc
}

func newTrackerMetrics(t *choose.Tracker) trackerMetrics {
	return trackerMetrics{t, prometheus.NewDesc("drover_agent_tracker", "What the kernel's source of changes has counted, by name.", []string{"counter"}, nil)}
}

func (m trackerMetrics) Describe(to chan<- *prometheus.Desc) { to <- m.desc }

func (m trackerMetrics) Collect(to chan<- prometheus.Metric) {
	for name, n := range m.of.Counted() {
		to <- prometheus.MustNewConstMetric(m.desc, prometheus.UntypedValue, float64(n), name)
	}
}
