package file

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// BeginGeneration starts a base copy on the same images. Beside what the caller
// asks for, disks are read again whose content is unknown, and all when a change
// set was written in part.
func (w *Writer) BeginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, progress func(done, total int64)) error {
	if err := w.beginGeneration(ctx, disks, rescan, progress); err != nil {
		return fmt.Errorf("begin a generation of machine %s: %w", w.m.id, err)
	}
	return nil
}

func (w *Writer) beginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, progress func(done, total int64)) error {
	if err := replica.CheckDisks(disks); err != nil {
		return err
	}
	unlock, err := w.begin(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	torn, err := w.m.loadPending()
	if err != nil {
		return err
	}
	mf := w.mf.clone()
	if err := w.takeDisks(mf, disks); err != nil {
		return err
	}
	mf.State.Generation++
	mf.State.Complete = false
	mf.State.Empty = mf.State.Empty && !torn.inFlight(mf.State.Position)
	if rescan || torn.inFlight(mf.State.Position) {
		mf.Unknown = mf.Unknown[:0]
		for _, d := range mf.State.Spec.Disks {
			mf.Unknown = append(mf.Unknown, d.ID)
		}
	}
	if err := w.commit(mf); err != nil {
		return err
	}
	if err := w.closeDisks(); err != nil {
		return err
	}
	if err := w.collect(); err != nil {
		return err
	}
	if err := w.fitAll(); err != nil {
		return err
	}
	if err := w.rescan(ctx, progress); err != nil {
		return err
	}
	return w.m.savePending(pending{})
}

func (w *Writer) closeDisks() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var err error
	for id, d := range w.open {
		err = errors.Join(err, d.close())
		delete(w.open, id)
	}
	return err
}

// takeDisks makes the list the machine's. Disks that left stay as retired ones
// while points refer to them.
func (w *Writer) takeDisks(mf *manifest, disks []replica.Disk) error {
	known := map[ident.DiskID]replica.Disk{}
	for _, list := range [][]replica.Disk{mf.State.Spec.Disks, mf.Retired} {
		for _, d := range list {
			known[d.ID] = d
		}
	}
	list := make([]replica.Disk, 0, len(disks))
	for _, d := range disks {
		var err error
		old, ok := known[d.ID]
		delete(known, d.ID)
		if !ok {
			d, err = w.newDisk(mf, d)
		} else {
			d, err = w.takeDisk(mf, old, d)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
		list = append(list, d)
	}
	mf.State.Spec.Disks, mf.Retired = list, nil
	for _, d := range known {
		if mf.refers(d.ID) {
			mf.Retired = append(mf.Retired, d)
		}
	}
	slices.SortFunc(mf.Retired, func(a, b replica.Disk) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return nil
}

func (w *Writer) newDisk(mf *manifest, d replica.Disk) (replica.Disk, error) {
	if d.Seed == 0 {
		d.Seed = replica.NewSeed()
	}
	if d.Path != "" {
		mf.State.Empty = false
		mf.Unknown = append(mf.Unknown, d.ID)
	}
	return d, w.m.clearDisk(d)
}

// takeDisk goes on with a disk that the store has. Its seed stays.
func (w *Writer) takeDisk(mf *manifest, old, d replica.Disk) (replica.Disk, error) {
	d.Seed = old.Seed
	if !samePlace(d.Path, old.Path) {
		if mf.refers(d.ID) {
			return d, fmt.Errorf("it moves from %q to %q, but recovery points need it where it was: attach that disk, or remove the machine's replica from this store", old.Path, d.Path)
		}
		mf.State.Empty = false
		if !slices.Contains(mf.Unknown, d.ID) {
			mf.Unknown = append(mf.Unknown, d.ID)
		}
		return d, nil
	}
	if d.Size != old.Size {
		return d, w.resize(mf, old, d.Size)
	}
	return d, nil
}

// rescan reads the disks of unknown content and makes their sums anew.
func (w *Writer) rescan(ctx context.Context, progress func(done, total int64)) error {
	var todo []replica.Disk
	var total, done int64
	for _, d := range w.mf.State.Spec.Disks {
		if slices.Contains(w.mf.Unknown, d.ID) {
			todo, total = append(todo, d), total+d.Size
		}
	}
	if len(todo) == 0 {
		return nil
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	for _, d := range todo {
		err := w.rescanDisk(ctx, d, func(n int64) { progress(done+n, total) })
		if err != nil {
			return fmt.Errorf("read disk %s again: %w", d.ID, err)
		}
		done += d.Size
	}
	mf := w.mf.clone()
	mf.Unknown = nil
	if p := mf.newest(); p != nil && w.undo != nil {
		p.UndoBytes = w.undo.bytes()
	}
	return w.commit(mf)
}

// rescanDisk writes the sums to a new file, which replaces the old one when all
// is read. Blocks that are not what they were are noted as lost in the newest
// point's undo first, so that points do not show the new content as theirs.
func (w *Writer) rescanDisk(ctx context.Context, d replica.Disk, progress func(int64)) (err error) {
	tmp := w.m.path(sumsDir, "."+d.ID.String()+".tmp")
	if err := w.m.store.removeIfExists(tmp); err != nil {
		return err
	}
	fresh, err := openSums(w.m.store.fs, tmp, true)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, fresh.close(), w.m.store.removeIfExists(tmp))
		}
	}()
	o := w.open[d.ID]
	var u *undoAppender
	if w.mf.newest() != nil {
		if u, err = w.newestUndo(); err != nil {
			return err
		}
	}
	err = o.img.rescan(ctx, d.Seed, 0, d.Size, func(first int64, sums []uint64) error {
		if u != nil {
			if err := noteLost(u, o, first, sums); err != nil {
				return err
			}
		}
		progress(min(d.Size, (first+int64(len(sums)))*checksum.BlockSize))
		return fresh.write(first, sums)
	})
	if err != nil {
		w.dropUndo()
		return err
	}
	if u != nil {
		if err := u.sync(); err != nil {
			return err
		}
	}
	return w.replaceSums(o, fresh, tmp)
}

func (w *Writer) replaceSums(o *openDisk, fresh *sumsFile, tmp string) error {
	if err := fresh.sync(); err != nil {
		return err
	}
	if err := w.m.store.fs.Rename(tmp, w.m.sumsPath(o.disk.ID)); err != nil {
		return spaceErr(err)
	}
	if err := w.m.store.syncDir(w.m.path(sumsDir)); err != nil {
		return err
	}
	w.mu.Lock()
	old := o.sums
	o.sums = fresh
	w.mu.Unlock()
	return old.close()
}

// noteLost adds what differs from the known sums and was not saved before.
func noteLost(u *undoAppender, o *openDisk, first int64, sums []uint64) error {
	known := make([]uint64, len(sums))
	if err := o.sums.read(first, known); err != nil {
		return err
	}
	changed := newBlockSet()
	for i := range sums {
		if sums[i] != known[i] {
			changed.add(first+int64(i), first+int64(i)+1)
		}
	}
	return changed.eachRun(u.saved[o.disk.ID], func(from, to int64) error {
		e := entry{disk: o.disk.ID, flags: flagLost, offset: from * checksum.BlockSize}
		e.length = min(to*checksum.BlockSize, o.disk.Size) - e.offset
		return u.add(e, known[from-first:to-first], nil)
	})
}
