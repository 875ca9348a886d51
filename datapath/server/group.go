package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/stream"
)

const (
	// groupLook is how often it is looked whether a round is due.
	groupLook = 100 * time.Millisecond
	// groupSlack is added to what a round may take before a machine makes its cut without it.
	groupSlack = time.Second
	// groupScriptsAgain is when a round with scripts that came to nothing is tried again.
	groupScriptsAgain = 15 * time.Minute
	// maxMoments bounds the rounds of a group whose cuts are not all applied yet; the
	// oldest is no more watched then.
	maxMoments = 64
)

// groups are the consistency groups that have machines here.
type groups struct {
	mu     sync.Mutex
	byName map[string]*group
}

// group is one of them. Of the groups' mu, but for run's goroutine, of which there is
// one at a time.
type group struct {
	name    string
	members []*machine // as of the last look, by name
	running bool
	next    time.Time // when a round is due
	tried   time.Time // scripts were run in a round last
	scripts time.Time // the last one that succeeded
	known   bool      // scripts is
	moments []*moment // not applied by all yet, oldest first
	last    *moment   // the newest that all have applied
	missed  []stream.Missing
	since   time.Time // when rounds began to be missed
}

// moment is when all machines of a round were frozen.
type moment struct {
	changeset.Group
	at   time.Time
	have map[ident.MachineID]bool // by machine: it has applied its cut
}

