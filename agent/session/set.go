package session

import (
	"errors"
	"fmt"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

const (
	// maxOutstanding bounds the sets that wait to be stored; the next one waits.
	maxOutstanding = wire.MaxOutstanding / 2
	// maxUnacked bounds the sets that are sent and not acknowledged at all: while one
	// is made durable the next is on the line.
	maxUnacked = 2
	// maxSetExtents bounds one set's extents, and with them what is kept of it.
	maxSetExtents = 256 << 10
)

// errTooMuch: a set whose number was promised would grow beyond its bound.
var errTooMuch = errors.New("too many changes for one change set")

// openSet is the change set that is being sent.
type openSet struct {
	seq     ident.Seq
	kind    changeset.Kind
	extents int64
	plain   int64
	sent    *sentSet
}

// begin begins the change set that follows.
func (x *session) begin() error {
	err := x.await(func() bool { return len(x.pending) < maxUnacked && len(x.sent)+len(x.pending) < maxOutstanding })
	if err != nil {
		return err
	}
	kind := changeset.Delta
	if x.welcome.Mode != wire.ModeDelta {
		kind = changeset.Base
	}
	x.mu.Lock()
	x.keep()
	last := x.position
	if n := len(x.pending); n > 0 { // it follows the one before, whose digest is not known yet
		last = ident.Position{Seq: x.pending[n-1].position.Seq}
	}
	x.mu.Unlock()
	set := &openSet{seq: last.Seq + 1, kind: kind, sent: &sentSet{ranges: make([][]checksum.Range, len(x.welcome.Disks))}}
	if err := x.pack.tell(&wire.Begin{Seq: set.seq, Prev: last.Digest, Kind: kind}); err != nil {
		return err
	}
	x.set = set
	return nil
}

// await waits until ready, called with mu held, says so; acknowledgements change it.
func (x *session) await(ready func() bool) error {
	for {
		x.mu.Lock()
		ok := ready()
		x.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-x.room:
		case <-x.ctx.Done():
			return x.ctx.Err()
		}
	}
}

// emit sends one extent, in a new change set when the open one is full.
func (x *session) emit(e changeset.Extent) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	if x.copied != nil && !x.copied[e.Disk].Covers(e.Offset, e.Length) {
		x.beside = fmt.Sprintf("%s at %d", x.open[e.Disk].Path(), e.Offset)
	}
	if x.set != nil && x.full(e) {
		if x.fixed {
			return errTooMuch
		}
		if err := x.endPart(); err != nil {
			return err
		}
	}
	if x.set == nil {
		if err := x.begin(); err != nil {
			return err
		}
	}
	// Noted before it is sent: what may have arrived is read again if the set breaks off.
	x.note(e)
	failpoint.Hit(failpoint.AgentRead)
	return x.pack.add(e, x.Tracker.Hashed())
}

// full reports whether the extent belongs into the next set.
func (x *session) full(e changeset.Extent) bool {
	limit := x.welcome.BaseSetBytes
	if x.fixed {
		limit = changeset.MaxBytes
	}
	return x.set.extents >= maxSetExtents || !e.Zero && x.set.plain+e.Length > limit
}

func (x *session) note(e changeset.Extent) {
	s := x.set
	s.extents++
	x.emitted++
	if !e.Zero {
		s.plain += e.Length
		x.bytes += e.Length
		x.Metrics.sent(e.Length)
	}
	ranges := s.sent.ranges[e.Disk]
	if n := len(ranges); n > 0 && ranges[n-1].End() == e.Offset {
		ranges[n-1].Length += e.Length
		return
	}
	s.sent.ranges[e.Disk] = append(ranges, checksum.Range{Offset: e.Offset, Length: e.Length})
}

// endPart ends a set that is no recovery point, and does not wait for the server.
func (x *session) endPart() error {
	return x.send(changeset.Cut{SourceTime: now(), Consistency: ident.NoConsistency})
}

// end ends the open set and waits until the server has it and all before it.
func (x *session) end(c changeset.Cut) error {
	if err := x.send(c); err != nil {
		return err
	}
	return x.await(func() bool {
		all := len(x.pending) == 0
		if all {
			x.keep()
		}
		return all
	})
}

// send ends the open set.
func (x *session) send(c changeset.Cut) error {
	c.ClockOffset = x.line.clockOffset()
	set := x.set
	x.set = nil
	set.sent.position.Seq = set.seq
	x.mu.Lock()
	x.pending = append(x.pending, set.sent)
	x.mu.Unlock()
	return x.pack.tell(&wire.End{Seq: set.seq, Extents: set.extents, Cut: c, Answers: x.obeyed})
}

// breakOff puts an unfinished set back: it does not exist.
func (x *session) breakOff() {
	if x.set != nil {
		x.putBack(x.set.sent)
		x.set = nil
	}
}
