package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// round brings the machines of a consistency group to one moment, step by step: each
// step is ordered when all have answered the one before, or nobody is waited for any
// more when one has missed it.
//
// A machine takes its cut for one of the group only if it is frozen still when it hears
// that all are. Whoever heard that was frozen at the moment it was said; so what they
// have is of one moment, whatever the line and the clocks do.
type round struct {
	id      ident.Round
	group   string
	scripts bool
	ran     bool // scripts
	seats   []*seat

	mu      sync.Mutex
	changed chan struct{} // of size 1
}

// seat is a machine's place in a round.
type seat struct {
	m       *machine
	name    string
	session *session // nil: it takes no part
	// Of the round's mu:
	at     wire.Step // the newest that it has reached
	missed string    // why it is not where it should be
}

// enterRound seats the machines, and says of those that cannot take part why.
func enterRound(group string, members []*machine) *round {
	r := &round{id: newRoundID(), group: group, changed: make(chan struct{}, 1)}
	for _, m := range members {
		s := &seat{m: m}
		r.seats = append(r.seats, s)
		m.mu.Lock()
		s.name, s.missed = m.rec.Grant.Spec.Name, m.absent()
		if len(members) > changeset.MaxMembers {
			s.missed = fmt.Sprintf("the group has %d machines on this server, at most %d can be frozen together", len(members), changeset.MaxMembers)
		}
		if s.session = m.session; s.session != nil {
			s.session.round = r
		}
		m.mu.Unlock()
	}
	return r
}

// run makes the round, and gives the machines that missed it.
func (r *round) run(ctx context.Context, c cadence) []stream.Missing {
	defer r.leave()
	steps := []wire.Barrier{{Step: wire.StepReady, Within: c.ready}, {Step: wire.StepFreeze, Within: c.frozen}}
	if r.scripts {
		steps = append([]wire.Barrier{{Step: wire.StepSend, Within: c.ready}}, steps...)
	}
	missing := r.missing()
	for _, b := range steps {
		if len(missing) > 0 || ctx.Err() != nil {
			break
		}
		r.ran = r.scripts && b.Step == wire.StepReady || r.ran
		r.order(b)
		missing = r.await(ctx, b)
	}
	r.scripts = r.ran // else nobody has run them: a round soon will
	if len(missing) > 0 || ctx.Err() != nil {
		r.order(wire.Barrier{Step: wire.StepAlone})
		return missing
	}
	r.together()
	return nil
}

// absent says why the machine cannot take part; mu is held.
func (m *machine) absent() string {
	switch {
	case m.session == nil:
		return "its agent is not connected"
	case m.rec.Broken != nil:
		return "it is marked for resync"
	case m.rec.Held:
		return "it stays frozen after its final recovery point"
	case m.writer == nil || !m.writer.State().Complete:
		return "its base copy is not complete"
	case m.late:
		return "it did not answer in an earlier round, and has sent nothing since"
	}
	return ""
}

// leave ends the round for its sessions.
func (r *round) leave() {
	for _, s := range r.seats {
		s.m.mu.Lock()
		if s.session != nil && s.session.round == r {
			s.session.round = nil
		}
		s.m.mu.Unlock()
	}
}

// order tells all the next step. An agent that has left the round does not mind.
func (r *round) order(b wire.Barrier) {
	b.Round, b.Scripts = r.id, r.scripts
	for _, s := range r.seats {
		s.tell(b, nil)
	}
}

// tell has the session's sender send the step; the cut that follows may be of m.
func (s *seat) tell(b wire.Barrier, m *moment) {
	if s.session == nil {
		return
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.session.barrier = b
	if m != nil { // until then the one before stays: its cut may be on the line still
		s.session.together = m
	}
	s.session.wake()
}

// together tells all that all are frozen.
func (r *round) together() {
	m := &moment{at: time.Now(), have: map[ident.MachineID]bool{}}
	m.Name, m.Round, m.Members, m.Scripts = r.group, r.id, len(r.seats), r.scripts
	r.seats[0].m.s.groups.expect(m)
	for _, s := range r.seats {
		s.tell(wire.Barrier{Round: r.id, Step: wire.StepTogether, Scripts: r.scripts}, m)
	}
}

// await waits until all have reached the step, one has missed it, or the time is up. It
// gives those that have missed it.
func (r *round) await(ctx context.Context, b wire.Barrier) []stream.Missing {
	timer := time.NewTimer(b.Within)
	defer timer.Stop()
	for {
		if missing := r.missing(); len(missing) > 0 || r.all(b.Step) {
			return missing
		}
		select {
		case <-r.changed:
		case <-timer.C:
			r.giveUp(b)
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *round) all(step wire.Step) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.seats {
		if s.at < step {
			return false
		}
	}
	return true
}

func (r *round) missing() (out []stream.Missing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.seats {
		if s.missed != "" {
			out = append(out, stream.Missing{Machine: s.m.id, Name: s.name, Why: s.missed})
		}
	}
	return out
}

var stepNames = map[wire.Step]string{wire.StepSend: "did not send what had changed", wire.StepReady: "was not ready to freeze", wire.StepFreeze: "was not frozen"}

// giveUp notes all that have not reached the step. They are not waited for again
// before they have done something.
func (r *round) giveUp(b wire.Barrier) {
	r.mu.Lock()
	var late []*machine
	for _, s := range r.seats {
		if s.at < b.Step {
			s.missed = fmt.Sprintf("it %s within %s", stepNames[b.Step], b.Within)
			late = append(late, s.m)
		}
	}
	r.mu.Unlock()
	for _, m := range late {
		m.mu.Lock()
		m.late = true
		m.mu.Unlock()
	}
}

// reached notes what a machine has answered, or that it will not.
func (r *round) reached(id ident.MachineID, step wire.Step, missed string) {
	r.mu.Lock()
	for _, s := range r.seats {
		switch {
		case s.m.id != id || s.missed != "":
		case missed != "":
			s.missed = missed
		default:
			s.at = max(s.at, step)
		}
	}
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// reached takes the agent's answer to a step.
func (x *session) reached(a *wire.Reached) {
	x.m.mu.Lock()
	r := x.round
	x.m.late = false
	x.m.mu.Unlock()
	if r != nil && r.id == a.Round {
		r.reached(x.m.id, a.Step, a.Missed)
	}
}

// grouped says of which moment a cut is: the agent names the round, and what that was is
// known here. A point of several machines has the same time for all of them.
func (x *session) grouped(c changeset.Cut) changeset.Cut {
	x.m.mu.Lock()
	m, named := x.together, c.Group
	x.m.late = false
	x.m.mu.Unlock()
	c.Group = nil
	if named == nil || m == nil || named.Round != m.Round || c.Consistency < ident.FileSystemConsistent {
		return c
	}
	x.m.mu.Lock()
	x.together = nil // one cut is
	x.m.mu.Unlock()
	g := m.Group
	c.Group, c.ClockOffset = &g, m.at.Sub(c.SourceTime)
	return c
}
