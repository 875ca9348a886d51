package file

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"drover/datapath/checksum"
	"drover/datapath/durable"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Writer changes one machine's replica; see [replica.Writer].
type Writer struct {
	m     machine
	epoch ident.Epoch

	mu     sync.RWMutex // guards what follows against State and Leaves
	mf     *manifest    // as published; never changed in place
	stamp  stamp        // of mf
	open   map[ident.DiskID]*openDisk
	closed bool

	// undo is the newest point's file, kept open between change sets.
	undo      *undoAppender
	undoPoint ident.Seq
}

var _ replica.Writer = (*Writer)(nil)

// openDisk is a disk that the writer has open.
type openDisk struct {
	disk replica.Disk
	img  *image
	sums *sumsFile
}

func (d *openDisk) close() error { return errors.Join(d.img.close(), d.sums.close()) }

// OpenWriter opens or makes the machine's replica, finishing what a crash broke
// off: a deletion of points, a change of a disk's size, a torn undo file.
func (s *Store) OpenWriter(ctx context.Context, epoch ident.Epoch, spec replica.Spec) (replica.Writer, error) {
	w := &Writer{m: s.machine(spec.Machine), epoch: epoch, open: map[ident.DiskID]*openDisk{}}
	if err := w.start(ctx, spec); err != nil {
		return nil, fmt.Errorf("open replica of machine %s for writing: %w", spec.Machine, errors.Join(err, w.Close()))
	}
	return w, nil
}

func (w *Writer) start(ctx context.Context, spec replica.Spec) error {
	if err := replica.CheckSpec(spec); err != nil {
		return err
	}
	for _, d := range []string{"", disksDir, sumsDir, undoDir} {
		if err := durable.MkdirAll(w.m.store.fs, w.m.path(d), dirMode); err != nil {
			return spaceErr(err)
		}
	}
	unlock, err := w.m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	mf, err := w.m.load()
	switch {
	case errors.Is(err, replica.ErrNotFound):
		mf, err = w.create(spec)
	case err == nil:
		mf, err = w.reopen(mf, spec)
	}
	if err != nil {
		return err
	}
	if err := w.m.makePending(); err != nil {
		return err
	}
	if err := w.commit(mf); err != nil {
		return err
	}
	return w.recover()
}

func (w *Writer) create(spec replica.Spec) (*manifest, error) {
	mf := &manifest{Version: manifestVersion, State: replica.State{Spec: spec, Epoch: w.epoch, Empty: true}}
	mf.State.Spec.Disks = slices.Clone(spec.Disks)
	for i := range mf.State.Spec.Disks {
		d := &mf.State.Spec.Disks[i]
		if d.Seed == 0 {
			d.Seed = replica.NewSeed()
		}
		if d.Path != "" {
			mf.State.Empty = false
			mf.Unknown = append(mf.Unknown, d.ID)
		}
		if err := w.m.clearDisk(*d); err != nil {
			return nil, err
		}
	}
	return mf, w.m.store.syncDir(w.m.path())
}

// clearDisk removes what an earlier, unfinished attempt left of a disk.
func (m machine) clearDisk(d replica.Disk) error {
	if err := m.store.removeIfExists(m.sumsPath(d.ID)); err != nil {
		return err
	}
	d.Path = ""
	return m.store.removeIfExists(m.imagePath(d))
}

// reopen brings the manifest up to the spec: names, documents, grown disks.
func (w *Writer) reopen(mf *manifest, spec replica.Spec) (*manifest, error) {
	if w.epoch < mf.State.Epoch {
		return nil, fmt.Errorf("epoch %d, the store is at %d: %w", w.epoch, mf.State.Epoch, replica.ErrFenced)
	}
	mf = mf.clone()
	mf.State.Epoch = w.epoch
	mf.State.Spec.Name, mf.State.Spec.KeyID = spec.Name, spec.KeyID
	if spec.Documents != nil {
		mf.State.Spec.Documents = spec.Documents
	}
	for i := range mf.State.Spec.Disks {
		have := &mf.State.Spec.Disks[i]
		j := slices.IndexFunc(spec.Disks, func(d replica.Disk) bool { return d.ID == have.ID })
		if j < 0 {
			continue
		}
		want := spec.Disks[j]
		have.Name, have.BackingUUID = want.Name, want.BackingUUID
		if !samePlace(want.Path, have.Path) {
			continue // another place: the caller begins a generation
		}
		have.Path = want.Path
		if want.Size > have.Size {
			if err := w.resize(mf, *have, want.Size); err != nil {
				return nil, err
			}
			have.Size = want.Size
		}
	}
	return mf, nil
}

