package session

import (
	"fmt"
	"time"

	"drover/agent/quiesce"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

const (
	// groupSlack is how much longer than the server's deadline the next step of a round
	// is waited for, for what the line takes.
	groupSlack = time.Second
	// groupRefresh is how often what changes meanwhile is sent on, unless it takes long.
	groupRefresh = 200 * time.Millisecond
	// frozenPart, in quarters, is the part of the limit of a freeze that may pass until
	// the others are frozen too: there must be time to thaw.
	frozenPart = 3

	notHeld = "there is nothing on it to be frozen"
)

// joined is what the session does in its machine's consistency group.
type joined struct {
	round   *wire.Barrier // the newest step; nil: the cut is made alone
	last    ident.Round   // that was taken up
	scripts bool          // the cut under way is to be application-consistent
}

// barrier takes a step that the server orders; the loop, or the cut under way, goes on
// by it. A newer one counts instead of one that nobody has seen.
func (x *session) barrier(b wire.Barrier) {
	if !x.looping.Load() {
		x.reached(b, "its disks are being compared with the replica, or copied")
		return
	}
	select {
	case <-x.barriers:
	default:
	}
	x.barriers <- b // there is room: nobody else puts any
}

// reached answers a step; missed is why it was not reached.
func (x *session) reached(b wire.Barrier, missed string) {
	if b.Step > wire.StepFreeze {
		return // nobody waits for an answer
	}
	if err := x.conn.Send(&wire.Reached{Round: b.Round, Step: b.Step, Missed: note(missed)}); err != nil {
		x.cancel(err)
	}
}

// join begins the machine's part in a round, and reports whether a cut is to be made.
func (x *session) join(b wire.Barrier) bool {
	first := b.Step == wire.StepSend || b.Step == wire.StepReady
	switch {
	case b.Round == x.group.last, !first && b.Step != wire.StepAlone:
		return false // what is left of a round that this machine has left
	case x.frozen != nil || x.final:
		x.reached(b, "it is frozen, or about to be, for its final recovery point")
		return false
	}
	x.group.last, x.group.scripts = b.Round, b.Scripts
	if first {
		x.group.round = &b
	}
	return true
}

// leaveGroup ends the machine's part in the round when its cut is made.
func (x *session) leaveGroup() { x.group.round, x.group.scripts = nil, false }

// miss says that the machine cannot come to the moment of the others; it goes on alone.
func (x *session) miss(why string) {
	if x.group.round != nil {
		x.reached(*x.group.round, why)
		x.group.round = nil
	}
}

// sendTogether waits until all have sent what has changed, before scripts are run: that
// can take long, and applications are not held meanwhile.
func (x *session) sendTogether() error {
	if r := x.group.round; r == nil || r.Step != wire.StepSend {
		return nil
	}
	x.reached(*x.group.round, "")
	return x.next(x.group.round.Within+groupSlack, x.refresh())
}

// freezeTogether does all that comes before the freeze, and waits until the others
// have done it too.
func (x *session) freezeTogether(hold *quiesce.Hold) error {
	if x.group.round == nil {
		return nil
	}
	if err := hold.Settle(x.ctx); err != nil {
		x.miss(err.Error())
		return nil // the freeze says so too
	}
	x.reached(*x.group.round, "")
	if err := x.next(x.group.round.Within+groupSlack, x.refresh()); err != nil {
		return err
	}
	return x.makeRoom()
}

// isFrozen tells the server; the rest is sent while the others get there.
func (x *session) isFrozen(hold *quiesce.Hold) {
	switch r := x.group.round; {
	case r == nil:
	case hold.Copies() != nil:
		x.miss("its points are read from shadow copies, which are of a moment of their own")
	case hold.Loose():
		x.miss("not all of it can be frozen: " + hold.Outcome().Note)
	default:
		x.reached(*r, "")
	}
}

// together waits until all are frozen. The group of the cut is nil when they were not,
// or not for as long as this machine was.
func (x *session) together(hold *quiesce.Hold) (*changeset.Group, error) {
	if x.group.round == nil {
		return nil, nil //nolint:nilnil // said above
	}
	id := x.group.round.Round
	until := hold.Since().Add(min(x.group.round.Within, hold.Limit()*frozenPart/4))
	if err := x.next(time.Until(until), nil); err != nil || x.group.round == nil {
		return nil, err
	}
	return &changeset.Group{Round: id}, nil
}

// next waits for the round's next step. When it does not come in time, or the round has
// failed, the machine goes on alone. meanwhile is called now and then.
func (x *session) next(limit time.Duration, meanwhile func() error) error {
	end, tick := time.NewTimer(max(limit, 0)), time.NewTicker(groupRefresh)
	defer end.Stop()
	defer tick.Stop()
	for r := x.group.round; ; {
		select {
		case b := <-x.barriers:
			switch {
			case b.Round != r.Round: // the end of this one was not seen
				x.reached(b, "it was still in the round before")
				x.group.round, x.group.last = nil, b.Round
				return nil
			case b.Step == wire.StepAlone:
				x.group.round = nil
				return nil
			case b.Step > r.Step:
				x.group.round = &b
				return nil
			}
		case <-tick.C:
			if meanwhile == nil {
				continue
			}
			if err := meanwhile(); err != nil {
				return err
			}
		case <-end.C:
			x.group.round = nil
			return nil
		case <-x.ctx.Done():
			return x.ctx.Err()
		}
	}
}

// refresh gives what sends on what changes while others are waited for, so that little
// is left for the freeze. Where a pass takes long it is left.
func (x *session) refresh() func() error {
	slow := false
	return func() error {
		if slow {
			return nil
		}
		took, err := x.approach()
		slow = took > groupRefresh/2
		if err != nil {
			return fmt.Errorf("send what changes while the group gets ready: %w", err)
		}
		return nil
	}
}
