package pageblob

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"drover/datapath/azstorage"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

const (
	maxSnapshotTries = 10
	snapshotPause    = 2 * time.Millisecond
)

// pointManifest is the write-once blob of a point: all that is needed to read it.
type pointManifest struct {
	Version int                       `json:"version"`
	Machine ident.MachineID           `json:"machine"`
	Name    string                    `json:"name"`
	KeyID   string                    `json:"keyId"`
	Point   replica.Point             `json:"point"`
	Disks   map[ident.DiskID]snapshot `json:"disks"`
}

// makePoint makes the snapshots of a point and then its manifest. Disks that nothing
// was written to since the newest point share its snapshots.
func (w *Writer) makePoint(ctx context.Context, p replica.Point, touched map[ident.DiskID]bool) (pointBlobs, error) {
	b := pointBlobs{Manifest: w.m.pointName(p.ID, w.mf.word()), Disks: map[ident.DiskID]snapshot{}}
	for _, d := range p.Disks {
		if s, ok := w.unchanged(d); ok && !touched[d.ID] {
			b.Disks[d.ID] = s
			continue
		}
		o := w.open[d.ID]
		var s snapshot
		var err error
		if s.Disk, err = w.snapshot(ctx, o.vhd, d, func(s snapshot) string { return s.Disk }); err != nil {
			return b, err
		}
		if s.Sums, err = w.snapshot(ctx, o.sums.pages, d, func(s snapshot) string { return s.Sums }); err != nil {
			return b, err
		}
		b.Disks[d.ID] = s
		if err := w.m.store.step(failpoint.SnapshotMade); err != nil {
			return b, err
		}
	}
	return b, w.putManifest(ctx, b, p)
}

// unchanged gives the newest point's snapshots of the disk, if that is how it was
// when the change set began.
func (w *Writer) unchanged(d replica.Disk) (snapshot, bool) {
	p := w.mf.newest()
	if p == nil || p.Position != w.mf.State.Position || p.Generation != w.mf.State.Generation || !slices.Contains(p.Disks, d) {
		return snapshot{}, false
	}
	s, ok := w.mf.Snapshots[len(w.mf.Snapshots)-1].Disks[d.ID]
	return s, ok
}

// snapshot makes a snapshot with a name of its own: two within one tick of a server's
// clock can have one name.
func (w *Writer) snapshot(ctx context.Context, p *pages, d replica.Disk, name func(snapshot) string) (string, error) {
	for range maxSnapshotTries {
		id, err := p.snapshot(ctx, w.mf.word(), d.Size)
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(w.mf.Snapshots, func(b pointBlobs) bool { return name(b.Disks[d.ID]) == id }) {
			return id, nil
		}
		time.Sleep(snapshotPause)
	}
	return "", fmt.Errorf("snapshots of %s have the name of an older one, %d times", p.name, maxSnapshotTries)
}

func (w *Writer) putManifest(ctx context.Context, b pointBlobs, p replica.Point) error {
	s := w.mf.State.Spec
	content, err := json.Marshal(pointManifest{Version: formatVersion, Machine: w.m.id, Name: s.Name, KeyID: s.KeyID, Point: p, Disks: b.Disks})
	if err != nil {
		return err
	}
	_, err = w.m.store.c.Put(ctx, b.Manifest, content, azstorage.If{Absent: true}, nil)
	if errors.Is(err, azstorage.ErrCondition) { // ours, when its reply was lost
		var is []byte
		if is, _, err = w.m.store.c.Get(ctx, b.Manifest, maxJSON); err == nil && !bytes.Equal(is, content) {
			err = fmt.Errorf("another manifest is there: %w", replica.ErrFenced)
		}
	}
	if err != nil {
		return fmt.Errorf("write the manifest of point %d: %w", p.ID, err)
	}
	return w.m.store.step(failpoint.PointWritten)
}

// Delete removes the points. Points that are gone already are no error; the newest
// point, if asked for, is.
func (w *Writer) Delete(ctx context.Context, points []ident.Seq) (held []ident.Seq, err error) {
	err = w.changing(ctx, func() error {
		if err := w.finishDelete(ctx); err != nil { // of a call that failed in the middle
			return err
		}
		if held, err = w.planDelete(ctx, points); err != nil {
			return err
		}
		if err := w.m.store.step(failpoint.DeletePlanned); err != nil {
			return err
		}
		return w.finishDelete(ctx)
	})
	if err != nil {
		return held, fmt.Errorf("delete points of machine %s: %w", w.m.id, err)
	}
	return held, nil
}

