package main

import (
	"log/slog"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/choose"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/trace"
)

// track is the tracker that an agent takes by itself.
func track() tracker.Tracker {
	return choose.New(slog.New(slog.DiscardHandler),
		choose.Candidate{Name: ebpf.Name, Open: func() (changes.Source, error) { return ebpf.Open("") }},
		choose.Candidate{Name: trace.Name, Open: func() (changes.Source, error) { return trace.Open(trace.Options{}) }})
}
