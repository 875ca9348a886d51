package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

const (
	manifestName    = "manifest.json"
	manifestVersion = 1
	lockName        = "lock"
	holdsName       = "holds.json"
	holdsLockName   = "holds.lock"
	pendingName     = "pending"
	disksDir        = "disks"
	sumsDir         = "sums"
	undoDir         = "undo"

	pendingSize    = 48
	pendingMagic   = "DPN1"
	maxFileBytes   = 64 << 20 // of a file that is read or replaced whole
	maxLockReopens = 100      // a lock whose directory was removed meanwhile is opened anew
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest is what manifest.json says. Points' holds are kept apart.
type manifest struct {
	Version int           `json:"version"`
	State   replica.State `json:"state"`
	// Retired disks left the machine, but points still refer to their images.
	Retired []replica.Disk `json:"retired,omitempty"`
	// Unknown disks' content was never compared with their checksums.
	Unknown []ident.DiskID `json:"unknown,omitempty"`
	Undo    []string       `json:"undo"` // names of the points' undo files, one per point
}

// clone copies all that a mutation changes, so that the old one stays as it was.
func (mf *manifest) clone() *manifest {
	c := *mf
	c.State.Spec.Disks = append([]replica.Disk(nil), mf.State.Spec.Disks...)
	c.State.Points = append([]replica.Point(nil), mf.State.Points...)
	c.Retired = append([]replica.Disk(nil), mf.Retired...)
	c.Unknown = append([]ident.DiskID(nil), mf.Unknown...)
	c.Undo = append([]string(nil), mf.Undo...)
	return &c
}

// newest gives the last point, or nil.
func (mf *manifest) newest() *replica.Point {
	if n := len(mf.State.Points); n > 0 {
		return &mf.State.Points[n-1]
	}
	return nil
}

func (mf *manifest) point(id ident.Seq) int {
	for i := range mf.State.Points {
		if mf.State.Points[i].ID == id {
			return i
		}
	}
	return -1
}

// disk finds a present or retired disk.
func (mf *manifest) disk(id ident.DiskID) (replica.Disk, bool) {
	for _, list := range [][]replica.Disk{mf.State.Spec.Disks, mf.Retired} {
		for _, d := range list {
			if d.ID == id {
				return d, true
			}
		}
	}
	return replica.Disk{}, false
}

// machine is the directory of one machine.
type machine struct {
	store *Store
	id    ident.MachineID
	dir   string
}

func (m machine) path(name ...string) string {
	return filepath.Join(append([]string{m.dir}, name...)...)
}

func (m machine) undoPath(name string) string { return m.path(undoDir, name) }

func undoName(p replica.Point) string { return fmt.Sprintf("%020d-%d.undo", p.ID, p.Generation) }

// stamp tells whether the manifest was replaced.
type stamp struct {
	id       vfs.ID
	modified int64
	size     int64
}

func (m machine) stamp() (stamp, error) {
	st, err := m.store.fs.Stat(m.path(manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, fmt.Errorf("replica of machine %s: %w", m.id, replica.ErrNotFound)
	}
	if err != nil {
		return stamp{}, fmt.Errorf("manifest of %s: %w", m.id, err)
	}
	return stamp{st.ID, st.Modified, st.Size}, nil
}

func (m machine) load() (*manifest, error) {
	b, err := m.store.readFile(m.path(manifestName), maxFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replica of machine %s: %w", m.id, replica.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", m.id, err)
	}
	mf, err := m.parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", m.path(manifestName), err)
	}
	return mf, nil
}

// parseManifest reads a manifest and holds it to what a writer would write.
func (m machine) parseManifest(b []byte) (*manifest, error) {
	mf := new(manifest)
	err := json.Unmarshal(b, mf)
	if mf.Version != manifestVersion && (err == nil || mf.Version != 0) {
		return nil, fmt.Errorf("%w: %d, this program reads %d: use the release that wrote it", replica.ErrVersion, mf.Version, manifestVersion)
	}
	if err == nil {
		err = mf.validate(m.id)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", replica.ErrCorrupt, err)
	}
	return mf, nil
}

func (mf *manifest) validate(id ident.MachineID) error {
	if mf.State.Spec.Machine != id || len(mf.Undo) != len(mf.State.Points) {
		return fmt.Errorf("it is of machine %s with %d points and %d undo files: it was moved or edited",
			mf.State.Spec.Machine, len(mf.State.Points), len(mf.Undo))
	}
	if err := errors.Join(replica.CheckDisks(mf.State.Spec.Disks), replica.CheckEachDisk(mf.Retired)); err != nil {
		return err
	}
	for i, p := range mf.State.Points {
		if mf.Undo[i] != undoName(p) || p.UndoBytes < 0 || i > 0 && p.ID <= mf.State.Points[i-1].ID {
			return fmt.Errorf("point %d with undo file %q of %d bytes", p.ID, mf.Undo[i], p.UndoBytes)
		}
		if err := replica.CheckDisks(p.Disks); err != nil {
			return fmt.Errorf("point %d: %w", p.ID, err)
		}
	}
	return nil
}

// publish makes the manifest the machine's state, durably and at once.
func (m machine) publish(mf *manifest) error {
	c := mf.clone()
	for i := range c.State.Points {
		c.State.Points[i].Holds = nil
	}
	c.State.UsedBytes = 0
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("write manifest of %s: %w", m.id, err)
	}
	if err := m.store.writeFile(m.path(manifestName), b); err != nil {
		return fmt.Errorf("write manifest of %s: %w", m.id, err)
	}
	return nil
}

