package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

const deleteName = "delete.json"

// deletePlan says which points go. It is durable before anything is deleted, and
// points in it can no longer be held.
type deletePlan struct {
	Points []ident.Seq `json:"points"`
}

func (m machine) loadPlan() (deletePlan, error) {
	var p deletePlan
	b, err := m.store.readFile(m.path(deleteName), maxFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, fmt.Errorf("read deletion plan of %s: %w", m.id, err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, fmt.Errorf("read deletion plan %s: %w: %w", m.path(deleteName), replica.ErrCorrupt, err)
	}
	if len(p.Points) == 0 { // such a plan is never written
		return p, fmt.Errorf("read deletion plan %s: %w: no points in it", m.path(deleteName), replica.ErrCorrupt)
	}
	return p, nil
}

// Delete removes the points. What only they kept for older points is merged into
// the next older point that stays. Points that are gone already are no error; the
// newest point, if asked for, is.
func (w *Writer) Delete(ctx context.Context, points []ident.Seq) ([]ident.Seq, error) {
	held, err := w.delete(ctx, points)
	if err != nil {
		return held, fmt.Errorf("delete points of machine %s: %w", w.m.id, err)
	}
	return held, nil
}

func (w *Writer) delete(ctx context.Context, points []ident.Seq) ([]ident.Seq, error) {
	unlock, err := w.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := w.finishDelete(); err != nil { // of a call that failed in the middle
		return nil, err
	}
	held, err := w.planDelete(ctx, points)
	if err != nil {
		return nil, err
	}
	if err := w.m.store.step(failpoint.DeletePlanned); err != nil {
		return held, err
	}
	return held, w.finishDelete()
}

// planDelete writes the plan. Held points are left out and given back.
func (w *Writer) planDelete(ctx context.Context, points []ident.Seq) (held []ident.Seq, err error) {
	unlock, err := w.m.lockHolds(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	holds, err := w.m.loadHolds()
	if err != nil {
		return nil, err
	}
	var plan deletePlan
	for _, id := range points {
		if w.mf.point(id) < 0 || slices.Contains(plan.Points, id) {
			continue
		}
		if w.mf.newest().ID == id {
			return nil, fmt.Errorf("point %d is the newest: it always stays", id)
		}
		if len(replica.LiveHolds(holds[id], w.m.store.now())) > 0 {
			held = append(held, id)
			continue
		}
		plan.Points = append(plan.Points, id)
	}
	if len(plan.Points) == 0 {
		return held, nil
	}
	b, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	return held, w.m.store.writeFile(w.m.path(deleteName), b)
}

// finishDelete executes the plan, if there is one; any part may be done already.
func (w *Writer) finishDelete() error {
	plan, err := w.m.loadPlan()
	if err != nil || len(plan.Points) == 0 {
		return err
	}
	mf := w.mf.clone()
	if err := w.mergePlanned(mf, plan); err != nil {
		return err
	}
	kept, undo := mf.State.Points[:0], mf.Undo[:0]
	for i, p := range mf.State.Points {
		if slices.Contains(plan.Points, p.ID) {
			continue
		}
		kept, undo = append(kept, p), append(undo, mf.Undo[i])
	}
	mf.State.Points, mf.Undo = kept, undo
	mf.Retired = slices.DeleteFunc(mf.Retired, func(d replica.Disk) bool { return !mf.refers(d.ID) })
	if err := w.commit(mf); err != nil {
		return err
	}
	if err := w.m.store.step(failpoint.DeletePublished); err != nil {
		return err
	}
	if err := w.collect(); err != nil {
		return err
	}
	if err := w.m.store.step(failpoint.DeleteFiles); err != nil {
		return err
	}
	if err := w.m.store.removeIfExists(w.m.path(deleteName)); err != nil {
		return err
	}
	return w.m.store.syncDir(w.m.path())
}

// mergePlanned appends the planned points' undo to the next older kept points'.
func (w *Writer) mergePlanned(mf *manifest, plan deletePlan) error {
	target := -1
	for i := 0; i < len(mf.State.Points); i++ {
		if !slices.Contains(plan.Points, mf.State.Points[i].ID) {
			target = i
			continue
		}
		if target < 0 {
			continue // nothing older needs it
		}
		j := i
		for j < len(mf.State.Points) && slices.Contains(plan.Points, mf.State.Points[j].ID) {
			j++
		}
		if err := w.mergeInto(mf, target, i, j); err != nil {
			return fmt.Errorf("merge undo into point %d: %w", mf.State.Points[target].ID, err)
		}
		i = j - 1
	}
	return nil
}

// mergeInto appends what points [from, to) saved and the target did not.
func (w *Writer) mergeInto(mf *manifest, target, from, to int) (err error) {
	p := &mf.State.Points[target]
	u, err := openUndo(w.m.store.fs, w.m.undoPath(mf.Undo[target]), w.m.id, p.ID, undoHeaderSize+p.UndoBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	for i := from; i < to; i++ {
		if err := w.mergeFile(u, mf.Undo[i], mf.State.Points[i]); err != nil {
			return fmt.Errorf("from point %d: %w", mf.State.Points[i].ID, err)
		}
		if err := w.m.store.step(failpoint.DeleteMerged); err != nil {
			return err
		}
	}
	if err := u.sync(); err != nil {
		return err
	}
	p.UndoBytes = u.bytes()
	return w.m.store.step(failpoint.DeleteSynced)
}

func (w *Writer) mergeFile(u *undoAppender, name string, p replica.Point) error {
	f, err := w.m.store.fs.OpenFile(w.m.undoPath(name), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	if err := checkUndoHeader(f, w.m.id, p.ID); err != nil {
		return err
	}
	end := undoHeaderSize + p.UndoBytes
	buf := make([]byte, maxEntryBytes)
	got, err := scanUndo(f, undoHeaderSize, end, end, func(e entry) error {
		blocks := newBlockSet()
		blocks.add(e.offset/checksum.BlockSize, checksum.Blocks(e.end()))
		return blocks.eachRun(u.saved[e.disk], func(first, to int64) error {
			return copyEntry(u, f, e, first, to, buf)
		})
	})
	if err == nil && got != end {
		err = fmt.Errorf("undo file %s is damaged at %d: %w", name, got, replica.ErrCorrupt)
	}
	return err
}

// copyEntry copies the blocks [first, to) of the entry. Their checksums go with
// them unexamined, so that damage stays visible to whoever reads them.
func copyEntry(u *undoAppender, f vfs.File, e entry, first, to int64, buf []byte) error {
	part := entry{disk: e.disk, flags: e.flags, offset: first * checksum.BlockSize}
	part.length = min(to*checksum.BlockSize, e.end()) - part.offset
	if e.flags == flagZero {
		return u.add(part, nil, nil)
	}
	skip := part.offset - e.offset
	sums := make([]uint64, to-first)
	s := sumsFile{f: f}
	if err := s.readAt(e.sumsPos()+skip/checksum.BlockSize*sumSize, sums); err != nil {
		return err
	}
	if e.flags == flagLost {
		return u.add(part, sums, nil)
	}
	data := buf[:part.length]
	if _, err := f.ReadAt(data, e.dataPos()+skip); err != nil {
		return fmt.Errorf("read undo file %s: %w", f.Name(), err)
	}
	return u.add(part, sums, data)
}

// refers reports whether a point has the disk.
func (mf *manifest) refers(id ident.DiskID) bool {
	return slices.ContainsFunc(mf.State.Points, func(p replica.Point) bool {
		return slices.ContainsFunc(p.Disks, func(d replica.Disk) bool { return d.ID == id })
	})
}

// collect deletes the files in the machine's folders that the manifest, as it is
// published, does not name. The caller has the machine's lock.
func (w *Writer) collect() error {
	keep := map[string]bool{}
	for _, n := range w.mf.Undo {
		keep[n] = true
	}
	for _, list := range [][]replica.Disk{w.mf.State.Spec.Disks, w.mf.Retired} {
		for _, d := range list {
			keep[filepath.Base(w.m.sumsPath(d.ID))] = true
			if d.Path == "" {
				keep[filepath.Base(w.m.imagePath(d))] = true
			}
		}
	}
	for _, dir := range []string{disksDir, sumsDir, undoDir} {
		names, err := w.m.store.fs.ReadDir(w.m.path(dir))
		if err != nil {
			return err
		}
		for _, n := range names {
			if keep[n] {
				continue
			}
			if err := w.m.store.removeIfExists(w.m.path(dir, n)); err != nil {
				return err
			}
		}
		if err := w.m.store.syncDir(w.m.path(dir)); err != nil {
			return err
		}
	}
	return nil
}
