package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"drover/agent/pace"
	"drover/agent/quiesce"
	"drover/datapath/changeset"
	"drover/datapath/ident"
)

const (
	// maxPasses bounds how often a disk is read for one cut before it is frozen, or when
	// it is not, or when passes must agree though it is; agreePasses when there have been
	// passes before.
	maxPasses   = 5
	agreePasses = 2
	maxNote     = 200 // bytes
	// soon and smallRest are when the rest needs no further round.
	soon      = 20 * time.Millisecond
	smallRest = 256 << 10 // bytes
	// scriptsAgain is when scripts that failed are run again, unless they are due before.
	scriptsAgain = 15 * time.Minute
)

func now() time.Time { return time.Now().UTC() }

// cut makes a recovery point: what changed is sent, the last of it while the
// machine is frozen. quiet is false when no consistent moment was found; then
// the changes are sent, but no point is made.
func (x *session) cut(complete bool) (quiet bool, err error) {
	if x.frozen != nil {
		return true, nil // nothing changes until it is released
	}
	defer x.leaveGroup()
	c, err := x.take()
	if err != nil {
		return false, err
	}
	if x.set == nil {
		if err := x.begin(); err != nil {
			return false, err
		}
	}
	quiet = c.Consistency != ident.NoConsistency
	if quiet {
		x.cutFree()
	}
	c.Complete, c.Final = complete, x.final && quiet
	if err := x.end(c); err != nil {
		return quiet, err
	}
	x.Metrics.cut(c)
	if quiet {
		x.asked = false
	}
	if c.Final {
		x.final = false
		x.Logger.Info("the final recovery point is made", "seq", x.position.Seq, "frozen", x.frozen != nil)
	}
	x.showState()
	if !quiet {
		x.show(StateStreaming, "no recovery point: "+c.Note)
	}
	return quiet, nil
}

// take sends what changed up to a moment: most of it while the machine runs, the rest
// while it is frozen, if there is anything to freeze it with.
func (x *session) take() (changeset.Cut, error) {
	if !x.Hooks.CanHold(x.describe()) {
		x.miss(notHeld)
		return x.runningCut("", maxPasses)
	}
	rest, err := x.approach()
	if err == nil {
		err = x.sendTogether()
	}
	if err == nil {
		err = x.makeRoom()
	}
	if err != nil {
		return changeset.Cut{}, err
	}
	hold, err := x.Hooks.Begin(x.ctx, x.describe())
	switch {
	case err != nil:
		return x.notFrozen(err)
	case hold == nil:
		x.miss(notHeld)
		return x.runningCut("", maxPasses)
	}
	if hold.Scripted() { // they may have written much
		if rest, err = x.approach(); err == nil {
			err = x.makeRoom()
		}
		if err != nil {
			return changeset.Cut{}, x.letGo(hold, err)
		}
	}
	if rest > hold.Limit() {
		err := fmt.Errorf("the last pass over the disks took %s, longer than the machine may stay frozen (%s)", rest.Round(time.Millisecond), hold.Limit())
		return x.notFrozen(x.letGo(hold, err))
	}
	if err := x.freezeTogether(hold); err != nil {
		return changeset.Cut{}, x.letGo(hold, err)
	}
	if err := hold.Freeze(x.ctx, x.set.seq); err != nil {
		return x.notFrozen(err)
	}
	x.frozen = &frozen{hold, now()}
	return x.frozenCut(hold)
}

// describe says what the cut that follows is for.
func (x *session) describe() quiesce.Cut {
	at := x.scripts
	if x.welcome.GroupWait > 0 { // the group's rounds have them first
		at = at.Add(x.welcome.GroupWait + x.welcome.CutInterval)
	}
	due := x.welcome.AppInterval > 0 && !time.Now().Before(at)
	c := quiesce.Cut{Machine: x.Machine, Epoch: x.epoch, Final: x.final, Scripts: x.final || x.asked || due || x.group.scripts}
	if x.set != nil {
		c.Seq = x.set.seq
	}
	for _, d := range x.open {
		c.Disks = append(c.Disks, d.Path())
	}
	return c
}

// letGo ends a hold that came to nothing.
func (x *session) letGo(hold *quiesce.Hold, err error) error {
	_, e := hold.Thaw(x.ctx)
	return errors.Join(err, e)
}

// notFrozen makes the cut as if there was nothing to freeze, if it can be made so.
func (x *session) notFrozen(err error) (changeset.Cut, error) {
	if x.ctx.Err() != nil {
		return changeset.Cut{}, x.ctx.Err()
	}
	x.miss(err.Error())
	x.Logger.Warn("the machine could not be frozen", "error", err.Error())
	return x.runningCut(err.Error(), agreePasses)
}

// makeRoom makes room in the open set for what is sent while the machine is frozen.
func (x *session) makeRoom() error {
	if x.set != nil && x.set.plain > x.welcome.BaseSetBytes/2 {
		if err := x.endPart(); err != nil {
			return err
		}
	}
	if x.set == nil {
		return x.begin()
	}
	return nil
}

