package pageblob

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"drover/datapath/azstorage"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Writer changes one machine's replica; see [replica.Writer].
type Writer struct {
	m     machine
	epoch ident.Epoch
	// ctx ends with Close; it is for the calls that are given none.
	ctx    context.Context // see above
	cancel context.CancelFunc

	mu   sync.RWMutex // guards what follows against State and Leaves
	mf   *manifest    // as published; never changed in place
	tag  azstorage.Tag
	open map[ident.DiskID]*openDisk

	closed bool
	// doubt: something failed, or a request may still be under way. The next change
	// takes another session first, so that nothing late can be written.
	doubt bool
}

var _ replica.Writer = (*Writer)(nil)

// OpenWriter opens or makes the machine's replica, finishing what a crash broke off.
func (s *Store) OpenWriter(ctx context.Context, epoch ident.Epoch, spec replica.Spec) (replica.Writer, error) {
	w := &Writer{m: s.machine(spec.Machine), epoch: epoch}
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := w.start(ctx, spec); err != nil {
		return nil, fmt.Errorf("open replica of machine %s for writing: %w", spec.Machine, errors.Join(err, w.Close()))
	}
	return w, nil
}

func (w *Writer) start(ctx context.Context, spec replica.Spec) error {
	if err := errors.Join(replica.CheckSpec(spec), checkSpec(w.epoch, spec.Disks)); err != nil {
		return err
	}
	return w.session(ctx, func(mf *manifest) (*manifest, error) {
		if mf == nil {
			return w.create(ctx, spec)
		}
		return w.reopen(mf, spec), nil
	})
}

// session makes the writer the one that may write: by a state with a fence word of its
// own, and the word in all page blobs. change gives that state from the present one,
// nil when there is none. Then what a crash broke off is finished.
func (w *Writer) session(ctx context.Context, change func(*manifest) (*manifest, error)) error {
	var err error
	for range maxRaces {
		if err = w.begun(ctx, change); !errors.Is(err, errRaced) {
			break
		}
	}
	if errors.Is(err, errRaced) {
		return fmt.Errorf("%w, %d times: try again", err, maxRaces)
	}
	if err != nil {
		return err
	}
	return w.recover(ctx)
}

// begun publishes the state of a session; errRaced when another's change came first.
func (w *Writer) begun(ctx context.Context, change func(*manifest) (*manifest, error)) error {
	mf, cond, err := w.present(ctx)
	if err != nil {
		return err
	}
	if mf, err = change(mf); err != nil {
		return err
	}
	mf.State.Epoch, mf.Session = w.epoch, nextSession(mf.Session, w.m.store.now())
	tag, err := w.m.publish(ctx, mf, cond)
	if err != nil {
		return err
	}
	w.take(mf, tag)
	return nil
}

// present reads the state for a session; the removal of a machine is finished first.
func (w *Writer) present(ctx context.Context) (*manifest, azstorage.If, error) {
	mf, tag, err := w.m.loadAny(ctx)
	if err == nil && w.epoch < mf.State.Epoch {
		return nil, azstorage.If{}, fmt.Errorf("epoch %d, the store is at %d: %w", w.epoch, mf.State.Epoch, replica.ErrFenced)
	}
	if err == nil && mf.Removed {
		if err = w.m.finishRemove(ctx, mf); err == nil {
			err = replica.ErrNotFound
		}
	}
	if errors.Is(err, replica.ErrNotFound) {
		return nil, azstorage.If{Absent: true}, nil
	}
	if err != nil {
		return nil, azstorage.If{}, err
	}
	return mf.clone(), azstorage.If{Is: tag}, nil
}

// recover finishes what a crash, or an earlier session, broke off.
func (w *Writer) recover(ctx context.Context) error {
	if err := w.m.raise(ctx, w.mf); err != nil {
		return err
	}
	if err := w.m.reopenHolds(ctx); err != nil {
		return err
	}
	if err := w.finishDelete(ctx); err != nil {
		return err
	}
	if err := w.collect(ctx); err != nil {
		return err
	}
	return w.fitAll(ctx)
}

// create makes the blobs of a machine that is not there; they count only once its
// state is published.
func (w *Writer) create(ctx context.Context, spec replica.Spec) (*manifest, error) {
	mf := &manifest{Version: formatVersion, State: replica.State{Spec: spec, Epoch: w.epoch, Empty: true}, Data: map[ident.DiskID]int64{}}
	mf.State.Spec.Disks = slices.Clone(spec.Disks)
	for i := range mf.State.Spec.Disks {
		d := &mf.State.Spec.Disks[i]
		if d.Seed == 0 {
			d.Seed = replica.NewSeed()
		}
		if err := w.m.makeDisk(ctx, wordOf(w.epoch, 0), *d); err != nil {
			return nil, err
		}
	}
	return mf, nil
}