// lock excludes other changes of the machine, in this and other processes.
func (m machine) lock(ctx context.Context) (unlock func(), err error) {
	return m.flock(ctx, lockName)
}

// lockHolds excludes other changes of holds. It is taken after lock, never before.
func (m machine) lockHolds(ctx context.Context) (unlock func(), err error) {
	return m.flock(ctx, holdsLockName)
}

func (m machine) flock(ctx context.Context, name string) (func(), error) {
	path := m.path(name)
	for range maxLockReopens {
		f, err := m.store.fs.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("replica of machine %s: %w", m.id, replica.ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, spaceErr(err))
		}
		if err := vfs.Lock(ctx, f); err != nil {
			_ = f.Close()
			return nil, err
		}
		if m.store.sameFile(f, path) {
			return func() { _ = f.Close() }, nil // closing ends the lock
		}
		_ = f.Close() // removed while we waited
	}
	return nil, fmt.Errorf("lock %s: removed and made again %d times", path, maxLockReopens)
}

func (s *Store) sameFile(f vfs.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := s.fs.Stat(path)
	return err == nil && a.ID == b.ID
}

// loadHolds reads all holds, also those that expired.
func (m machine) loadHolds() (map[ident.Seq][]replica.Hold, error) {
	b, err := m.store.readFile(m.path(holdsName), maxFileBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return map[ident.Seq][]replica.Hold{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read holds of %s: %w", m.id, err)
	}
	out := map[ident.Seq][]replica.Hold{}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("read holds %s: %w: %w", m.path(holdsName), replica.ErrCorrupt, err)
	}
	if out == nil { // "null"
		return nil, fmt.Errorf("read holds %s: %w: no holds in it", m.path(holdsName), replica.ErrCorrupt)
	}
	return out, nil
}

func (m machine) saveHolds(holds map[ident.Seq][]replica.Hold) error {
	b, err := json.Marshal(holds)
	if err != nil {
		return fmt.Errorf("write holds of %s: %w", m.id, err)
	}
	if err := m.store.writeFile(m.path(holdsName), b); err != nil {
		return fmt.Errorf("write holds of %s: %w", m.id, err)
	}
	return nil
}

// state gives the public state: the manifest, with holds and the room used.
func (m machine) state(mf *manifest) (replica.State, error) {
	s := mf.clone().State
	holds, err := m.loadHolds()
	if err != nil {
		return replica.State{}, err
	}
	for i := range s.Points {
		s.Points[i].Holds = replica.LiveHolds(holds[s.Points[i].ID], m.store.now())
		s.UsedBytes += s.Points[i].UndoBytes
	}
	p, err := m.loadPending()
	if err != nil {
		return replica.State{}, err
	}
	s.Empty = s.Empty && !p.inFlight(s.Position)
	for _, list := range [][]replica.Disk{mf.State.Spec.Disks, mf.Retired} {
		for _, d := range list {
			if d.Path == "" {
				s.UsedBytes += m.store.allocated(m.imagePath(d))
			}
			s.UsedBytes += m.store.allocated(m.sumsPath(d.ID))
		}
	}
	return s, nil
}

// allocated is what the file takes on the disk; holes do not count.
func (s *Store) allocated(path string) int64 {
	st, err := s.fs.Stat(path)
	if err != nil {
		return 0
	}
	return st.Allocated
}

// pending names the change set whose writing to the images was begun last. When
// the position is not yet past it, the images may hold a part of it.
type pending struct {
	seq    ident.Seq
	digest ident.Digest
}

func (p pending) inFlight(pos ident.Position) bool { return p.seq > pos.Seq }

func (m machine) loadPending() (pending, error) {
	b, err := m.store.readFile(m.path(pendingName), pendingSize)
	if errors.Is(err, fs.ErrNotExist) {
		return pending{}, nil
	}
	if err != nil {
		return pending{}, fmt.Errorf("read pending mark of %s: %w", m.id, err)
	}
	if len(b) != pendingSize || string(b[:4]) != pendingMagic ||
		crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return pending{}, nil // torn: it was not durable, so nothing was written after it
	}
	p := pending{seq: ident.Seq(binary.LittleEndian.Uint64(b[8:]))}
	copy(p.digest[:], b[16:])
	return p, nil
}

// makePending makes the mark when there is none. Its name is durable with the next
// manifest, before it is needed.
func (m machine) makePending() error {
	_, err := m.store.fs.Stat(m.path(pendingName))
	if errors.Is(err, fs.ErrNotExist) {
		return m.savePending(pending{})
	}
	return err
}

// savePending writes the mark in place: one sync, no new name.
func (m machine) savePending(p pending) error {
	b := make([]byte, pendingSize)
	copy(b, pendingMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(p.seq))
	copy(b[16:], p.digest[:])
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	f, err := m.store.fs.OpenFile(m.path(pendingName), os.O_WRONLY|os.O_CREATE, fileMode)
	if err != nil {
		return fmt.Errorf("write pending mark of %s: %w", m.id, spaceErr(err))
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write pending mark of %s: %w", m.id, spaceErr(err))
	}
	return nil
}
