package session

import (
	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// Positions gives the position of the last set that the server has, and of the last one
// that is safe in the cache storage.
func (s *Source) Positions() (acknowledged, stored ident.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.position, s.stored
}

// LastCut gives the last cut that was made or tried; false before the first.
func (m *Metrics) LastCut() (changeset.Cut, bool) {
	if m == nil || m.last.Load() == nil {
		return changeset.Cut{}, false
	}
	return *m.last.Load(), true
}
