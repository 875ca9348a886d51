// Package session streams one machine's disks to the server it is assigned to.
//
//	source.go   what is kept from one session to the next
//	session.go  one session: hello, welcome, reading, the loop of cuts
//	base.go     copying and comparing
//	cut.go      making a recovery point
//	group.go    making it at the same moment as the other machines of a consistency group
//	free.go     leaving out what file systems have free
//	copies.go   reading it from shadow copies
//	set.go      one change set on the wire, and what became of it
//	pack.go     extents become chunks: gathered, encoded, sent in order
//	verify.go   comparing source and replica beside the stream
package session

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	Find func(backingUUID string) (string, error)
	// SkipFree: blocks that file systems have free are neither read nor sent.
	SkipFree bool
	// OpenCopy opens a shadow copy's device; nil: as a disk.
	OpenCopy func(device string) (*disk.Disk, error)
	Metrics  *Metrics
	Logger   *slog.Logger
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
	known      bool   // the tracker knows the replica as of position
	unknown    string // why it does not
	generation uint32
	order      []changeset.Disk
	stored     ident.Position // everything up to it is safe in the cache storage
	position   ident.Position // of the last set that was acknowledged at all
	sent       []*sentSet     // acknowledged after stored, oldest first
	pending    []*sentSet     // ended, but nobody has said whether they arrived; oldest first

	free    free
	frozen  *frozen
	scripts time.Time // when they are due again; zero: at the next cut

	comparison *verify.Comparison // the newest, of the one goroutine that compares
}

// frozen is the freeze of a cut that is being made, or that a final cut left.
type frozen struct {
	hold  *quiesce.Hold
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
	if o.OpenCopy == nil {
		o.OpenCopy = disk.Open
	}
	s := &Source{Options: o, unknown: causeStart}
	s.show(StateConnecting, "")
	return s
}

// State gives what the source is doing.
func (s *Source) State() State { return *s.state.Load() }

func (s *Source) show(word, detail string) { s.state.Store(&State{word, detail}) }

// Close thaws the machine if need be, and closes its disks and the tracker.
func (s *Source) Close(ctx context.Context) error {
	err := errors.Join(s.Thaw(ctx), s.closeDisks())
	if c, ok := s.Tracker.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Thaw ends the freeze that a final cut left, if there is one.
func (s *Source) Thaw(ctx context.Context) error {
	if s.frozen == nil {
		return nil
	}
	if _, err := s.frozen.hold.Thaw(ctx); err != nil {
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
	if len(s.open) > 0 {
		s.forgetAll(causeDisks)
	}
	if err := s.closeDisks(); err != nil {
		return err
	}
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
		if s.open[i].Check() != nil {
			return false
		}
	}
	return true
}

// Causes of comparing all blocks with the replica, for the log and the metric.
const (
	causeStart    = "start"    // nothing is known since the machine or the agent started
	causeDisks    = "disks"    // other disks, or other sizes
	causeGap      = "gap"      // writes may have been missed
	causePosition = "position" // the replica is not as this agent left it
	causeBase     = "base"     // a resync, or a base copy that goes on
)

// causes are the same for people.
var causes = map[string]string{
	causeStart:    "what was written before tracking began is not known",
	causeDisks:    "the disks are not the ones from before",
	causeGap:      "writes may have been missed",
	causePosition: "the replica is not as this agent left it",
	causeBase:     "the server asks for it: a resync, or a base copy that was broken off",
}

// forgetAll gives up what is known of the replica: the next session compares.
func (s *Source) forgetAll(cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known {
		s.unknown = cause
	}
	s.free.cut.Use(nil)
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
	for _, o := range order {
		i := slices.IndexFunc(s.open, func(d *openDisk) bool { return d.want.ID == o.ID })
		if i < 0 || s.open[i].Size() != o.Size {
			return fmt.Errorf("the server has disk %s of %d bytes, which is not one of ours", o.ID, o.Size)
		}
		if slices.Contains(sorted, s.open[i]) {
			return fmt.Errorf("the server has disk %s twice", o.ID)
		}
		sorted = append(sorted, s.open[i])
	}
	if len(sorted) != len(s.open) {
		return fmt.Errorf("the server has %d disks of %d", len(sorted), len(s.open))
	}
	s.open = sorted
	kept, err := s.Tracker.Attach(s.trackedDisks())
	if err != nil {
		return err
	}
	if !kept {
		s.forgetAll(causeStart)
	}
	s.restore()
	return nil
}

// resume reports whether the tracker knows the replica as it is at the server. Sets
// that did not arrive are put back, to be read again.
func (s *Source) resume(w *wire.Welcome) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.known:
		return false
	case s.generation != w.Generation || !slices.Equal(s.order, w.Disks):
		s.unknown = causePosition
		return false
	}
	var keep int
	switch i := slices.IndexFunc(s.sent, func(x *sentSet) bool { return x.position == w.Position }); {
	case i >= 0:
		keep = i + 1
	case w.Position == s.stored:
		keep = 0
	default: // among others: a set of ours arrived whose digest we do not know
		s.unknown = causePosition
		return false
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

// standing is what a tracker that outlives this process keeps for the next one: where the
// replica stood. What was on its way then is emitted again.
type standing struct {
	Machine    ident.MachineID  `json:"machine"`
	Generation uint32           `json:"generation"`
	Order      []changeset.Disk `json:"order"`
	Stored     ident.Position   `json:"stored"`
	Sent       []ident.Position `json:"sent,omitempty"` // acknowledged after it, oldest first
}

// keep notes where the replica stands. mu is held.
func (s *Source) keep() {
	if !s.known {
		return
	}
	n := standing{s.Machine, s.generation, s.order, s.stored, nil}
	for _, set := range s.sent {
		n.Sent = append(n.Sent, set.position)
	}
	text, err := json.Marshal(n)
	if err == nil {
		s.Tracker.Keep(text, len(s.sent)+len(s.pending) == 0)
	}
}

// restore takes up what an earlier process has known.
func (s *Source) restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n standing
	text := s.Tracker.Note()
	if s.known || text == nil || json.Unmarshal(text, &n) != nil || n.Machine != s.Machine || len(n.Order) != len(s.open) {
		return
	}
	s.known, s.generation, s.order, s.stored, s.position = true, n.Generation, n.Order, n.Stored, n.Stored
	for _, p := range n.Sent {
		s.sent = append(s.sent, &sentSet{position: p, ranges: make([][]checksum.Range, len(n.Order))})
	}
	s.Logger.Info("changes were tracked while no agent ran", "tracker", s.Tracker.Name(), "stored", n.Stored.String())
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
