package file

import (
	"context"
	"fmt"
	"slices"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/replica"
)

// Apply writes the change set. When no point is made (an incomplete base copy),
// the Point given back is the zero Point.
func (w *Writer) Apply(ctx context.Context, cs replica.ChangeSet) (replica.Point, error) {
	sum := cs.Summary()
	p, err := w.apply(ctx, cs, sum)
	if err != nil {
		return replica.Point{}, fmt.Errorf("apply change set %d to machine %s: %w", sum.Header.Seq, w.m.id, err)
	}
	return p, nil
}

func (w *Writer) apply(ctx context.Context, cs replica.ChangeSet, sum changeset.Summary) (replica.Point, error) {
	unlock, err := w.begin(ctx)
	if err != nil {
		return replica.Point{}, err
	}
	defer unlock()
	if p, ok := w.mf.State.Applied(sum); ok {
		return p, nil
	}
	disks, err := w.fits(sum)
	if err != nil {
		return replica.Point{}, err
	}
	a := &applier{w: w, cs: cs, disks: disks, newest: w.mf.newest()}
	p, err := a.run(ctx, sum)
	if err != nil {
		w.doubt()
	}
	return p, err
}

// fits checks that the change set is for the replica as it is.
func (w *Writer) fits(sum changeset.Summary) ([]*openDisk, error) {
	h, s := sum.Header, &w.mf.State
	if err := replica.CheckFits(h, *s); err != nil {
		return nil, err
	}
	disks := make([]*openDisk, len(h.Disks))
	for i, d := range h.Disks {
		if disks[i] = w.open[d.ID]; disks[i] == nil {
			return nil, fmt.Errorf("disk %s is not open", d.ID)
		}
	}
	p, err := w.m.loadPending()
	if err != nil {
		return nil, err
	}
	if p.inFlight(s.Position) && p.digest != sum.Digest {
		return nil, fmt.Errorf("change set %d (%s) was written in part: apply that one, or begin a new generation: %w",
			p.seq, p.digest.String()[:8], replica.ErrGap)
	}
	return disks, nil
}

// applier is one application of one change set.
type applier struct {
	w      *Writer
	cs     replica.ChangeSet
	disks  []*openDisk
	newest *replica.Point // nil: nothing to keep
	blocks []*blockSet    // per disk: what the change set overwrites, when newest is set
}

func (a *applier) run(ctx context.Context, sum changeset.Summary) (replica.Point, error) {
	st := a.w.m.store
	if err := a.verify(ctx); err != nil {
		return replica.Point{}, err
	}
	if err := a.saveOld(ctx); err != nil {
		return replica.Point{}, err
	}
	if err := a.w.m.savePending(pending{sum.Header.Seq, sum.Digest}); err != nil {
		return replica.Point{}, err
	}
	if err := st.step(failpoint.Pending); err != nil {
		return replica.Point{}, err
	}
	if err := a.write(ctx); err != nil {
		return replica.Point{}, err
	}
	return a.finish(sum)
}

// verify reads the whole change set before anything is changed, and notes what
// it overwrites.
func (a *applier) verify(ctx context.Context) error {
	a.blocks = make([]*blockSet, len(a.disks))
	for i := range a.blocks {
		a.blocks[i] = newBlockSet()
	}
	return replica.EachExtent(ctx, a.cs, a.w.mf.State.Spec.Disks, func(e *changeset.Extent) error {
		if a.newest != nil {
			a.blocks[e.Disk].add(e.Offset/checksum.BlockSize, checksum.Blocks(e.Offset+e.Length))
		}
		return nil
	})
}

