// Package quiesce holds a machine still for the moment of a cut: applications by
// programs and scripts of the operator, file systems by the kernel. Programs are run
// directly, never by a shell, and learn of the cut from their environment:
//
//	DROVER_PHASE    freeze or thaw
//	DROVER_MACHINE  machine id
//	DROVER_EPOCH    epoch and sequence number of the recovery point to be made;
//	DROVER_SEQ      0 when a freeze that was left behind is ended
//	DROVER_FINAL    1 when the machine stays frozen, for a planned failover
//
//	quiesce.go  one cut, from the first program to the last
//	copies.go   shadow copies instead of a freeze, on Windows
//	program.go  running a program
//	scripts.go  the directory of scripts
//	marker.go   what the next start needs to end what this one has begun
//	gate.go     the log, while file systems are frozen
package quiesce

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"drover/agent/quiesce/freeze"
	"drover/agent/quiesce/vss"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
)

// Cut is what the machine is held for.
type Cut struct {
	Machine ident.MachineID
	Epoch   ident.Epoch
	Seq     ident.Seq
	Final   bool
	// Scripts: the cut is to be application-consistent.
	Scripts bool
	// Disks are the paths of the machine's disks.
	Disks []string
}

// Hooks is what is done around the cuts of one machine. Its methods are called by one
// goroutine at a time.
type Hooks struct {
	// Pre and Post are programs with their arguments, run at every cut.
	Pre, Post []string
	// Timeout bounds each of them, and how long the machine stays as it is for a cut
	// that is not final when no file system is frozen.
	Timeout time.Duration
	// Scripts run at the cuts that are to be application-consistent.
	Scripts Scripts
	// Freezer freezes the file systems; nil: nobody but the programs does.
	Freezer *freeze.Freezer
	// Copier makes shadow copies of the volumes, from which the cut is read; nil: the
	// disks themselves are.
	Copier *vss.Provider
	// Marker is a file that is there while the machine is frozen, so that a freeze
	// that a crash left behind is ended at the next start.
	Marker string
	// Log is closed while file systems are frozen.
	Log *Gate
}

// Hold is a machine that is being held, from Begin to Thaw.
type Hold struct {
	hooks   *Hooks
	cut     Cut
	set     *freeze.Set
	frozen  *freeze.Frozen // nil: no file system is to be frozen
	scripts []string       // that were called
	exist   bool           // there are scripts, whether called or not
	called  bool           // programs were called, so that they are to be told to thaw
	failed  error          // the first failure of a program or script
	loose   []string       // what can be written to all the same
	since   time.Time      // the freeze was begun
	copies  *copies        // nil: there are to be none
	// released: programs and scripts were told that the machine goes on.
	released bool
}

// CanHold reports whether there may be anything to hold the machine with for the cut.
func (h *Hooks) CanHold(c Cut) bool {
	if len(h.Pre) > 0 {
		return true
	}
	if list, err := h.Scripts.List(); c.Scripts && (err != nil || len(list) > 0) {
		return true
	}
	if h.Copier != nil {
		return true
	}
	if h.Freezer == nil {
		return false
	}
	set, err := freeze.Find(c.Disks)
	return err != nil || len(set.FileSystems) > 0
}

// Begin prepares to hold the machine: it finds the file systems and runs the scripts.
// There is none when there is nothing to hold the machine with. After an error all is
// as before.
func (h *Hooks) Begin(ctx context.Context, c Cut) (*Hold, error) {
	x := &Hold{hooks: h, cut: c, set: &freeze.Set{}}
	list, err := h.Scripts.List()
	x.exist = len(list) > 0 || err != nil
	if c.Scripts {
		x.scripts, x.failed = list, err
	}
	if h.Freezer != nil {
		if x.set, err = freeze.Find(c.Disks); err != nil {
			return nil, err
		}
	}
	x.loose = x.set.Loose
	if x.copies, err = h.layout(c); err != nil {
		return nil, err
	}
	if x.copies == nil && len(x.set.FileSystems) == 0 && len(h.Pre) == 0 && len(x.scripts) == 0 {
		return nil, nil //nolint:nilnil // said above
	}
	if err := h.mark(marker{Epoch: c.Epoch, Seq: c.Seq, FileSystems: x.set.Left(), Scripts: len(x.scripts) > 0}); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.FreezeMarked)
	if len(x.set.FileSystems) > 0 {
		if x.frozen, err = h.Freezer.Prepare(ctx, x.set); err != nil {
			return nil, errors.Join(err, h.unmark())
		}
		failpoint.Hit(failpoint.FreezeGuarded)
	}
	if len(x.scripts) > 0 {
		x.called = true
		x.failed = h.Scripts.freeze(ctx, x.scripts, c)
		failpoint.Hit(failpoint.FreezeScripts)
	}
	return x, nil
}

// Scripted reports whether scripts were run, so that there may be more to send before
// the freeze.
func (x *Hold) Scripted() bool { return len(x.scripts) > 0 }

// ForApplications reports whether applications were asked to take part, by scripts or as
// writers of shadow copies.
func (x *Hold) ForApplications() bool {
	return x.Scripted() || x.copies != nil && x.cut.Scripts
}

// Limit is how long the machine is to be frozen at most.
func (x *Hold) Limit() time.Duration {
	switch {
	case x.copies != nil:
		return copiesLimit
	case x.frozen != nil:
		return x.hooks.Freezer.MaxTime()
	case x.hooks.Timeout > 0:
		return x.hooks.Timeout
	}
	return DefaultTimeout
}

