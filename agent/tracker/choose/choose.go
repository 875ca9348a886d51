// Package choose is the tracker that takes the best way of finding changes that works
// on the machine, and says which it is and why no better one.
package choose

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/live"
	"drover/agent/tracker/scan"
)

// Candidate is a source of changes that may work here.
type Candidate struct {
	Name string
	// Open opens it; the error says in a sentence why it does not work here.
	Open func() (changes.Source, error)
}

// Tracker implements [tracker.Tracker]. Before Attach it may only be attached.
type Tracker struct {
	tracker.Tracker
	candidates []Candidate // best first
	log        *slog.Logger
	why        atomic.Pointer[string]
	looked     time.Time // when the counters were
	counted    atomic.Pointer[map[string]uint64]
}

var _ tracker.Tracker = (*Tracker)(nil)

// New makes a tracker that takes the first of the candidates that works, else scan.
func New(log *slog.Logger, candidates ...Candidate) *Tracker {
	t := &Tracker{candidates: candidates, log: log}
	t.say("none yet: no disks are assigned")
	return t
}

// Why is the tracker that is in use, and why no better one, for people. It may be
// called by any goroutine.
func (t *Tracker) Why() string { return *t.why.Load() }

func (t *Tracker) say(why string) { t.why.Store(&why) }

// Attach chooses, unless what was chosen before does it.
func (t *Tracker) Attach(disks []tracker.Disk) (kept bool, err error) {
	if t.Tracker != nil {
		kept, err = t.Tracker.Attach(disks)
		if err == nil {
			return kept, nil
		}
		t.log.Warn("the tracker cannot follow these disks; another one is chosen", "tracker", t.Name(), "error", err.Error())
		if err := t.Close(); err != nil {
			t.log.Warn("the tracker was not closed well", "error", err.Error())
		}
	}
	var not []string
	candidates := t.candidates
	if err := live.Followable(disks); err != nil && len(candidates) > 0 {
		not, candidates = []string{err.Error()}, nil
	}
	for _, c := range candidates {
		kept, err := t.try(c, disks)
		if err == nil {
			t.chosen(c.Name, not)
			return kept, nil
		}
		not = append(not, fmt.Sprintf("%s: %v", c.Name, err))
	}
	s := scan.New()
	t.Tracker = s
	t.chosen(scan.Name+", which reads the disks for every recovery point", not)
	return s.Attach(disks)
}

func (t *Tracker) try(c Candidate, disks []tracker.Disk) (kept bool, err error) {
	source, err := c.Open()
	if err != nil {
		return false, err
	}
	l := live.New(source)
	if kept, err = l.Attach(disks); err != nil {
		return false, errors.Join(err, l.Close())
	}
	t.Tracker = l
	return kept, nil
}

func (t *Tracker) chosen(what string, not []string) {
	if len(not) == 0 {
		t.say(what)
		t.log.Info("changes are tracked", "tracker", what)
		return
	}
	why := strings.Join(not, "; ")
	t.say(what + " (" + why + ")")
	t.log.Warn("changes are not tracked in the best way", "tracker", what, "because", why)
}

// countEvery is how old what Counted gives may be.
const countEvery = 10 * time.Second

// Keep is the inner tracker's.
func (t *Tracker) Keep(note []byte, safe bool) {
	t.Tracker.Keep(note, safe)
	l, ok := t.Tracker.(*live.Tracker)
	if !ok || time.Since(t.looked) < countEvery {
		return
	}
	t.looked = time.Now()
	if n, err := l.Counters(); err == nil { // an error comes again with the next pass
		t.counted.Store(&n)
	}
}

// Counted gives what the source in use has counted, as of a few seconds ago; nothing
// with scan. It may be called by any goroutine.
func (t *Tracker) Counted() map[string]uint64 {
	if n := t.counted.Load(); n != nil {
		return *n
	}
	return nil
}

// Close closes the source in use, if there is one.
func (t *Tracker) Close() error {
	c, ok := t.Tracker.(io.Closer)
	t.Tracker, t.looked = nil, time.Time{}
	t.counted.Store(nil)
	if !ok {
		return nil
	}
	return c.Close()
}
