// Package session streams one machine's disks to the server it is assigned to.
//
//	source.go   what is kept from one session to the next
//	session.go  one session: hello, welcome, reading, the loop of cuts
//	base.go     copying and comparing
//	cut.go      making a recovery point
//	set.go      one change set on the wire, and what became of it
//	pack.go     extents become chunks: gathered, encoded, sent in order
//	verify.go   comparing source and replica beside the stream
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/quiesce"
	"drover/agent/tracker"
	"drover/agent/verify"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

// Options of a source.
type Options struct {
	Machine  ident.MachineID
	Instance string // hardware uuid
	Version  string
	Tracker  tracker.Tracker
	Hooks    *quiesce.Hooks
	// Find gives the device or image file of a disk by its backing's uuid.
	Find    func(backingUUID string) (string, error)
	Metrics *Metrics
	Logger  *slog.Logger
}

// Target is where to stream to, and what.
type Target struct {
	Epoch   ident.Epoch
	Address string // host:port
	TLS     *tls.Config
	Dial    wire.DialFunc // nil: directly
	Disks   []controlapi.Disk
	// IdleTimeout ends a session that is silent. 0: wire's.
	IdleTimeout time.Duration
}

// State is what the source is doing, one word and more, for people.
type State struct{ Word, Detail string }

// The words of a State.
const (
	StateConnecting = "connecting"
	StateComparing  = "comparing"
	StateCopying    = "copying"
	StateStreaming  = "streaming"
	StateFrozen     = "frozen"
	StateRefused    = "refused"
)

// maxHeld is how long a machine stays frozen after a final cut when nobody says
// what to do with it.
const maxHeld = 15 * time.Minute

// Source is a machine's disks and what is known of their replica. It lives through
// sessions, so that a broken line costs what was under way and nothing else.
type Source struct {
	Options
	state atomic.Pointer[State]

	open []*openDisk // in the order of the Welcome, once there was one

	mu         sync.Mutex
	known      bool // the tracker knows the replica as of position
	generation uint32
	order      []changeset.Disk
	stored     ident.Position // everything up to it is safe in the cache storage
	position   ident.Position // of the last set that was acknowledged at all
	sent       []*sentSet     // acknowledged after stored, oldest first
	pending    []*sentSet     // ended, but nobody has said whether they arrived; oldest first

	frozen *frozen

	comparison *verify.Comparison // the newest, of the one goroutine that compares
}

// frozen is the freeze that a final cut left.
type frozen struct {
	cut   quiesce.Cut
	since time.Time
}

type openDisk struct {
	*disk.Disk
	want controlapi.Disk
}

// sentSet is what a change set carried: enough to read it from the disk again.
type sentSet struct {
	position ident.Position     // until it is acknowledged, only the number
	ranges   [][]checksum.Range // by disk
}

// NewSource makes a source that knows nothing yet.
func NewSource(o Options) *Source {
	s := &Source{Options: o}
	s.show(StateConnecting, "")
	return s
}

// State gives what the source is doing.
func (s *Source) State() State { return *s.state.Load() }

func (s *Source) show(word, detail string) { s.state.Store(&State{word, detail}) }

// Close thaws the machine if need be and closes its disks.
func (s *Source) Close(ctx context.Context) error {
	return errors.Join(s.Thaw(ctx), s.closeDisks())
}

// Thaw ends the freeze that a final cut left, if there is one.
func (s *Source) Thaw(ctx context.Context) error {
	if s.frozen == nil {
		return nil
	}
	if err := s.Hooks.Thaw(ctx, s.frozen.cut); err != nil {
		return err
	}
	s.frozen = nil
	return nil
}

func (s *Source) closeDisks() error {
	var err error
	for _, d := range s.open {
		err = errors.Join(err, d.Close())
	}
	s.open = nil
	return err
}

// openDisks opens the assigned disks, unless they are open and have not changed.
func (s *Source) openDisks(want []controlapi.Disk) error {
	if len(want) == 0 || len(want) > changeset.MaxDisks {
		return fmt.Errorf("assigned are %d disks, want 1 to %d", len(want), changeset.MaxDisks)
	}
	if s.disksAre(want) {
		return nil
	}
	if err := s.closeDisks(); err != nil {
		return err
	}
	s.forgetAll()
	for _, w := range want {
		path, err := s.Find(w.BackingUUID)
		if err != nil {
			return errors.Join(err, s.closeDisks())
		}
		d, err := disk.Open(path)
		if err != nil {
			return errors.Join(err, s.closeDisks())
		}
		s.open = append(s.open, &openDisk{d, w})
	}
	return nil
}

