package session

import (
	"slices"
	"strings"

	"drover/agent/disk"
	"drover/agent/freespace"
	"drover/agent/quiesce"
	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/scan"
)

// free is what is known of the disks' free blocks; package freespace says by which rule.
type free struct {
	taker freespace.Taker
	now   freespace.View // what the tracker reads by
	cut   freespace.View // what the newest cut was read by
	any   bool           // there was a cut
	said  string         // what was told of it last
}

// trackedDisks are the disks as a tracker takes them.
func (s *Source) trackedDisks() []tracker.Disk {
	out := make([]tracker.Disk, len(s.open))
	for i, d := range s.open {
		if out[i] = d.Disk; s.SkipFree {
			out[i] = freespace.NewDisk(d.Disk, i, &s.free.now)
		}
	}
	return out
}

// takeFree makes the tracker read by a map of what is free now, if free blocks are to be
// left out and it reads whole disks.
func (s *Source) takeFree() {
	s.free.now.Use(nil)
	if !s.SkipFree {
		return
	}
	if s.Tracker.Name() != scan.Name {
		s.sayFree("free blocks are read and sent: the tracker reads what changed, not whole disks", "tracker", s.Tracker.Name())
		return
	}
	disks := make([]*disk.Disk, len(s.open))
	for i, d := range s.open {
		disks[i] = d.Disk
	}
	m, notes, err := s.free.taker.Take(disks)
	switch {
	case err != nil:
		s.sayFree("free blocks are read and sent", "error", err.Error())
		return
	case len(notes) > 0:
		s.sayFree("free blocks of some file systems are read and sent", "because", strings.Join(notes, "; "))
	}
	s.free.now.Use(m)
}

// sayFree tells what is new of it.
func (s *Source) sayFree(what, key, why string) {
	if said := what + why; s.free.said != said {
		s.free.said = said
		s.Logger.Info(what, key, why)
	}
}

// beginFree takes the map that a copy or a comparison of all blocks goes by.
func (s *Source) beginFree() {
	s.takeFree()
	s.free.cut.Use(s.free.now.Map())
	s.free.any = false
}

// approachFree takes one for what is sent before the freeze, unless the newest point was
// made without: what was free then is in the replica, and would be sent again and again.
func (s *Source) approachFree() {
	if s.free.any && !skips(s.free.cut.Map()) {
		s.free.now.Use(nil)
		return
	}
	s.takeFree()
}

// frozenFree takes the map that the cut goes by. It is right only where the agent itself
// has frozen all that can be written to.
func (s *Source) frozenFree(hold *quiesce.Hold) {
	if hold.Frozen() && !hold.Loose() {
		s.takeFree()
		return
	}
	s.free.now.Use(nil)
}

// cutFree notes by which map a point was made; comparisons go by it.
func (s *Source) cutFree() {
	s.free.cut.Use(s.free.now.Map())
	s.free.any = true
}

// whole reports whether the tracker reads all of the disks.
func (s *Source) whole() bool { return !skips(s.free.now.Map()) }

func skips(m freespace.Map) bool {
	return slices.ContainsFunc(m, func(b changes.Bitmap) bool { return b != nil })
}
