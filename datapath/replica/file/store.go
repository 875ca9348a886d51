// Package file keeps machines' replicas in a directory: one sparse image per
// disk (or a disk attached to a master target), a map of checksums, and for each
// recovery point an undo file with what was overwritten after it.
//
// The layout is described in FORMAT.md. Several processes may use one store at
// once: writers exclude each other by file locks and the epoch, readers take no
// lock.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"drover/datapath/durable"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

const (
	machinesDir  = "machines"
	documentsDir = "documents"
	identityName = "store.json"
	removedMark  = ".removed-" // prefix of machines that are being deleted
	dirMode      = 0o750
	fileMode     = 0o640
)

// Store is a directory of replicas. It is safe for concurrent use.
type Store struct {
	fs  vfs.FS
	dir string
	now func() time.Time
	// failpoint is called at each durable step; tests set it to break off there.
	failpoint func(step string) error
}

var _ replica.Store = (*Store)(nil)

// Open opens the store in the directory, making it when absent, and finishes the
// deletion of machines that was broken off.
func Open(dir string) (*Store, error) { return OpenFS(vfs.OS, dir) }

// OpenFS is Open on another file system. Disks outside the store stay on the
// system's.
func OpenFS(fsys vfs.FS, dir string) (*Store, error) {
	for _, d := range []string{"", machinesDir, documentsDir} {
		if err := durable.MkdirAll(fsys, filepath.Join(dir, d), dirMode); err != nil {
			return nil, fmt.Errorf("open replica store %s: %w", dir, spaceErr(err))
		}
	}
	s := &Store{fs: fsys, dir: dir, now: time.Now}
	names, err := fsys.ReadDir(filepath.Join(dir, machinesDir))
	if err != nil {
		return nil, fmt.Errorf("open replica store %s: %w", dir, err)
	}
	for _, n := range names {
		if !strings.HasPrefix(n, removedMark) {
			continue
		}
		if err := fsys.RemoveAll(filepath.Join(dir, machinesDir, n)); err != nil {
			return nil, fmt.Errorf("open replica store: finish the removal of %s: %w", n, err)
		}
	}
	return s, nil
}