func (s *Source) disksAre(want []controlapi.Disk) bool {
	if len(want) != len(s.open) {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(s.open, func(d *openDisk) bool { return d.want == w })
		if i < 0 {
			return false
		}
		size, err := s.open[i].CurrentSize()
		if err != nil || size != s.open[i].Size() {
			return false
		}
	}
	return true
}

// forgetAll gives up what is known of the replica: the next session compares.
func (s *Source) forgetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.stored, s.position, s.sent, s.pending = false, ident.Position{}, ident.Position{}, nil, nil
}

// hello describes the machine and what it knows.
func (s *Source) hello(epoch ident.Epoch) *wire.Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &wire.Hello{Machine: s.Machine, Epoch: epoch, AgentVersion: s.Version, Instance: s.Instance, SourceTime: time.Now(), Known: s.stored}
	for _, d := range s.open {
		h.Disks = append(h.Disks, changeset.Disk{ID: d.want.ID, Size: d.Size()})
	}
	for _, set := range s.sent {
		h.Outstanding = append(h.Outstanding, set.position)
	}
	return h
}

// arrange puts the disks into the server's order and gives them to the tracker.
func (s *Source) arrange(order []changeset.Disk) error {
	sorted := make([]*openDisk, 0, len(order))
	disks := make([]tracker.Disk, 0, len(order))
	for _, o := range order {
		i := slices.IndexFunc(s.open, func(d *openDisk) bool { return d.want.ID == o.ID })
		if i < 0 || s.open[i].Size() != o.Size {
			return fmt.Errorf("the server has disk %s of %d bytes, which is not one of ours", o.ID, o.Size)
		}
		sorted, disks = append(sorted, s.open[i]), append(disks, s.open[i].Disk)
	}
	if len(sorted) != len(s.open) {
		return fmt.Errorf("the server has %d disks of %d", len(sorted), len(s.open))
	}
	s.open = sorted
	s.Tracker.Attach(disks)
	return nil
}

// resume reports whether the tracker knows the replica as it is at the server. Sets
// that did not arrive are put back, to be read again.
func (s *Source) resume(w *wire.Welcome) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known || s.generation != w.Generation || !slices.Equal(s.order, w.Disks) {
		return false
	}
	var keep int
	switch i := slices.IndexFunc(s.sent, func(x *sentSet) bool { return x.position == w.Position }); {
	case i >= 0:
		keep = i + 1
	case w.Position == s.stored:
		keep = 0
	default:
		return false // among others: a set of ours arrived whose digest we do not know
	}
	for _, set := range slices.Concat(s.sent[keep:], s.pending) {
		s.putBack(set)
	}
	s.sent, s.pending, s.position = s.sent[:keep], nil, w.Position
	return true
}

// putBack makes the tracker take the set's ranges as not sent.
func (s *Source) putBack(set *sentSet) {
	for i, ranges := range set.ranges {
		for _, r := range ranges {
			s.Tracker.Forget(i, r)
		}
	}
}

// learned notes that the tracker knows the replica as of the welcome's position.
func (s *Source) learned(w *wire.Welcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.generation, s.order = true, w.Generation, slices.Clone(w.Disks)
	s.stored, s.position, s.sent, s.pending = w.Position, w.Position, nil, nil
}

// acknowledged notes a set that the server has.
func (s *Source) acknowledged(epoch ident.Epoch, p ident.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 || s.pending[0].position.Seq != p.Seq || p.Epoch != epoch {
		return fmt.Errorf("session: the server acknowledged %s, which was not sent", p)
	}
	s.pending[0].position = p
	s.sent, s.pending, s.position = append(s.sent, s.pending[0]), s.pending[1:], p
	return nil
}

// safe drops what is in the cache storage.
func (s *Source) safe(p ident.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.sent) > 0 && s.sent[0].position.Seq <= p.Seq {
		s.stored = s.sent[0].position
		s.sent = s.sent[1:]
	}
}
