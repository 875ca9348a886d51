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
	// maxPasses bounds how often a disk that is not frozen is read for one cut.
	maxPasses = 5
	maxNote   = 200 // bytes
)

func now() time.Time { return time.Now().UTC() }

// cut makes a recovery point: what changed is sent, the last of it while the
// machine is frozen. quiet is false when no consistent moment was found; then
// the changes are sent, but no point is made.
func (x *session) cut(complete bool) (quiet bool, err error) {
	if x.frozen != nil {
		return true, nil // nothing changes until it is released
	}
	var c changeset.Cut
	if x.Hooks.Configured() {
		c, err = x.frozenCut()
	} else {
		c, err = x.runningCut("")
	}
	if err != nil {
		return false, err
	}
	if x.set == nil {
		if err := x.begin(); err != nil {
			return false, err
		}
	}
	quiet = c.Consistency != ident.NoConsistency
	c.Complete, c.Final = complete, x.final && quiet
	if err := x.end(c); err != nil {
		return quiet, err
	}
	x.Metrics.cut(c)
	if c.Final {
		x.final = false
		x.Logger.Info("the final recovery point is made; the machine stays frozen", "seq", x.position.Seq)
	}
	x.showState()
	if !quiet {
		x.show(StateStreaming, "no recovery point: "+c.Note)
	}
	return quiet, nil
}

// frozenCut sends most of the changes while the machine runs, freezes it, and
// sends the rest.
func (x *session) frozenCut() (changeset.Cut, error) {
	if err := x.approach(); err != nil {
		return changeset.Cut{}, err
	}
	if x.set != nil && x.set.plain > x.welcome.BaseSetBytes/2 {
		if err := x.endPart(); err != nil {
			return changeset.Cut{}, err
		}
	}
	if x.set == nil {
		if err := x.begin(); err != nil {
			return changeset.Cut{}, err
		}
	}
	q := quiesce.Cut{Machine: x.Machine, Epoch: x.epoch, Seq: x.set.seq, Final: x.final}
	if err := x.Hooks.Freeze(x.ctx, q); err != nil {
		if x.ctx.Err() != nil {
			return changeset.Cut{}, x.ctx.Err()
		}
		x.Logger.Warn("the machine could not be frozen", "error", err.Error())
		return x.runningCut(err.Error())
	}
	x.frozen = &frozen{q, now()}
	c, err := x.sendFrozen()
	if err == nil && q.Final && c.Consistency != ident.NoConsistency {
		return c, nil // it stays frozen
	}
	if e := x.Thaw(x.ctx); e != nil {
		x.Logger.Error("the program after the cut failed", "error", e.Error())
		if c.Consistency == ident.ApplicationConsistent {
			c.Consistency, c.Note = ident.FileSystemConsistent, note(e.Error())
		}
		x.frozen = nil // the marker stays: the next start tries again
	}
	c.Freeze = time.Since(c.SourceTime)
	return c, err
}

// approach sends the changes of the running machine until what a pass sends is soon
// through. On a slow or throttled line a pass takes long, and what changes meanwhile
// would have to go with the machine frozen.
func (x *session) approach() error {
	for range maxPasses {
		before := x.conn.WriteTime()
		if err := x.pass(x.ctx); err != nil {
			return err
		}
		if err := x.pack.drain(); err != nil {
			return err
		}
		behind, err := x.line.settle(x.ctx, x.conn)
		if err != nil || behind+x.conn.WriteTime()-before < settled {
			return err
		}
	}
	return nil
}

// sendFrozen sends the rest, within the time that the machine may stay frozen.
func (x *session) sendFrozen() (changeset.Cut, error) {
	c := changeset.Cut{SourceTime: now(), Consistency: ident.ApplicationConsistent}
	ctx, cancel := context.WithTimeout(pace.Hurry(x.ctx), x.Hooks.Timeout)
	defer cancel()
	x.fixed = true
	err := x.pass(ctx)
	x.fixed = false
	switch {
	case err == nil:
		c.Freeze = time.Since(c.SourceTime)
		return c, nil
	case x.ctx.Err() != nil:
		return c, x.ctx.Err()
	case ctx.Err() != nil:
		err = fmt.Errorf("frozen for longer than %s", x.Hooks.Timeout)
	case !errors.Is(err, errTooMuch):
		return c, err
	}
	x.Logger.Warn("no recovery point this time", "error", err.Error())
	c.Consistency, c.Note = ident.NoConsistency, note(err.Error())
	return c, nil
}

// runningCut reads the disks until a pass finds nothing that changed since the
// pass before: at the moment between the two, the disks were as they were sent.
func (x *session) runningCut(why string) (changeset.Cut, error) {
	for range maxPasses {
		c := changeset.Cut{SourceTime: now(), Consistency: ident.CrashConsistent, Note: note(why)}
		before, passed := x.emitted, x.passed
		if err := x.pass(x.ctx); err != nil {
			return c, err
		}
		if passed && x.emitted == before {
			return c, nil
		}
	}
	busy := "the disks changed during every pass; configure quiesce programs"
	return changeset.Cut{SourceTime: now(), Consistency: ident.NoConsistency, Note: note(strings.TrimSpace(busy + " " + why))}, nil
}

func note(s string) string {
	if len(s) > maxNote {
		s = s[:maxNote]
	}
	return strings.ToValidUTF8(s, "")
}
