//go:build linux

package trace

import (
	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// sysfs is where the kernel tells about devices.
const sysfs = "/sys"

// device is a disk that is followed.
type device struct {
	changes.Device
	seq     string // the kernel's number of this very disk, where it has one: numbers of devices are used again
	ranges  bool   // a discard request may be of several ranges, of which its events name one
	changed changes.Bitmap
	flights flights
	trimmed trimmed
	memory  map[string][]byte
}

// newDevice refuses what this source cannot follow.
func newDevice(sys string, d changes.Device) (*device, error) {
	if err := changes.Check(sys, d); err != nil {
		return nil, err
	}
	dir := changes.Directory(sys, d)
	segments, err := changes.Attribute(dir, "queue/max_discard_segments")
	if err != nil {
		return nil, err
	}
	seq, err := changes.Attribute(dir, "diskseq")
	if err != nil {
		return nil, err
	}
	words := changes.Words(d.Size)
	out := &device{Device: d, seq: seq, changed: make(changes.Bitmap, words), flights: newFlights(), memory: map[string][]byte{}}
	if out.ranges = segments != "" && segments != "0" && segments != "1"; out.ranges {
		out.trimmed.young, out.trimmed.old = make(changes.Bitmap, words), make(changes.Bitmap, words)
	}
	return out, nil
}

// same reports whether it is the disk that was followed before.
func (d *device) same(o *device) bool {
	return d.Major == o.Major && d.Minor == o.Minor && d.Size == o.Size && d.seq == o.seq
}

// mark notes that the sectors may have changed.
func (d *device) mark(s span) { setBlocks(d.changed, d.Size, s) }

// setBlocks sets the blocks that the sectors touch. What is beyond the disk's size is
// of a disk that has grown, which others notice.
func setBlocks(into changes.Bitmap, size int64, s span) {
	const perBlock = checksum.BlockSize / sectorBytes
	all := uint64(checksum.Blocks(size))
	first, end := s.first/perBlock, s.end/perBlock
	if s.end%perBlock > 0 {
		end++
	}
	if first = min(first, all); first < min(end, all) {
		into.Set(int64(first), int64(min(end, all)))
	}
}

// drain gives what changed since the last time, and what is under way.
func (d *device) drain(now int64, into changes.Bitmap) {
	for i, w := range d.changed {
		if w != 0 {
			into[i] |= w
			d.changed[i] = 0
		}
	}
	mark := func(s span) { setBlocks(into, d.Size, s) }
	d.flights.report(now, mark)
	d.trimmed.report(now, into)
}

// trimmed are the blocks that were discarded not long ago, on a device that takes
// several ranges in one request: the events of such a request name the first range only.
// So its discards are noticed before they become requests, and nothing tells when they
// are done. They are under way for one to two times the longest time that they may be.
type trimmed struct {
	young, old changes.Bitmap // nil on other devices
	since      int64          // when young was empty
}

func (t *trimmed) report(now int64, into changes.Bitmap) {
	for i := range t.young {
		into[i] |= t.young[i] | t.old[i]
	}
	if now-t.since > int64(changes.PendingLimit) {
		t.young, t.old, t.since = t.old, t.young, now
		clear(t.young)
	}
}