// saveOld keeps the old content of all blocks that are overwritten for the first
// time since the newest point, durably, before any of them is touched.
func (a *applier) saveOld(ctx context.Context) error {
	if a.newest == nil {
		return nil
	}
	u, err := a.w.newestUndo()
	if err != nil {
		return err
	}
	buf := make([]byte, ioBytes)
	for i, d := range a.disks {
		known := &sumsWindow{s: d.sums}
		err := a.blocks[i].eachRun(u.saved[d.disk.ID], func(from, to int64) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return u.saveOld(d.disk, d.img, known, from, to, buf)
		})
		if err != nil {
			return err
		}
	}
	if err := a.w.m.store.step(failpoint.UndoWritten); err != nil {
		return err
	}
	if err := u.sync(); err != nil {
		return err
	}
	return a.w.m.store.step(failpoint.UndoSynced)
}

// newestUndo gives the newest point's undo file, open to append.
func (w *Writer) newestUndo() (*undoAppender, error) {
	p := w.mf.newest()
	if w.undo != nil && w.undoPoint == p.ID {
		return w.undo, nil
	}
	w.dropUndo()
	u, err := openUndo(w.m.store.fs, w.m.undoPath(w.mf.Undo[len(w.mf.Undo)-1]), w.m.id, p.ID, undoHeaderSize+p.UndoBytes)
	if err != nil {
		return nil, err
	}
	w.undo, w.undoPoint = u, p.ID
	return u, nil
}

func (a *applier) write(ctx context.Context) error {
	st := a.w.m.store
	sums := make([]*sumsWindow, len(a.disks)) // of the disks that are touched
	err := replica.EachExtentAgain(ctx, a.cs, a.w.mf.State.Spec.Disks, func(e *changeset.Extent) error {
		d := a.disks[e.Disk]
		if sums[e.Disk] == nil {
			sums[e.Disk] = &sumsWindow{s: d.sums}
		}
		if err := writeExtent(d, sums[e.Disk], e); err != nil {
			return err
		}
		return st.step(failpoint.ImageWritten)
	})
	if err != nil {
		return err
	}
	for i, d := range a.disks {
		if sums[i] == nil {
			continue
		}
		if err := sums[i].flush(); err != nil {
			return err
		}
		if err := d.img.sync(); err != nil {
			return err
		}
		if err := st.step(failpoint.ImageSynced); err != nil {
			return err
		}
		if err := d.sums.sync(); err != nil {
			return err
		}
	}
	return st.step(failpoint.SumsSynced)
}

func writeExtent(d *openDisk, sums *sumsWindow, e *changeset.Extent) error {
	first := e.Offset / checksum.BlockSize
	if e.Zero || !slices.ContainsFunc(e.Sums, func(s uint64) bool { return s != 0 }) {
		if err := d.img.zero(e.Offset, e.Length); err != nil {
			return err
		}
		return sums.writeZeros(first, checksum.Blocks(e.Length))
	}
	if err := d.img.write(e.Data, e.Offset); err != nil {
		return err
	}
	return sums.write(first, e.Sums)
}

// finish publishes the new position and the point, if one is made.
func (a *applier) finish(sum changeset.Summary) (replica.Point, error) {
	w := a.w
	mf := w.mf.clone()
	s := &mf.State
	s.Position, s.Empty = sum.Position(), false
	s.Complete = s.Complete || (sum.Header.Kind == changeset.Base && sum.Cut.Complete)
	if p := mf.newest(); p != nil && w.undo != nil {
		p.UndoBytes = w.undo.bytes()
	}
	p, ok := replica.PointAt(sum, *s)
	if !ok {
		return replica.Point{}, w.commit(mf)
	}
	name := undoName(p)
	if err := createUndo(w.m.store.fs, w.m.undoPath(name), w.m.id, p); err != nil {
		return replica.Point{}, err
	}
	if err := w.m.store.syncDir(w.m.path(undoDir)); err != nil {
		return replica.Point{}, err
	}
	if err := w.m.store.step(failpoint.UndoCreated); err != nil {
		return replica.Point{}, err
	}
	s.Points, mf.Undo = append(s.Points, p), append(mf.Undo, name)
	return p, w.commit(mf)
}
