package pageblob

import (
	"context"
	"errors"
	"fmt"

	"drover/datapath/changeset"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
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
	if err := w.begin(ctx); err != nil {
		return replica.Point{}, err
	}
	if p, ok := w.mf.State.Applied(sum); ok {
		return p, nil
	}
	if err := w.fits(sum); err != nil {
		return replica.Point{}, err
	}
	a := &applier{w: w, cs: cs, again: w.mf.Pending != nil}
	if err := replica.EachExtent(ctx, cs, w.mf.State.Spec.Disks, func(*changeset.Extent) error { return nil }); err != nil {
		return replica.Point{}, err // nothing was changed
	}
	p, err := a.run(ctx, sum)
	w.doubt = w.doubt || err != nil
	return p, err
}

// fits checks that the change set is for the replica as it is.
func (w *Writer) fits(sum changeset.Summary) error {
	if err := replica.CheckFits(sum.Header, w.mf.State); err != nil {
		return err
	}
	if p := w.mf.Pending; p != nil && p.Digest != sum.Digest {
		return fmt.Errorf("change set %d (%s) was written in part: apply that one, or begin a new generation: %w",
			p.Seq, p.Digest.String()[:8], replica.ErrGap)
	}
	return nil
}

// applier is one application of one change set.
type applier struct {
	w  *Writer
	cs replica.ChangeSet
	// again: the set was written in part before, so that a disk may have data where its
	// checksums say zeros.
	again bool
}

func (a *applier) run(ctx context.Context, sum changeset.Summary) (replica.Point, error) {
	w := a.w
	if !a.again {
		mf := w.mf.clone()
		mf.Pending = &pending{Seq: sum.Header.Seq, Digest: sum.Digest}
		if err := w.commit(ctx, mf); err != nil {
			return replica.Point{}, err
		}
	}
	if err := w.m.store.step(failpoint.Pending); err != nil {
		return replica.Point{}, err
	}
	done, err := a.write(ctx)
	if err != nil {
		return replica.Point{}, err
	}
	return a.finish(ctx, sum, done)
}

// written is what a change set did to one disk.
type written struct {
	bytes int64 // sent
	data  int64 // by how much the bytes in blocks that are not zeros have grown
}

// write writes all extents to the disks they are of.
func (a *applier) write(ctx context.Context) (map[ident.DiskID]written, error) {
	up := newUploads(ctx, a.w.m.store.parallel)
	defer up.stop()
	spec := a.w.mf.State.Spec.Disks
	disks := make([]*diskWriter, len(spec))
	err := replica.EachExtent(up.ctx, a.cs, spec, func(e *changeset.Extent) error {
		if disks[e.Disk] == nil {
			disks[e.Disk] = newDiskWriter(a.w, a.w.open[spec[e.Disk].ID], up, a.again)
		}
		return disks[e.Disk].extent(e)
	})
	out := map[ident.DiskID]written{}
	for _, d := range disks {
		if err == nil && d != nil {
			err = d.flush()
		}
	}
	if err = errors.Join(up.wait(), err); err != nil {
		return nil, err
	}
	for _, d := range disks {
		if d != nil {
			out[d.o.disk.ID] = written{bytes: d.bytes.Load(), data: d.sums.grown}
		}
	}
	return out, a.w.m.store.step(failpoint.SumsSynced)
}

// finish publishes the new position and the point, if one is made.
func (a *applier) finish(ctx context.Context, sum changeset.Summary, done map[ident.DiskID]written) (replica.Point, error) {
	w := a.w
	mf := w.mf.clone()
	s := &mf.State
	mf.Pending = nil
	s.Position, s.Empty = sum.Position(), false
	s.Complete = s.Complete || (sum.Header.Kind == changeset.Base && sum.Cut.Complete)
	touched := map[ident.DiskID]bool{}
	for id, d := range done {
		touched[id] = true
		mf.Data[id] = max(0, mf.Data[id]+d.data)
		if p := mf.newest(); p != nil {
			p.UndoBytes += d.bytes // at most so much of the old content is kept for it
		}
	}
	p, ok := replica.PointAt(sum, *s)
	if !ok {
		return replica.Point{}, w.commit(ctx, mf)
	}
	blobs, err := w.makePoint(ctx, p, touched)
	if err != nil {
		return replica.Point{}, err
	}
	s.Points, mf.Snapshots = append(s.Points, p), append(mf.Snapshots, blobs)
	return p, w.commit(ctx, mf)
}
