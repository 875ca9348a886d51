package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/vfs"
)

// File is a change set being written. Not safe for concurrent use.
type File struct {
	spool *Spool
	file  vfs.File
	path  string // without suffix
	entry Entry
	ended bool
}

// Create begins a change set. ErrFull when there is no room for any.
func (s *Spool) Create(machine ident.MachineID, epoch ident.Epoch, seq ident.Seq) (*File, error) {
	if err := s.reserve(minFree); err != nil {
		return nil, err
	}
	s.release(minFree)
	path := s.path(machine, epoch, seq)
	if err := s.fs.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, failed(seq, err)
	}
	f, err := s.fs.OpenFile(path+tempSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, failed(seq, err)
	}
	return &File{spool: s, file: f, path: path, entry: Entry{Machine: machine, Epoch: epoch, Seq: seq}}, nil
}

// Write appends. Past the limit it fails with ErrFull and writes nothing.
func (f *File) Write(p []byte) (int, error) {
	if f.ended {
		return 0, fs.ErrClosed
	}
	if err := f.spool.reserve(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := f.file.Write(p)
	failpoint.Hit(failpoint.SpoolWrite)
	f.entry.Size += int64(n)
	f.spool.release(int64(len(p) - n))
	if err != nil {
		err = failed(f.entry.Seq, err)
	}
	return n, err
}

// Commit makes the change set durable: when it returns nil, the change set
// survives a power cut. One that was committed under the same number is replaced.
func (f *File) Commit() (Entry, error) {
	if f.ended {
		return Entry{}, fs.ErrClosed
	}
	fsys := f.spool.fs
	old, err := fsys.Stat(f.path + suffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Entry{}, errors.Join(err, f.Abort())
	}
	failpoint.Hit(failpoint.SpoolSync)
	if err := f.file.Sync(); err != nil {
		return Entry{}, errors.Join(failed(f.entry.Seq, err), f.Abort())
	}
	failpoint.Hit(failpoint.SpoolSynced)
	if err := fsys.Rename(f.path+tempSuffix, f.path+suffix); err != nil {
		return Entry{}, errors.Join(failed(f.entry.Seq, err), f.Abort())
	}
	f.ended = true
	f.spool.release(old.Size)
	if err := errors.Join(f.file.Close(), fsys.SyncDir(filepath.Dir(f.path)), fsys.SyncDir(f.spool.dir)); err != nil {
		return Entry{}, failed(f.entry.Seq, err)
	}
	failpoint.Hit(failpoint.SpoolCommitted)
	return f.entry, nil
}

// Abort gives the change set up. After Commit or Abort it does nothing.
func (f *File) Abort() error {
	if f.ended {
		return nil
	}
	f.ended = true
	f.spool.release(f.entry.Size)
	err := errors.Join(f.file.Close(), f.spool.fs.Remove(f.path+tempSuffix))
	if err != nil {
		return fmt.Errorf("give up spooled change set %d: %w", f.entry.Seq, err)
	}
	return nil
}
