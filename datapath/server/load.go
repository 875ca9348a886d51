package server

import (
	"time"

	"drover/datapath/health"
)

// Load tells what the server has to do and how far it is, for its health.
func (s *Server) Load() health.Load {
	used, limit := s.spool.Usage()
	l := health.Load{SpoolDir: s.StateDir, SpoolUsed: used, SpoolLimit: limit, DrainedBytes: s.drained.Load()}
	s.mu.Lock()
	machines := s.list()
	s.mu.Unlock()
	for _, m := range machines {
		m.mu.Lock()
		p, seen, name := m.pipe, m.seen, m.rec.Grant.Spec.Name
		// Its agent is not expected where another owner, a resync or nobody is waited for.
		expected := m.rec.Broken == nil && m.fenced == nil && !m.rec.Held
		m.mu.Unlock()
		if expected {
			l.Agents = append(l.Agents, health.Agent{Name: name, Silent: time.Since(seen)})
		}
		if p != nil {
			_, bytes := p.Backlog()
			l.BacklogBytes += bytes
		}
	}
	return l
}