// planDelete writes the plan. Held points are left out and given back.
func (w *Writer) planDelete(ctx context.Context, points []ident.Seq) (held []ident.Seq, err error) {
	var plan []ident.Seq
	err = w.m.changeHolds(ctx, func(h *holds) (bool, error) {
		held, plan = nil, nil
		for _, id := range points {
			if w.mf.point(id) < 0 || slices.Contains(plan, id) {
				continue
			}
			if w.mf.newest().ID == id {
				return false, fmt.Errorf("point %d is the newest: it always stays", id)
			}
			if len(replica.LiveHolds(h.Holds[id], w.m.store.now())) > 0 {
				held = append(held, id)
				continue
			}
			plan = append(plan, id)
		}
		h.Plan = plan
		return len(plan) > 0, nil
	})
	return held, err
}

// finishDelete executes the plan, if there is one; any part may be done already. The
// points leave the state first, then their manifests go, then the snapshots that no
// other point has, then the plan.
func (w *Writer) finishDelete(ctx context.Context) error {
	h, _, err := w.m.loadHolds(ctx)
	if err != nil || len(h.Plan) == 0 {
		return err
	}
	was := w.mf
	mf := w.mf.clone()
	mf.State.Points, mf.Snapshots = nil, nil
	for i, p := range was.State.Points {
		if !slices.Contains(h.Plan, p.ID) {
			mf.State.Points, mf.Snapshots = append(mf.State.Points, p), append(mf.Snapshots, was.Snapshots[i])
		}
	}
	mf.Retired = slices.DeleteFunc(mf.Retired, func(d replica.Disk) bool {
		gone := !mf.refers(d.ID)
		if gone {
			delete(mf.Data, d.ID)
		}
		return gone
	})
	if len(mf.State.Points) != len(was.State.Points) {
		if err := w.commit(ctx, mf); err != nil {
			return err
		}
	}
	if err := w.m.store.step(failpoint.DeletePublished); err != nil {
		return err
	}
	if err := w.dropPoints(ctx, was); err != nil {
		return err
	}
	if err := w.m.store.step(failpoint.DeleteFiles); err != nil {
		return err
	}
	return w.m.changeHolds(ctx, func(h *holds) (bool, error) {
		had := len(h.Plan) > 0
		h.Plan = nil
		return had, nil
	})
}

// dropPoints deletes the blobs of points that the state had and no longer has. What a
// crash leaves of them is collected by the next session.
func (w *Writer) dropPoints(ctx context.Context, was *manifest) error {
	keep := map[ident.DiskID]map[snapshot]bool{}
	for _, b := range w.mf.Snapshots {
		for id, s := range b.Disks {
			if keep[id] == nil {
				keep[id] = map[snapshot]bool{}
			}
			keep[id][s] = true
		}
	}
	for i, b := range was.Snapshots {
		if w.mf.point(was.State.Points[i].ID) >= 0 {
			continue
		}
		if err := w.m.store.c.Remove(ctx, b.Manifest, azstorage.If{}); err != nil {
			return fmt.Errorf("delete the manifest of point %d: %w", was.State.Points[i].ID, err)
		}
		for _, id := range slices.SortedFunc(maps.Keys(b.Disks), func(a, b ident.DiskID) int { return slices.Compare(a[:], b[:]) }) {
			s := b.Disks[id]
			if keep[id][s] {
				continue
			}
			if err := errors.Join(w.m.store.pages(w.m.diskName(id)).dropSnapshot(ctx, s.Disk), w.m.store.pages(w.m.sumsName(id)).dropSnapshot(ctx, s.Sums)); err != nil {
				return err
			}
		}
	}
	retired := func(d replica.Disk) bool {
		return !slices.ContainsFunc(w.mf.disks(), func(x replica.Disk) bool { return x.ID == d.ID })
	}
	if slices.ContainsFunc(was.Retired, retired) {
		return w.collect(ctx)
	}
	return nil
}