// Settle writes the file systems out while they still work; Freeze does it again, and has
// less to do then.
func (x *Hold) Settle(ctx context.Context) error {
	if x.frozen == nil {
		return nil
	}
	return x.frozen.Settle(ctx)
}

// Freeze runs the program before every cut, and freezes the file systems. The number
// is the cut's, as it is known by now. After an error all is as before.
func (x *Hold) Freeze(ctx context.Context, seq ident.Seq) error {
	x.cut.Seq = seq
	if x.frozen != nil {
		if err := x.frozen.Settle(ctx); err != nil {
			return x.undo(ctx, err)
		}
	}
	if len(x.hooks.Pre) > 0 {
		x.called = true
		_, err := runProgram(ctx, x.hooks.Pre, phaseFreeze, x.cut, x.hooks.Timeout)
		if x.failed == nil {
			x.failed = err
		}
		failpoint.Hit(failpoint.FreezePre)
	}
	x.since = time.Now()
	if x.copies != nil {
		if err := x.copy(ctx); err != nil {
			return x.undo(ctx, err)
		}
		return nil
	}
	if x.frozen == nil {
		if x.failed != nil {
			return x.undo(ctx, x.failed)
		}
		return nil
	}
	x.hooks.Log.Close()
	if err := x.frozen.Freeze(ctx); err != nil {
		x.frozen = nil
		x.hooks.Log.Open()
		return x.undo(ctx, err)
	}
	failpoint.Hit(failpoint.FreezeFrozen)
	for _, fs := range x.frozen.Missing() {
		x.loose = append(x.loose, fs.String()+", which cannot be frozen")
	}
	return nil
}

// Since is when freezing the file systems was begun: the limit counts from then.
func (x *Hold) Since() time.Time { return x.since }

// undo ends what was begun after a failure.
func (x *Hold) undo(ctx context.Context, err error) error {
	_, e := x.Thaw(ctx)
	return errors.Join(err, e)
}

// Loose reports whether something may be written to though the machine is frozen; then
// two passes must agree.
func (x *Hold) Loose() bool { return len(x.loose) > 0 || x.frozen == nil && len(x.hooks.Pre) == 0 }

// Frozen reports whether file systems are frozen by the kernel.
func (x *Hold) Frozen() bool { return x.frozen != nil }

// Keep lets the machine stay frozen after a final cut, for a time from now on.
func (x *Hold) Keep(limit time.Duration) error {
	if x.frozen == nil {
		return nil
	}
	return x.frozen.Hold(limit)
}

// Outcome is what holding the machine was good for.
type Outcome struct {
	Consistency ident.Consistency
	Note        string
	// Freeze is how long file systems were frozen; 0 if none were.
	Freeze time.Duration
}

// Outcome is what the hold is good for so far.
func (x *Hold) Outcome() Outcome {
	var o Outcome
	var notes []string
	switch {
	case x.copies != nil:
		return x.outcomeOfCopies()
	case x.failed == nil && x.called && (len(x.scripts) > 0 || !x.exist):
		o.Consistency = ident.ApplicationConsistent
	case x.Loose():
		o.Consistency = ident.CrashConsistent
	default:
		o.Consistency = ident.FileSystemConsistent
	}
	if x.failed != nil {
		notes = append(notes, x.failed.Error())
	}
	if len(x.loose) > 0 {
		notes = append(notes, "not frozen: "+strings.Join(x.loose, ", "))
	}
	o.Note = strings.Join(append(notes, x.set.Notes...), "; ")
	return o
}

// Thaw ends the hold, even when ctx has ended: file systems go on first, then programs
// and scripts are told. An outcome without consistency says that the machine was not
// frozen all the time. After an error the marker stays, and the next start tries again;
// so may the caller.
func (x *Hold) Thaw(ctx context.Context) (Outcome, error) {
	o := x.Outcome()
	if x.frozen != nil {
		took, err := x.frozen.Thaw()
		x.frozen = nil
		x.hooks.Log.Open()
		failpoint.Hit(failpoint.ThawThawed)
		o.Freeze = took
		if err != nil {
			o.Consistency, o.Note = ident.NoConsistency, err.Error()
		}
	}
	err := x.release(ctx)
	if left := x.deleteCopies(ctx); left != nil {
		o.Note = strings.TrimPrefix(o.Note+"; "+left.Error(), "; ") // what was read of them is right
	}
	if err == nil {
		failpoint.Hit(failpoint.ThawTold)
		return o, x.hooks.unmark()
	}
	if o.Consistency == ident.ApplicationConsistent {
		o.Consistency, o.Note = ident.FileSystemConsistent, err.Error()
		if len(x.loose) > 0 {
			o.Consistency = ident.CrashConsistent
		}
	}
	return o, err
}

// release tells programs and scripts that the machine goes on.
func (x *Hold) release(ctx context.Context) (err error) {
	if !x.called || x.released {
		return nil
	}
	if len(x.hooks.Post) > 0 {
		_, err = runProgram(context.WithoutCancel(ctx), x.hooks.Post, phaseThaw, x.cut, x.hooks.Timeout)
	}
	if e := x.hooks.Scripts.thaw(ctx, x.scripts, x.cut); e != nil {
		err = errors.Join(err, fmt.Errorf("scripts: %w", e))
	}
	x.released = err == nil
	return err
}