// reopen brings the manifest up to the spec: names, documents, grown disks.
func (w *Writer) reopen(mf *manifest, spec replica.Spec) *manifest {
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
		have.Size = max(have.Size, want.Size)
	}
	return mf
}

// begin starts a change: with the present state, and only as long as the session is
// the writer's.
func (w *Writer) begin(ctx context.Context) error {
	if w.closed {
		return errors.New("the writer is closed")
	}
	b, _, err := w.m.store.c.Changed(ctx, w.m.stateName(), maxJSON, w.tag)
	if errors.Is(err, azstorage.ErrNotFound) {
		return fmt.Errorf("replica of machine %s: %w", w.m.id, replica.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read the state of %s: %w", w.m.id, err)
	}
	if b != nil {
		if err := w.follow(b); err != nil {
			return err
		}
	}
	if w.doubt || w.late() {
		err := w.session(ctx, func(mf *manifest) (*manifest, error) {
			if mf == nil {
				return nil, fmt.Errorf("replica of machine %s: %w", w.m.id, replica.ErrNotFound)
			}
			return mf, nil
		})
		w.doubt = err != nil
		return err
	}
	return nil
}

// follow looks at a state that another has published, or this writer before its reply
// was lost.
func (w *Writer) follow(b []byte) error {
	mf, err := w.m.parse(b)
	if err != nil {
		return err
	}
	switch {
	case mf.Removed:
		return fmt.Errorf("replica of machine %s: %w", w.m.id, replica.ErrNotFound)
	case mf.word() != w.mf.word():
		return fmt.Errorf("writer of epoch %d, session %d; the store is at epoch %d, session %d: %w", w.epoch, w.mf.Session, mf.State.Epoch, mf.Session, replica.ErrFenced)
	}
	w.doubt = true
	return nil
}

// late reports whether a request had no answer, or none that tells whether it was
// done: it may be done later than the ones after it.
func (w *Writer) late() bool {
	for _, d := range w.open {
		if d.vhd.pacer.Unanswered()+d.sums.pacer.Unanswered() > 0 {
			return true
		}
	}
	return false
}

// commit publishes the manifest and takes it as the present one.
func (w *Writer) commit(ctx context.Context, mf *manifest) error {
	if err := w.m.store.step(failpoint.Manifest); err != nil {
		return err
	}
	tag, err := w.m.publish(ctx, mf, azstorage.If{Is: w.tag})
	if errors.Is(err, errRaced) {
		return errors.Join(replica.ErrFenced, err)
	}
	if err != nil {
		return err
	}
	w.take(mf, tag)
	return w.m.store.step(failpoint.Published)
}

func (w *Writer) take(mf *manifest, tag azstorage.Tag) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mf, w.tag = mf, tag
}

// changing runs a change of the writer's; when it fails nobody knows how far it came.
func (w *Writer) changing(ctx context.Context, f func() error) error {
	if err := w.begin(ctx); err != nil {
		return err
	}
	err := f()
	w.doubt = w.doubt || err != nil
	return err
}

// State gives the manifest as the writer last saw it. Holds are read anew.
func (w *Writer) State() replica.State {
	w.mu.RLock()
	mf := w.mf
	w.mu.RUnlock()
	s, err := w.m.state(w.ctx, mf)
	if err != nil { // holds cannot be read: say what is certain
		return mf.publicState()
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
		o := w.open[disk]
		if o == nil || slices.Contains(w.mf.Unknown, disk) {
			return nil, fmt.Errorf("checksums of disk %s: its content is unknown, begin a generation first", disk)
		}
		return leaves{ctx: w.ctx, cursor: o.cursor, disk: d}, nil
	}
	return nil, fmt.Errorf("checksums of disk %s of machine %s: %w", disk, w.m.id, replica.ErrNotFound)
}

// SetDocuments replaces the manifest's documents.
func (w *Writer) SetDocuments(ctx context.Context, docs map[string]string) error {
	err := replica.CheckDocuments(docs)
	if err == nil {
		err = w.changing(ctx, func() error {
			mf := w.mf.clone()
			mf.State.Spec.Documents = docs
			return w.commit(ctx, mf)
		})
	}
	if err != nil {
		return fmt.Errorf("set documents of %s: %w", w.m.id, err)
	}
	return nil
}

// Close ends the writer. What was applied is durable already.
func (w *Writer) Close() error {
	w.closed = true
	w.cancel()
	return nil
}
