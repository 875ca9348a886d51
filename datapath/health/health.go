// Package health judges how a process server or master target does, from what was
// measured: processors, memory, room in the spool, how soon the backlog is worked
// off, and whether agents are heard. It is pure; package monitor measures.
package health

import (
	"fmt"
	"slices"
	"time"
)

// Status is how something does.
type Status string

// From good to bad.
const (
	OK       Status = "OK"
	Warning  Status = "Warning"
	Critical Status = "Critical"
)

// Codes of findings; see docs/errors.md.
const (
	CodeCPU          = "DRV-5001"
	CodeMemory       = "DRV-5002"
	CodeSpool        = "DRV-5003"
	CodeBacklog      = "DRV-5004"
	CodeAgentSilent  = "DRV-5005"
	CodeServerSilent = "DRV-5006"
)

// Thresholds. A value beyond Warning is a warning, beyond Critical is critical.
const (
	BusyWarning, BusyCritical   = 80.0, 95.0 // percent of processors, of memory
	FreeWarning, FreeCritical   = 30.0, 25.0 // percent of the spool's limit; less is worse
	DrainWarning, DrainCritical = 30 * time.Minute, 45 * time.Minute
	SilenceCritical             = 15 * time.Minute
)

// Bounds of a report, which travels with every heartbeat.
const (
	MaxFindings = 8
	maxNamed    = 3 // agents that are named in one cause
)

// Load is what a server's data path says of itself.
type Load struct {
	SpoolDir              string
	SpoolUsed, SpoolLimit int64
	BacklogBytes          int64 // acknowledged and not applied
	DrainedBytes          int64 // applied since the start
	Agents                []Agent
}

// Agent is a machine that should stream here.
type Agent struct {
	Name   string
	Silent time.Duration // since it was heard
}

// Sample is what was measured. A negative CPU or Memory is not known.
type Sample struct {
	Time                  time.Time
	CPU, Memory           float64 // percent in use
	SpoolUsed, SpoolLimit int64
	DiskFree              int64 // of the spool's file system; negative: not known
	BacklogBytes          int64
	// DrainRate is bytes applied per second of the time there was a backlog; while it
	// is 0, Stalled says for how long.
	DrainRate float64
	Stalled   time.Duration
	Agents    []Agent
}

// Finding is something that is not well.
type Finding struct {
	Code      string `json:"code"`
	Component string `json:"component"`
	Status    Status `json:"status"`
	Cause     string `json:"cause"`
	Action    string `json:"action"` // what to do
}

// Report is what was found; the worst of it is its status.
type Report struct {
	Status   Status    `json:"status"`
	Time     time.Time `json:"time"`
	Findings []Finding `json:"findings,omitempty"`
}

// Add adds a finding, if it is one, and makes the status the worst there is.
func (r *Report) Add(f Finding) {
	if r.Status == "" {
		r.Status = OK
	}
	if f.Status == OK || len(r.Findings) >= MaxFindings {
		return
	}
	r.Findings = append(r.Findings, f)
	if r.Status == OK || f.Status == Critical {
		r.Status = f.Status
	}
}

// Evaluate judges a sample.
func Evaluate(s Sample) Report {
	r := Report{Time: s.Time}
	r.Add(Finding{CodeCPU, "processors", above(s.CPU, BusyWarning, BusyCritical),
		fmt.Sprintf("the processors are %.0f %% busy", s.CPU),
		"Move machines to another process server, add processors, or let the agents compress (policy: compression, at: agent)."})
	r.Add(Finding{CodeMemory, "memory", above(s.Memory, BusyWarning, BusyCritical),
		fmt.Sprintf("%.0f %% of the memory is in use", s.Memory),
		"Look what else runs on the host; move machines to another process server, or add memory."})
	r.Add(spool(s))
	r.Add(backlog(s))
	r.Add(agents(s.Agents))
	return r
}

