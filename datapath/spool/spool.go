// Package spool is where a process server keeps change sets until they are in the
// cache storage and applied: files in a directory of its own, of bounded total
// size. What was committed survives a crash; what was not is gone after it.
//
//	<dir>/<machine id>/<sequence>-<epoch>.cs    committed
//	<dir>/<machine id>/<sequence>-<epoch>.tmp   being written; removed by Open
//	<dir>/spool.json                            the spool's identity
package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"drover/datapath/cachestore"
	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/vfs"
)

// Errors that callers act upon.
var (
	// ErrFull: the limit is reached, or the disk is full. It ends when there is room.
	ErrFull     = errors.New("the spool is full")
	ErrNotFound = errors.New("not in the spool")
)

const (
	suffix     = ".cs"
	tempSuffix = ".tmp"
	nameFormat = "%020d-%020d"

	identityName = "spool.json"

	// minFree is what must be left for a change set to be begun at all.
	minFree = 64 << 10
)

// Entry is a committed change set.
type Entry struct {
	Machine ident.MachineID
	Epoch   ident.Epoch
	Seq     ident.Seq
	Size    int64
}

// Spool is an open spool. Safe for concurrent use; one process at a time.
type Spool struct {
	fs    vfs.FS
	dir   string
	limit int64

	mu   sync.Mutex
	used int64 // committed and being written
}

// Open opens the spool in a directory, made when absent, and removes what a crash
// left unfinished.
func Open(dir string, limitBytes int64) (*Spool, error) { return OpenFS(vfs.OS, dir, limitBytes) }

// OpenFS is Open on another file system.
func OpenFS(fsys vfs.FS, dir string, limitBytes int64) (*Spool, error) {
	if limitBytes < minFree {
		return nil, fmt.Errorf("open the spool: limit of %d bytes, want at least %d", limitBytes, minFree)
	}
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	s := &Spool{fs: fsys, dir: dir, limit: limitBytes}
	machines, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open the spool: %w", err)
	}
	for _, m := range machines {
		id, err := ident.ParseMachineID(m)
		if err != nil {
			continue // not ours
		}
		if err := s.clean(id); err != nil {
			return nil, fmt.Errorf("open the spool: %w", err)
		}
		entries, err := s.List(id)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			s.used += e.Size
		}
	}
	return s, nil
}

func (s *Spool) clean(m ident.MachineID) error {
	dir := filepath.Join(s.dir, m.String())
	names, err := s.fs.ReadDir(dir)
	for _, name := range names {
		if strings.HasSuffix(name, tempSuffix) {
			err = errors.Join(err, s.fs.Remove(filepath.Join(dir, name)))
		}
	}
	return err
}

// path of a change set, without suffix.
func (s *Spool) path(m ident.MachineID, epoch ident.Epoch, seq ident.Seq) string {
	return filepath.Join(s.dir, m.String(), fmt.Sprintf(nameFormat, seq, epoch))
}

// reserve takes n bytes of the limit.
func (s *Spool) reserve(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used+n > s.limit {
		return fmt.Errorf("%w: %d of %d bytes are used", ErrFull, s.used, s.limit)
	}
	s.used += n
	return nil
}

// failed says what became of a change set, and ErrFull when only room is missing.
func failed(seq ident.Seq, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("spool change set %d: %w", seq, err)
}

func (s *Spool) release(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
}

// Usage gives the bytes used, those being written included, and the limit.
func (s *Spool) Usage() (used, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used, s.limit
}

// ID reads the spool's identity, making it when there is none.
func (s *Spool) ID() (string, error) {
	id, err := durable.Identity(s.fs, filepath.Join(s.dir, identityName))
	if err != nil {
		return "", fmt.Errorf("identity of the spool: %w", err)
	}
	return id, nil
}

// Close closes the spool. Files that are being written are their owners'.
func (s *Spool) Close() error { return nil }

// List gives a machine's committed change sets by sequence, then epoch. They are
// durable then, also those whose Commit was broken off at its last step.
func (s *Spool) List(machine ident.MachineID) ([]Entry, error) {
	dir := filepath.Join(s.dir, machine.String())
	files, err := s.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the spool of %s: %w", machine, err)
	}
	if err := errors.Join(s.fs.SyncDir(dir), s.fs.SyncDir(s.dir)); err != nil {
		return nil, fmt.Errorf("list the spool of %s: %w", machine, err)
	}
	var out []Entry
	for _, f := range files {
		name, ok := strings.CutSuffix(f, suffix)
		if !ok {
			continue
		}
		e := Entry{Machine: machine}
		if _, err := fmt.Sscanf(name, "%d-%d", &e.Seq, &e.Epoch); err != nil || fmt.Sprintf(nameFormat, e.Seq, e.Epoch) != name {
			continue // not ours
		}
		info, err := s.fs.Stat(filepath.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed in between
		}
		if err != nil {
			return nil, fmt.Errorf("list the spool of %s: %w", machine, err)
		}
		e.Size = info.Size
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Epoch, b.Epoch)) })
	return out, nil
}

// object is an open change set.
type object struct {
	vfs.File
	size int64
}

func (o object) Size() int64 { return o.size }

// Open opens a committed change set.
func (s *Spool) Open(e Entry) (cachestore.Object, error) {
	f, err := s.fs.OpenFile(s.path(e.Machine, e.Epoch, e.Seq)+suffix, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("change set %d of %s: %w", e.Seq, e.Machine, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open a spooled change set: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a spooled change set: %w", err), f.Close())
	}
	return object{f, info.Size}, nil
}

// Remove removes a committed change set; an absent one is no error.
func (s *Spool) Remove(e Entry) error {
	path := s.path(e.Machine, e.Epoch, e.Seq) + suffix
	info, err := s.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.fs.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("remove a spooled change set: %w", err)
	}
	s.release(info.Size)
	return nil
}
