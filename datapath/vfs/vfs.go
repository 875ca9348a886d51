// Package vfs is the file system as the data path uses it, so that tests can put
// one in its place that loses power, is full or returns errors (crashfs).
//
// What lies outside the data path's own directories (block devices, restored
// images, keys) is used through package os.
package vfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// FS is a file system. Errors are as package os gives them: fs.ErrNotExist,
// fs.ErrExist, and the system's errors behind a *fs.PathError.
type FS interface {
	// OpenFile takes the flags of package os.
	OpenFile(path string, flag int, mode fs.FileMode) (File, error)
	// Rename replaces what has the new name.
	Rename(from, to string) error
	// Link gives a file another name, which must be free, in the same file system.
	Link(from, to string) error
	Remove(path string) error
	RemoveAll(path string) error
	MkdirAll(path string, mode fs.FileMode) error
	// ReadDir gives the directory's names in order.
	ReadDir(path string) ([]string, error)
	Stat(path string) (Info, error)
	// SyncDir makes the names in a directory durable: of files that were made,
	// renamed or removed there.
	SyncDir(path string) error
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Writer // from the start of the file on, or where the last Write ended
	io.Closer
	Name() string // the path it was opened with
	Stat() (Info, error)
	Chmod(mode fs.FileMode) error
	Truncate(size int64) error
	Sync() error
	// PunchHole makes the range read as zeros and gives its room back; the size
	// stays. errors.ErrUnsupported where that is not possible.
	PunchHole(offset, length int64) error
	// NextData gives the next range from offset on that is not a hole, and io.EOF
	// when there is none. Not to be used at once with itself or with Write.
	NextData(offset int64) (from, to int64, err error)
	// TryLock takes the lock that excludes others who opened the file, here and in
	// other processes, if it is free. Close releases it.
	TryLock() (bool, error)
}

// Info is what is known of a file.
type Info struct {
	Dir       bool
	Size      int64 // of a block device too
	Allocated int64 // bytes it takes on the disk; holes do not count
	Modified  int64 // when its content changed last, in nanoseconds
	ID        ID
}

// ID is equal for names and handles of one file.
type ID struct{ Device, Inode uint64 }

// ErrTooLarge: a file is larger than it can be if it is one of ours.
var ErrTooLarge = errors.New("file is too large")

// ReadFile reads a whole file of at most limit bytes; a larger one is [ErrTooLarge].
func ReadFile(fsys FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, limit+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, path, limit)
	}
	return b, nil
}

// CreateTemp makes a file of a new name, for its owner only.
func CreateTemp(fsys FS, dir, prefix, suffix string) (File, error) {
	return fsys.OpenFile(filepath.Join(dir, prefix+rand.Text()+suffix), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

const lockPoll = 5 * time.Millisecond // how often a busy lock is tried again

// Lock waits for the file's lock until the context ends.
func Lock(ctx context.Context, f File) error {
	for {
		ok, err := f.TryLock()
		if err != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", f.Name(), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
