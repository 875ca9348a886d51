package pageblob

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

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
	a := &applier{w: w, cs: cs, again: w.mf.Pending != nil, touched: map[int]bool{}}
	if err := replica.EachExtent(ctx, cs, w.mf.State.Spec.Disks, func(e *changeset.Extent) error {
		a.touched[e.Disk] = true
		return nil
	}); err != nil {
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
	again   bool
	touched map[int]bool // disks that the set has extents of
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

// write writes the extents of several disks at once.
func (a *applier) write(ctx context.Context) (map[ident.DiskID]written, error) {
	w := a.w
	parallel := w.m.store.parallel
	s := newShares(parallel, len(a.touched))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel) // what is gathered for each takes memory
	var mu sync.Mutex
	out := map[ident.DiskID]written{}
	for i := range w.mf.State.Spec.Disks {
		if !a.touched[i] {
			continue
		}
		g.Go(func() error {
			defer s.done()
			d, err := a.writeDisk(ctx, i, s)
			mu.Lock()
			defer mu.Unlock()
			out[w.mf.State.Spec.Disks[i].ID] = d
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, w.m.store.step(failpoint.SumsSynced)
}

// writeDisk writes the extents of one disk.
func (a *applier) writeDisk(ctx context.Context, disk int, s *shares) (written, error) {
	up := newUploads(ctx, s)
	defer up.stop()
	spec := a.w.mf.State.Spec.Disks
	d := newDiskWriter(a.w, a.w.open[spec[disk].ID], up, a.again)
	err := replica.EachExtentOf(up.ctx, a.cs, disk, spec, d.extent)
	if err == nil {
		err = d.flush()
	}
	err = errors.Join(up.wait(), err)
	return written{bytes: d.bytes.Load(), data: d.sums.grown}, err
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