func above(v, warning, critical float64) Status {
	switch {
	case v > critical:
		return Critical
	case v > warning:
		return Warning
	}
	return OK
}

// Room is how many more bytes the spool can take, and the percentage of its limit
// that is. Others may have filled its file system.
func (s Sample) Room() (bytes int64, percent float64) {
	bytes = s.SpoolLimit - s.SpoolUsed
	if s.DiskFree >= 0 {
		bytes = min(bytes, s.DiskFree)
	}
	if s.SpoolLimit <= 0 {
		return bytes, 100
	}
	return bytes, 100 * float64(bytes) / float64(s.SpoolLimit)
}

func spool(s Sample) Finding {
	room, percent := s.Room()
	status := above(-percent, -FreeWarning, -FreeCritical)
	cause := fmt.Sprintf("the spool has room for %s, %.0f %% of its limit of %s", size(room), percent, size(s.SpoolLimit))
	action := "Look why change sets are not carried on: the cache storage, the replica's disk. A larger spool (spool: limit) bridges longer."
	if room < s.SpoolLimit-s.SpoolUsed {
		cause += "; its file system is full of other things"
		action = "Make room in the spool's file system, or give the spool one of its own."
	}
	return Finding{CodeSpool, "spool", status, cause, action}
}

// Drain is how long the backlog takes at the rate it is worked off. While nothing at
// all is applied it is at least as long as that lasts.
func (s Sample) Drain() time.Duration {
	switch {
	case s.BacklogBytes <= 0:
		return 0
	case s.DrainRate <= 0:
		return s.Stalled
	}
	return time.Duration(min(float64(s.BacklogBytes)/s.DrainRate, maxDrain.Seconds()) * float64(time.Second))
}

// maxDrain is as long as any; a larger one could not be told.
const maxDrain = 1000 * time.Hour

func backlog(s Sample) Finding {
	d := s.Drain()
	cause := fmt.Sprintf("the backlog of %s takes %s to be applied, at %s/s", size(s.BacklogBytes), d.Round(time.Minute), size(int64(s.DrainRate)))
	if s.DrainRate <= 0 {
		cause = fmt.Sprintf("nothing of the backlog of %s was applied for %s", size(s.BacklogBytes), d.Round(time.Minute))
	}
	return Finding{CodeBacklog, "backlog", above(d.Minutes(), DrainWarning.Minutes(), DrainCritical.Minutes()), cause,
		"Look at the disks under the replica and at the cache storage; move machines to another process server."}
}

// agents names those that were silent for longest.
func agents(all []Agent) Finding {
	silent := slices.DeleteFunc(slices.Clone(all), func(a Agent) bool { return a.Silent <= SilenceCritical })
	if len(silent) == 0 {
		return Finding{Status: OK}
	}
	slices.SortFunc(silent, func(a, b Agent) int { return int((b.Silent - a.Silent).Round(time.Second)) })
	cause := fmt.Sprintf("%d of %d agents were not heard for longer than %s:", len(silent), len(all), SilenceCritical)
	for i, a := range silent {
		if i == maxNamed {
			cause += " ..."
			break
		}
		cause += fmt.Sprintf(" %s (%s)", a.Name, a.Silent.Round(time.Minute))
	}
	return Finding{CodeAgentSilent, "agents", Critical, cause,
		"Check that the machines and their agents run, and that they reach this server."}
}

// Silent is what is found of a server that itself was not heard for so long.
func Silent(server string, silent time.Duration) Finding {
	f := Finding{CodeServerSilent, "heartbeat", OK,
		fmt.Sprintf("%s was not heard for %s", server, silent.Round(time.Second)),
		"Check that the server runs and that it reaches the configuration server."}
	if silent > SilenceCritical {
		f.Status = Critical
	}
	return f
}

func size(n int64) string {
	const unit = 1024
	v, names := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for v >= unit && len(names) > 1 {
		v, names = v/unit, names[1:]
	}
	return fmt.Sprintf("%.4g %s", v, names[0])
}