// watchGroups has the rounds of all groups made until ctx ends.
func (s *Server) watchGroups(ctx context.Context) {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	ticker := time.NewTicker(groupLook)
	defer ticker.Stop()
	for {
		for _, g := range s.dueGroups(time.Now()) {
			rounds.Go(func() { s.runGroup(ctx, g) })
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// dueGroups looks which groups there are, and takes those whose round is due.
func (s *Server) dueGroups(now time.Time) (due []*group) {
	present := map[string][]*machine{}
	s.mu.Lock()
	machines := s.list()
	s.mu.Unlock()
	for _, m := range machines {
		if g := m.grant().Group; g != nil {
			present[g.Name] = append(present[g.Name], m)
		}
	}
	gs := &s.groups
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.byName == nil {
		gs.byName = map[string]*group{}
	}
	for name, g := range gs.byName {
		if len(present[name]) == 0 && !g.running {
			delete(gs.byName, name)
			s.metrics.common.DeleteLabelValues(name)
		}
	}
	for name, members := range present {
		g := gs.byName[name]
		if g == nil {
			g = &group{name: name}
			gs.byName[name] = g
		}
		if g.running || now.Before(g.next) {
			continue
		}
		slices.SortFunc(members, func(a, b *machine) int { return strings.Compare(a.id.String(), b.id.String()) })
		g.members, g.running = members, true
		due = append(due, g)
	}
	return due
}

func (m *machine) grant() stream.Grant {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.Grant
}

// groupWait is how much later than its cadence a machine makes a cut without a round.
func groupWait(g stream.Grant) time.Duration {
	if g.Group == nil {
		return 0
	}
	return g.Group.ReadyWithin() + g.Group.FrozenWithin() + groupSlack
}

// cadence is the shortest of the members' settings.
type cadence struct{ cut, app, ready, frozen time.Duration }

func cadenceOf(members []*machine) cadence {
	var c cadence
	shorter := func(have *time.Duration, d time.Duration) {
		if d > 0 && (*have == 0 || d < *have) {
			*have = d
		}
	}
	for _, m := range members {
		g := m.grant()
		shorter(&c.cut, g.Cut)
		shorter(&c.app, g.App)
		if g.Group != nil { // else it has just left
			shorter(&c.ready, g.Group.ReadyWithin())
			shorter(&c.frozen, g.Group.FrozenWithin())
		}
	}
	return c
}

// runGroup makes one round and notes what came of it.
func (s *Server) runGroup(ctx context.Context, g *group) {
	begin, c := time.Now(), cadenceOf(g.members)
	r := enterRound(g.name, g.members)
	if len(r.missing()) == 0 { // else it comes to nothing, and scripts wait for one that may not
		r.scripts = g.scriptsDue(begin, c.app)
	}
	missed := r.run(ctx, c)
	gs := &s.groups
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g.running, g.next = false, begin.Add(c.cut)
	if ctx.Err() != nil {
		return
	}
	if r.ran {
		g.tried = begin
		if len(missed) == 0 {
			g.scripts = begin
		}
	}
	s.noteMissed(g, missed)
}

// scriptsDue reports whether the round that begins is to be with scripts.
func (g *group) scriptsDue(now time.Time, every time.Duration) bool {
	if every == 0 {
		return false
	}
	if !g.known {
		g.scripts, g.known = lastScripts(g), true
	}
	return now.Sub(g.scripts) >= every && now.Sub(g.tried) >= min(every, groupScriptsAgain)
}

// lastScripts gives when a round with scripts succeeded last, as the replicas have it.
func lastScripts(g *group) (last time.Time) {
	for _, m := range g.members {
		m.mu.Lock()
		w := m.writer
		m.mu.Unlock()
		if w == nil {
			continue
		}
		for _, p := range w.State().Points {
			if p.Group != nil && p.Group.Name == g.name && p.Group.Scripts && p.Time.After(last) {
				last = p.Time
			}
		}
	}
	return last
}

// noteMissed keeps who has missed the round, and tells when that has changed; the
// groups' mu is held.
func (s *Server) noteMissed(g *group, missed []stream.Missing) {
	outcome := "together"
	if len(missed) > 0 {
		outcome = "alone"
	}
	s.metrics.rounds.WithLabelValues(g.name, outcome).Inc()
	for _, m := range missed {
		s.metrics.missed.WithLabelValues(g.name, m.Machine.String()).Inc()
	}
	before := g.missed
	g.missed = missed
	switch {
	case len(missed) == 0 && len(before) > 0:
		s.Logger.Info("the machines of the consistency group have points in common again", "group", g.name)
		g.since = time.Time{}
	case len(missed) > 0 && !slices.EqualFunc(before, missed, func(a, b stream.Missing) bool { return a.Machine == b.Machine }):
		s.Logger.Warn("no point in common of the consistency group", "group", g.name, "missed", strings.Join(texts(missed), "; "))
		if len(before) == 0 {
			g.since = time.Now().UTC()
		}
	}
}

func texts(missed []stream.Missing) (out []string) {
	for i, m := range missed {
		if i == stream.MaxMissing {
			return append(out, fmt.Sprintf("and %d more", len(missed)-i))
		}
		out = append(out, m.String())
	}
	return out
}

// expect notes a moment whose cuts will come.
func (gs *groups) expect(m *moment) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g := gs.byName[m.Name]; g != nil {
		g.moments = append(g.moments, m)
		if len(g.moments) > maxMoments {
			g.moments = g.moments[1:]
		}
	}
}

// appliedGroup notes that a machine has its point of a moment.
func (s *Server) appliedGroup(id ident.MachineID, have changeset.Group) {
	gs := &s.groups
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byName[have.Name]
	if g == nil {
		return
	}
	i := slices.IndexFunc(g.moments, func(m *moment) bool { return m.Round == have.Round })
	if i < 0 {
		return
	}
	m := g.moments[i]
	m.have[id] = true
	if len(m.have) == m.Members { // those before it will not be the newest any more
		g.last, g.moments = m, g.moments[i+1:]
		s.metrics.common.WithLabelValues(g.name).Set(float64(m.at.UnixMilli()) / 1000)
	}
}

// status gives how a machine's group does.
func (gs *groups) status(id ident.MachineID, of *stream.Group) *stream.GroupStatus {
	if of == nil {
		return nil
	}
	st := &stream.GroupStatus{Name: of.Name}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.byName[of.Name]
	if g == nil { // it has just joined
		return st
	}
	st.Members, st.Since = len(g.members), g.since
	n := min(len(g.missed), stream.MaxMissing)
	st.Missed, st.Others = slices.Clone(g.missed[:n]), len(g.missed)-n
	for _, m := range g.missed {
		if m.Machine == id {
			st.Why = m.Why
		}
	}
	if g.last != nil {
		st.Round, st.Time = g.last.Round, g.last.at.UTC()
	}
	return st
}

func newRoundID() ident.Round {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return ident.Round(n)
		}
	}
}