// resize saves what the change of size will alter in the image; the image itself
// follows in fit, when the manifest says the new size.
func (w *Writer) resize(mf *manifest, d replica.Disk, size int64) error {
	if d.Path != "" && !slices.Contains(mf.Unknown, d.ID) {
		mf.Unknown = append(mf.Unknown, d.ID)
	}
	p := mf.newest()
	first, end := min(d.Size, size)/checksum.BlockSize, checksum.Blocks(d.Size)
	if p == nil || first >= end {
		return nil
	}
	u, err := openUndo(w.m.store.fs, w.m.undoPath(mf.Undo[len(mf.Undo)-1]), w.m.id, p.ID, undoHeaderSize+p.UndoBytes)
	if err != nil {
		return err
	}
	err = w.saveMissing(u, d, first, end)
	if err == nil {
		err = u.sync()
	}
	p.UndoBytes = u.bytes()
	w.dropUndo()
	return errors.Join(err, u.close())
}

// saveMissing saves the blocks' old content unless that was done before.
func (w *Writer) saveMissing(u *undoAppender, d replica.Disk, first, end int64) error {
	o, err := w.openFiles(d)
	if err != nil {
		return err
	}
	defer func() { _ = o.close() }() // only read
	blocks := newBlockSet()
	blocks.add(first, end)
	buf := make([]byte, ioBytes)
	known := &sumsWindow{s: o.sums}
	return blocks.eachRun(u.saved[d.ID], func(from, to int64) error {
		return u.saveOld(d, o.img, known, from, to, buf)
	})
}

func (w *Writer) openFiles(d replica.Disk) (*openDisk, error) {
	img, err := w.m.openImage(d, true)
	if err != nil {
		return nil, err
	}
	sums, err := openSums(w.m.store.fs, w.m.sumsPath(d.ID), true)
	if err != nil {
		return nil, errors.Join(err, img.close())
	}
	return &openDisk{disk: d, img: img, sums: sums}, nil
}

// recover finishes what a crash broke off. The manifest is published already.
func (w *Writer) recover() error {
	if err := w.m.store.removeTemps(w.m.path()); err != nil {
		return err
	}
	if err := w.collect(); err != nil {
		return err
	}
	if err := w.fitAll(); err != nil {
		return err
	}
	if err := w.cutTornUndo(); err != nil {
		return err
	}
	return w.finishDelete()
}

// cutTornUndo cuts tails that were being appended when the writer broke off.
func (w *Writer) cutTornUndo() error {
	for i, p := range w.mf.State.Points {
		path := w.m.undoPath(w.mf.Undo[i])
		st, err := w.m.store.fs.Stat(path)
		if err != nil {
			return fmt.Errorf("undo file of point %d: %w", p.ID, err)
		}
		if st.Size == undoHeaderSize+p.UndoBytes {
			continue
		}
		u, err := openUndo(w.m.store.fs, path, w.m.id, p.ID, undoHeaderSize+p.UndoBytes)
		if err != nil {
			return fmt.Errorf("undo file of point %d: %w", p.ID, err)
		}
		if err := errors.Join(u.sync(), u.close()); err != nil {
			return err
		}
	}
	return nil
}

// fitAll opens the machine's disks and gives images and sums the disks' sizes.
func (w *Writer) fitAll() error {
	for _, d := range w.mf.State.Spec.Disks {
		o, err := w.openFiles(d)
		if err != nil {
			return err
		}
		w.mu.Lock()
		old := w.open[d.ID]
		w.open[d.ID] = o
		w.mu.Unlock()
		if old != nil {
			_ = old.close() // replaced: written data was synced by whoever wrote it
		}
		if err := w.fit(o); err != nil {
			return fmt.Errorf("disk %s: %w", d.ID, err)
		}
	}
	return errors.Join(w.m.store.syncDir(w.m.path(disksDir)), w.m.store.syncDir(w.m.path(sumsDir)))
}

// fit gives the image the disk's size. The sums of blocks at the old and the new
// end are computed anew, for their length changes; they are durable first, so
// that an image of the right size says that all was done.
func (w *Writer) fit(o *openDisk) error {
	st, err := o.img.f.Stat()
	if err != nil {
		return err
	}
	if o.img.outside || st.Size == o.disk.Size {
		return errors.Join(o.img.ensureSize(o.disk.Size), o.sums.resize(o.disk.Size))
	}
	if err := o.sums.resize(o.disk.Size); err != nil {
		return err
	}
	buf := make([]byte, checksum.BlockSize)
	for _, end := range []int64{st.Size, o.disk.Size} {
		offset := end / checksum.BlockSize * checksum.BlockSize
		n := min(checksum.BlockSize, o.disk.Size-offset)
		if end%checksum.BlockSize == 0 || n <= 0 {
			continue
		}
		if err := o.img.read(buf[:n], offset); err != nil {
			return err
		}
		if err := o.sums.write(offset/checksum.BlockSize, checksum.SumAll(nil, o.disk.Seed, offset, buf[:n])); err != nil {
			return err
		}
	}
	if err := o.sums.sync(); err != nil {
		return err
	}
	if err := o.img.ensureSize(o.disk.Size); err != nil {
		return err
	}
	return o.img.sync()
}