// IsStore gives an error unless the directory is a replica store; it makes nothing.
func IsStore(dir string) error {
	info, err := os.Stat(filepath.Join(dir, machinesDir))
	if err == nil && info.IsDir() {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%s is not a replica store: it has no directory %s", dir, machinesDir)
}

// ID reads the store's identity, making it when there is none.
func (s *Store) ID(context.Context) (string, error) {
	id, err := durable.Identity(s.fs, filepath.Join(s.dir, identityName))
	if err != nil {
		return "", fmt.Errorf("identity of replica store %s: %w", s.dir, spaceErr(err))
	}
	return id, nil
}

// Close ends the use of the store. Writers and readers are closed by their owners.
func (s *Store) Close() error { return nil }

// step is a place where a crash must do no harm.
func (s *Store) step(name string) error {
	failpoint.Hit(name)
	if s.failpoint == nil {
		return nil
	}
	return s.failpoint(name)
}

func (s *Store) machine(id ident.MachineID) machine {
	return machine{store: s, id: id, dir: filepath.Join(s.dir, machinesDir, id.String())}
}

// Fence raises the epoch. It waits for a change that is being made by an older
// writer: after it returns, that writer changes nothing more.
func (s *Store) Fence(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	m := s.machine(id)
	unlock, err := m.lock(ctx)
	if err != nil {
		return fmt.Errorf("fence replica of %s: %w", id, err)
	}
	defer unlock()
	mf, err := m.load()
	if err != nil {
		return fmt.Errorf("fence replica of %s: %w", id, err)
	}
	if epoch < mf.State.Epoch {
		return fmt.Errorf("fence replica of %s at epoch %d: it is at %d already: %w", id, epoch, mf.State.Epoch, replica.ErrFenced)
	}
	if epoch == mf.State.Epoch {
		return nil
	}
	mf.State.Epoch = epoch
	if err := m.publish(mf); err != nil {
		return fmt.Errorf("fence replica of %s: %w", id, err)
	}
	return nil
}

// Machines lists the machines that have a manifest, in order of their ids.
func (s *Store) Machines(_ context.Context) ([]ident.MachineID, error) {
	names, err := s.fs.ReadDir(filepath.Join(s.dir, machinesDir))
	if err != nil {
		return nil, fmt.Errorf("list machines of replica store: %w", err)
	}
	var out []ident.MachineID
	for _, n := range names {
		id, err := ident.ParseMachineID(n)
		if err != nil {
			continue // not ours, or being removed
		}
		if _, err := s.fs.Stat(s.machine(id).path(manifestName)); err == nil {
			out = append(out, id)
		}
	}
	return out, nil
}

// Remove deletes the machine's directory. Disks outside the store (Path) are left
// as they are. A machine that is not there is no error, so that it can be retried.
func (s *Store) Remove(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	if err := s.remove(ctx, id, epoch); err != nil && !errors.Is(err, replica.ErrNotFound) {
		return fmt.Errorf("remove replica of %s: %w", id, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	m := s.machine(id)
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	unlockHolds, err := m.lockHolds(ctx)
	if err != nil {
		return err
	}
	defer unlockHolds()
	mf, err := m.load()
	if err != nil {
		return err
	}
	if epoch < mf.State.Epoch {
		return fmt.Errorf("epoch %d, the store is at %d: %w", epoch, mf.State.Epoch, replica.ErrFenced)
	}
	holds, err := m.loadHolds()
	if err != nil {
		return err
	}
	for _, p := range mf.State.Points {
		if h := replica.LiveHolds(holds[p.ID], s.now()); len(h) > 0 {
			return fmt.Errorf("point %d is held by %q until %s: %w", p.ID, h[0].Owner, h[0].Expires.Format(time.RFC3339), replica.ErrHeld)
		}
	}
	gone := filepath.Join(s.dir, machinesDir, removedMark+uuid.NewString())
	if err := s.fs.Rename(m.dir, gone); err != nil {
		return err
	}
	if err := s.syncDir(filepath.Dir(m.dir)); err != nil {
		return err
	}
	return s.fs.RemoveAll(gone)
}

// PutDocument keeps the document durably, replacing one of the same name.
func (s *Store) PutDocument(_ context.Context, name string, content []byte) error {
	if err := replica.CheckDocument(name, content); err != nil {
		return fmt.Errorf("put document %q: %w", name, err)
	}
	if err := s.writeFile(filepath.Join(s.dir, documentsDir, name), content); err != nil {
		return fmt.Errorf("put document %s: %w", name, err)
	}
	return nil
}

// RemoveDocument removes the document durably.
func (s *Store) RemoveDocument(_ context.Context, name string) error {
	if err := replica.CheckDocument(name, nil); err != nil {
		return fmt.Errorf("remove document %q: %w", name, err)
	}
	err := s.fs.Remove(filepath.Join(s.dir, documentsDir, name))
	if err == nil {
		err = s.syncDir(filepath.Join(s.dir, documentsDir))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove document %s: %w", name, err)
	}
	return nil
}

// Documents reads all documents.
func (s *Store) Documents(_ context.Context) (map[string][]byte, error) {
	dir := filepath.Join(s.dir, documentsDir)
	names, err := s.fs.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read documents of replica store: %w", err)
	}
	out := map[string][]byte{}
	for _, n := range names {
		if !replica.DocumentName(n) {
			continue
		}
		b, err := s.readFile(filepath.Join(dir, n), replica.MaxDocument)
		if err != nil {
			return nil, fmt.Errorf("read document %s: %w", n, err)
		}
		out[n] = b
	}
	return out, nil
}

// spaceErr marks the errors that only room can cure.
func spaceErr(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", replica.ErrNoSpace, err)
	}
	return err
}

// readFile reads a small file whole. One that is larger than ours can be is damage.
func (s *Store) readFile(path string, limit int64) ([]byte, error) {
	b, err := vfs.ReadFile(s.fs, path, limit)
	if errors.Is(err, vfs.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", replica.ErrCorrupt, err)
	}
	return b, err
}

// writeFile replaces the file durably: whole or not at all.
func (s *Store) writeFile(path string, content []byte) error {
	if len(content) > maxFileBytes {
		return fmt.Errorf("write %s: %d bytes, at most %d can be read again", path, len(content), maxFileBytes)
	}
	return spaceErr(durable.WriteFileOn(s.fs, path, content, fileMode))
}

// syncDir makes names in the directory durable.
func (s *Store) syncDir(dir string) error { return spaceErr(s.fs.SyncDir(dir)) }

func (s *Store) removeIfExists(path string) error {
	if err := s.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spaceErr(err)
	}
	return nil
}

// removeTemps deletes what interrupted replacements left in the directory.
func (s *Store) removeTemps(dir string) error {
	names, err := s.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, ".") && strings.HasSuffix(n, durable.TempSuffix) {
			if err := s.removeIfExists(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}
