//go:build linux

package trace

import (
	"fmt"
	"os"
	"path/filepath"
)

// take does what an event says.
func (s *Source) take(r record) {
	if r.kind == bioQueue {
		s.takeDiscard(r)
		return
	}
	d := s.byNumber[r.dev]
	if d == nil {
		return // followed no more
	}
	if r.foreign() {
		s.seen["commands"]++
		s.ring.gap.add(0, "a program sent %s a command of its own with data (as SG_IO or NVMe passthrough do), which may have written anywhere", d.Path)
		return
	}
	if !r.changes() {
		return
	}
	at := sectors(r)
	d.mark(at)
	s.seen[r.kind.counter()]++
	if r.kind == issue {
		if !d.flights.add(at, s.at) {
			s.ring.gap.add(0, "more than %d writes to %s are under way", maxFlights, d.Path)
		}
		return
	}
	if !d.flights.done(at) {
		s.seen["unmatched"]++ // it was issued before we began to follow the device
	}
}

// sectors are those of an event; too many for a number end where numbers do.
func sectors(r record) span {
	s := span{r.sector, r.sector + r.sectors}
	if s.end < s.first {
		s.end = ^uint64(0)
	}
	return s
}

// takeDiscard does what the event of a discard says that is no request yet.
func (s *Source) takeDiscard(r record) {
	if r.op != opDiscard {
		return
	}
	whole, err := s.wholeDisk(r.dev)
	if err != nil {
		s.ring.gap.add(0, "a discard on a device %d:%d that is not known: %v", r.dev>>minorBits, r.dev&(1<<minorBits-1), err)
		return
	}
	d := s.byNumber[whole]
	if d == nil || !d.ranges {
		return
	}
	at := sectors(r)
	s.seen[r.kind.counter()]++
	d.mark(at)
	setBlocks(d.trimmed.young, d.Size, at)
}

// wholeDisk gives the number of the disk that a partition is on, or that it is itself.
func (s *Source) wholeDisk(dev uint32) (uint32, error) {
	if s.byNumber[dev] != nil {
		return dev, nil
	}
	dir := filepath.Join(s.sys, "dev/block", fmt.Sprintf("%d:%d", dev>>minorBits, dev&(1<<minorBits-1)))
	whole := dev
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		text, err := os.ReadFile(dir + "/../dev") // dir is a link to where the partition is, in its disk
		if err != nil {
			return 0, err
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
			return 0, fmt.Errorf("%q is no device number", text)
		}
		whole = number(major, minor)
	} else if _, err := os.Stat(dir); err != nil {
		return 0, err
	}
	return whole, nil
}