// begin starts a change: under the machine's lock, with the present manifest, and
// only as long as the epoch is the writer's.
func (w *Writer) begin(ctx context.Context) (unlock func(), err error) {
	if w.closed {
		return nil, errors.New("the writer is closed")
	}
	release, err := w.m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	st, err := w.m.stamp()
	if err != nil {
		return nil, err
	}
	if st != w.stamp {
		if err = w.reload(st); err != nil {
			return nil, err
		}
	}
	if w.mf.State.Epoch != w.epoch {
		return nil, fmt.Errorf("writer of epoch %d, the store is at %d: %w", w.epoch, w.mf.State.Epoch, replica.ErrFenced)
	}
	return release, nil
}

// reload takes over what is published, by another handle or by this one before it
// failed. It may not be durable yet, and must be before anything relies on it.
func (w *Writer) reload(st stamp) error {
	mf, err := w.m.load()
	if err != nil {
		return err
	}
	if err := w.m.store.syncDir(w.m.path()); err != nil {
		return err
	}
	w.mu.Lock()
	w.mf, w.stamp = mf, st
	w.mu.Unlock()
	w.dropUndo()
	if mf.State.Epoch != w.epoch {
		return nil // fenced: nothing is opened any more
	}
	return w.fitAll()
}

// commit publishes the manifest and takes it as the present one.
func (w *Writer) commit(mf *manifest) error {
	if err := w.m.store.step(failpoint.Manifest); err != nil {
		return err
	}
	if err := w.m.publish(mf); err != nil {
		return err
	}
	st, err := w.m.stamp()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.mf, w.stamp = mf, st
	w.mu.Unlock()
	return w.m.store.step(failpoint.Published)
}

// doubt has the next change open all files anew: after a sync that failed, another
// one on the same file says nothing.
func (w *Writer) doubt() {
	w.dropUndo() // its tail may be torn; it is checked when opened again
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stamp = stamp{}
}

func (w *Writer) dropUndo() {
	_ = w.undo.close() // what mattered was synced
	w.undo = nil
}

// State gives the manifest as the writer last saw it. Holds are read anew.
func (w *Writer) State() replica.State {
	w.mu.RLock()
	mf := w.mf
	w.mu.RUnlock()
	s, err := w.m.state(mf)
	if err != nil { // holds or the mark cannot be read: say what is certain
		s = mf.clone().State
		s.Empty = false
	}
	return s
}

// Leaves gives the sums of one of the machine's disks. They stay right while
// change sets are applied, until the writer is closed.
func (w *Writer) Leaves(disk ident.DiskID) (checksum.Leaves, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	for _, d := range w.mf.State.Spec.Disks {
		if d.ID != disk {
			continue
		}
		if slices.Contains(w.mf.Unknown, disk) {
			return nil, fmt.Errorf("checksums of disk %s: its content is unknown, begin a generation first", disk)
		}
		return leaves{w: w, disk: disk, n: checksum.Blocks(d.Size)}, nil
	}
	return nil, fmt.Errorf("checksums of disk %s of machine %s: %w", disk, w.m.id, replica.ErrNotFound)
}

// SetDocuments replaces the manifest's documents.
func (w *Writer) SetDocuments(ctx context.Context, docs map[string]string) error {
	if err := replica.CheckDocuments(docs); err != nil {
		return fmt.Errorf("set documents of %s: %w", w.m.id, err)
	}
	unlock, err := w.begin(ctx)
	if err != nil {
		return fmt.Errorf("set documents of %s: %w", w.m.id, err)
	}
	defer unlock()
	mf := w.mf.clone()
	mf.State.Spec.Documents = docs
	if err := w.commit(mf); err != nil {
		return fmt.Errorf("set documents of %s: %w", w.m.id, err)
	}
	return nil
}

// Close closes the writer's files. What was applied is durable already.
func (w *Writer) Close() error {
	w.closed = true
	err := w.undo.close()
	w.undo = nil
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, d := range w.open {
		err = errors.Join(err, d.close())
		delete(w.open, id)
	}
	return err
}
