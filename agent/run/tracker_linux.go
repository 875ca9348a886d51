package run

import (
	"log/slog"

	"drover/agent/config"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/choose"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/trace"
)

// newTracker makes the tracker that the configuration asks for.
func newTracker(c *config.Config, log *slog.Logger) *choose.Tracker {
	var candidates []choose.Candidate
	for _, one := range []choose.Candidate{
		{Name: ebpf.Name, Open: func() (changes.Source, error) { return openEBPF(c.Pins, log) }},
		{Name: trace.Name, Open: func() (changes.Source, error) { return trace.Open(trace.Options{}) }},
	} {
		if c.Tracker == config.TrackerAuto || c.Tracker == one.Name {
			candidates = append(candidates, one)
		}
	}
	return choose.New(log, candidates...)
}

func openEBPF(pins string, log *slog.Logger) (changes.Source, error) {
	if err := ebpf.Available(); err != nil {
		return nil, err
	}
	s, err := ebpf.Open(pins)
	if err != nil {
		return nil, err
	}
	if why := s.Unpinned(); why != "" {
		log.Warn("tracking ends with the agent: after its restart all disks are compared with the replica", "because", why)
	}
	return s, nil
}
