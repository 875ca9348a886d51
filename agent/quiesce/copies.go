package quiesce

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"drover/agent/quiesce/vss"
	"drover/datapath/ident"
)

// copiesLimit is how long shadow copies are kept for one cut: the machine goes on, but
// what it overwrites takes room in them.
const copiesLimit = 6 * time.Hour

// copies are shadow copies of the volumes on the disks of a cut. Applications and file
// systems stand still only while they are made, which Windows sees to.
type copies struct {
	layout *vss.Layout
	set    *vss.Set // nil: not yet, or not any more
	at     time.Time
	took   time.Duration
	made   bool
	failed []string // writers that did not take part
}

// layout finds out what of the disks of a cut has shadow copies; nil: nothing has.
func (h *Hooks) layout(c Cut) (*copies, error) {
	if h.Copier == nil {
		return nil, nil //nolint:nilnil // said above
	}
	l, err := h.Copier.Layout(c.Disks)
	if err != nil {
		return nil, err
	}
	if len(l.Parts) == 0 {
		return nil, nil //nolint:nilnil // said above
	}
	return &copies{layout: l}, nil
}

// copy makes the shadow copies. Then programs and scripts may go on: what the cut needs
// does not change any more.
func (x *Hold) copy(ctx context.Context) error {
	c := x.copies
	set, err := x.hooks.Copier.Create(ctx, c.layout.Volumes(), x.cut.Scripts)
	if err != nil {
		return err
	}
	c.set, c.at, c.took, c.made = set, set.Begun, set.Took, true
	c.failed = set.Failed
	if err := x.release(ctx); err != nil && x.failed == nil {
		x.failed = err
	}
	return nil
}

// Copy is a part of a disk as it was at the moment of the cut.
type Copy struct {
	Disk           string // path
	Offset, Length int64
	Device         string // to be read from its beginning
}

// Copies are what the cut is to be read from, as far as there are any; the rest of the
// disks is as it was only if it has not changed since it was last read. Nil: the disks
// are read themselves.
func (x *Hold) Copies() (out []Copy) {
	if x.copies == nil || x.copies.set == nil {
		return nil
	}
	for _, p := range x.copies.layout.Parts {
		out = append(out, Copy{p.Disk, p.Offset, p.Length, x.copies.set.Devices[p.Volume]})
	}
	return out
}

// CopiedAt is before the moment that shadow copies are of; zero when there are none.
func (x *Hold) CopiedAt() time.Time {
	if x.copies == nil {
		return time.Time{}
	}
	return x.copies.at
}

// outcomeOfCopies is what the shadow copies are good for.
func (x *Hold) outcomeOfCopies() Outcome {
	c := x.copies
	var notes []string
	o := Outcome{Freeze: c.took}
	loose := slices.Concat(x.loose, c.layout.Loose)
	switch {
	case !c.made:
		o.Consistency = ident.NoConsistency
	case len(loose) > 0:
		o.Consistency = ident.CrashConsistent
	case x.cut.Scripts && x.failed == nil && len(c.failed) == 0:
		o.Consistency = ident.ApplicationConsistent
	default:
		o.Consistency = ident.FileSystemConsistent
	}
	if x.failed != nil {
		notes = append(notes, x.failed.Error())
	}
	if len(loose) > 0 {
		notes = append(notes, "no shadow copy: "+strings.Join(loose, ", "))
	}
	o.Note = strings.Join(append(notes, c.failed...), "; ")
	return o
}

// deleteCopies deletes the shadow copies; what cannot be deleted is at the next cut.
func (x *Hold) deleteCopies(ctx context.Context) error {
	if x.copies == nil || x.copies.set == nil {
		return nil
	}
	set := x.copies.set
	x.copies.set = nil
	return x.hooks.Copier.Delete(ctx, set)
}

// recoverCopies deletes what an earlier process has left.
func (h *Hooks) recoverCopies(ctx context.Context) (was bool, err error) {
	if h.Copier == nil {
		return false, nil
	}
	n, err := h.Copier.Recover(ctx)
	if errors.Is(err, vss.ErrUnfinished) {
		err = nil // the next cut looks again
	}
	return n > 0, err
}