// approach sends the changes of the running machine in rounds until little is left, or
// rounds do not help any more, and gives how long the last one took: about as long as
// sending the rest will. On a slow or throttled line a pass takes long, and what
// changes meanwhile would have to go with the machine frozen.
func (x *session) approach() (last time.Duration, err error) {
	x.approachFree()
	ctx, hurried := x.ctx, false
	rounds := maxPasses
	if x.Hooks.Copier != nil {
		rounds = 1 // nothing stands still while shadow copies are read
	}
	for range rounds {
		begin, emitted := time.Now(), x.bytes
		if err := x.pass(ctx); err != nil {
			return 0, err
		}
		if err := x.pack.drain(); err != nil {
			return 0, err
		}
		if _, err := x.line.settle(x.ctx, x.conn); err != nil {
			return 0, err
		}
		before := last
		last = time.Since(begin)
		worse := before > 0 && last > before*3/4
		small := x.bytes-emitted <= smallRest
		if last < soon || last < settled && (worse || small) || small && hurried {
			break
		}
		ctx, hurried = pace.Hurry(x.ctx), true // as while it is frozen
	}
	return last, nil
}

// frozenCut sends the rest and lets the machine go on, unless the cut is final.
func (x *session) frozenCut(hold *quiesce.Hold) (changeset.Cut, error) {
	c := changeset.Cut{SourceTime: now()}
	send, copies := x.sendFrozen, hold.Copies()
	if copies != nil {
		c.SourceTime = hold.CopiedAt().UTC()
		send = func(hold *quiesce.Hold) (why, err error) { return x.sendCopies(hold, copies) }
	}
	x.isFrozen(hold)
	why, err := send(hold)
	if err == nil && why == nil {
		c.Group, err = x.together(hold)
	}
	if err == nil && why == nil && x.final && copies == nil {
		if why = hold.Keep(maxHeld); why == nil {
			x.outcome(&c, hold, hold.Outcome())
			return c, nil // it stays frozen
		}
	}
	o, e := hold.Thaw(x.ctx)
	x.frozen = nil // after an error the marker stays: the next start tries again
	if e != nil {
		x.Logger.Error("the program after the cut failed", "error", e.Error())
	}
	if why != nil && o.Consistency != ident.NoConsistency {
		o.Consistency, o.Note = ident.NoConsistency, why.Error()
	}
	if err == nil && o.Consistency == ident.NoConsistency {
		x.Logger.Warn("no recovery point this time", "error", o.Note)
	}
	x.outcome(&c, hold, o)
	if c.Consistency == ident.NoConsistency {
		c.Group = nil // it was not frozen all the time
	}
	return c, err
}

// outcome notes what holding the machine was good for.
func (x *session) outcome(c *changeset.Cut, hold *quiesce.Hold, o quiesce.Outcome) {
	c.Consistency, c.Note, c.Freeze = o.Consistency, note(o.Note), o.Freeze
	if o.Freeze == 0 {
		c.Freeze = time.Since(c.SourceTime)
	}
	if hold.ForApplications() {
		again := x.welcome.AppInterval
		if c.Consistency != ident.ApplicationConsistent {
			again = min(again, scriptsAgain)
		}
		x.scripts = time.Now().Add(again)
	}
}

// sendFrozen sends the rest, within the time that the machine may stay frozen. Where
// something can be written all the same, passes are made until two agree. why says why
// there is no point.
func (x *session) sendFrozen(hold *quiesce.Hold) (why, err error) {
	ctx, cancel := context.WithTimeout(pace.Hurry(x.ctx), hold.Limit())
	defer cancel()
	x.fixed = true
	defer func() { x.fixed = false }()
	x.frozenFree(hold)
	for range maxPasses {
		before, passed := x.emitted, x.passed
		err := x.pass(ctx)
		switch {
		case err == nil && (!hold.Loose() || passed && x.emitted == before):
			return nil, nil
		case err == nil:
		case x.ctx.Err() != nil:
			return nil, x.ctx.Err()
		case ctx.Err() != nil:
			return fmt.Errorf("frozen for longer than %s", hold.Limit()), nil
		case errors.Is(err, errTooMuch):
			return err, nil
		default:
			return nil, err
		}
	}
	return fmt.Errorf("the disks changed during every pass, though frozen; %s", hold.Outcome().Note), nil
}

// runningCut reads the disks until a pass finds nothing that changed since the
// pass before: at the moment between the two, the disks were as they were sent.
func (x *session) runningCut(why string, passes int) (changeset.Cut, error) {
	x.free.now.Use(nil)
	for range passes {
		c := changeset.Cut{SourceTime: now(), Consistency: ident.CrashConsistent, Note: note(why)}
		before, passed := x.emitted, x.passed
		if err := x.pass(x.ctx); err != nil {
			return c, err
		}
		if passed && x.emitted == before {
			return c, nil
		}
	}
	busy := "the disks changed during every pass, and nothing is frozen;"
	return changeset.Cut{SourceTime: now(), Consistency: ident.NoConsistency, Note: note(strings.TrimSpace(busy + " " + why))}, nil
}

func note(s string) string {
	if len(s) > maxNote {
		s = s[:maxNote]
	}
	return strings.ToValidUTF8(s, "")
}
