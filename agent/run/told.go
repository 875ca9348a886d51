package run

import (
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"drover/agent/controlapi"
	"drover/agent/enrol"
	"drover/agent/status"
)

// maxCounters bounds what the status shows of the metrics.
const maxCounters = 100

// told is what the parts of the agent tell of themselves, for the status.
type told struct {
	mu            sync.Mutex
	id            *enrol.Identity
	state, detail string // while there is no valid certificate
	control       status.Control
	disks         []controlapi.InventoryDisk
	preflight     []controlapi.Finding
	problems      map[string]string // by part
	asked         uint64            // the assignment's version
	reached       controlapi.Reached
}

func (t *told) identity(id *enrol.Identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.id = id
}

// waiting says what the agent waits for before it can work; empty: nothing.
func (t *told) waiting(state, detail string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.detail = state, detail
}

func (t *told) waits() (state, detail string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state, t.detail
}

// heard notes an answer of the configuration server, which was asked at begin.
func (t *told) heard(begin, server time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.control.LastAnswer, t.control.Error = now, ""
	t.control.Offset = server.Sub(begin.Add(now.Sub(begin) / 2)).Seconds()
}

func (t *told) unheard(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.control.Error = err.Error()
}

func (t *told) saw(disks []controlapi.InventoryDisk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disks = disks
}

func (t *told) found(f []controlapi.Finding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.preflight = f
}

func (t *told) findings() []controlapi.Finding {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.preflight
}

// reaches notes whether the server is reached that the assignment of the version names.
func (t *told) reaches(version uint64, r controlapi.Reached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked, t.reached = version, r
}

// reach gives what was noted for the assignment; nil: nothing yet.
func (t *told) reach(as controlapi.Assignment) *controlapi.Reached {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.reached; as.Reach && t.asked == as.Version {
		return &r
	}
	return nil
}

// problem notes what is wrong with a part of the agent; empty: nothing any more.
func (t *told) problem(part, what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.problems == nil {
		t.problems = map[string]string{}
	}
	t.problems[part] = what
	if what == "" {
		delete(t.problems, part)
	}
}

// status is what is told of the agent as a whole.
func (a *Agent) status() status.Status {
	hb := a.heartbeat()
	st := status.Status{
		Version: a.version, Instance: a.config.Instance, PID: os.Getpid(), Started: a.started.UTC(), Time: time.Now().UTC(),
		State: hb.State, Detail: hb.Detail, Tracker: a.trackerText(),
		Limits: status.Limits{Memory: a.memory.Load(), ReadRate: int64(a.config.Limits.ReadRate), Paused: a.pacer.Paused().Seconds(), Pressure: a.pacer.Pressure()},
	}
	if as, _ := a.assigned.get(); as.Action != "" {
		st.Assignment = &as
	}
	if a.source.Load() != nil {
		acknowledged, stored := a.source.Load().Positions()
		st.Position, st.Stored = acknowledged.String(), stored.String()
	}
	if c, ok := a.cuts.LastCut(); ok {
		st.LastCut = &status.Cut{Time: c.SourceTime.Add(c.ClockOffset), Consistency: c.Consistency, Freeze: c.Freeze.Seconds(), Complete: c.Complete, Final: c.Final, Note: c.Note}
	}
	st.Counters = counters(a.metrics)
	t := &a.told
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Control, st.Control.Server, st.Disks, st.Preflight = t.control, a.config.ConfigServer, t.disks, t.preflight
	if t.id != nil {
		st.Identity = status.Identity{Name: t.id.Peer.String(), Machine: t.id.Peer.Name, Expires: t.id.Expires().UTC(), RenewAt: t.id.RenewAt().UTC(), Kept: t.id.Kept()}
	}
	st.Problems = t.list()
	return st
}

// trouble is what the configuration server is told of the agent's problems.
func (t *told) trouble() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.list(), "; ")
}

// list gives the problems, worst first. The caller holds mu.
func (t *told) list() []string {
	var out []string
	if t.detail != "" {
		out = append(out, t.detail)
	}
	if t.id != nil && !t.id.Kept() {
		out = append(out, "the new certificate is in use, but the state directory does not take it; make room there: a restart after the old one has expired needs a new token")
	}
	for _, part := range []string{partDisks, partSocket, partPriority} {
		if what := t.problems[part]; what != "" {
			out = append(out, what)
		}
	}
	return out
}

// Parts of the agent that tell of problems.
const (
	partSocket   = "socket"
	partPriority = "priority"
	partDisks    = "disks"
)

// counters are the agent's own metrics that count, added up over their labels' values.
func counters(from prometheus.Gatherer) map[string]float64 {
	families, err := from.Gather()
	if err != nil {
		return nil // the rest of the status is worth more than an error
	}
	out := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "drover_agent_") || f.GetType().String() != "COUNTER" {
			continue
		}
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "drover_agent_")
			for _, l := range m.GetLabel() {
				name += "," + l.GetName() + "=" + l.GetValue()
			}
			if len(out) < maxCounters {
				out[name] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}
