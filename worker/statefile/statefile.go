// Package statefile keeps small secret files of the configuration server: whole or
// not at all, readable by the owner alone.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"drover/datapath/durable"
)

// Modes and bounds of the files.
const (
	DirMode  = 0o700
	FileMode = 0o600
	MaxSize  = 64 << 10 // bytes
)

// Create writes a file that does not exist yet; it fails with [os.ErrExist] when it
// does. After a crash the file is whole or absent. The folder is made when missing.
func Create(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, DirMode); err != nil {
		return fmt.Errorf("make the folder of %s: %w", path, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Chmod(FileMode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// A link, unlike a rename, never replaces what is there.
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := durable.SyncDir(dir); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Read gives a file's content. A file that others may read is refused: whatever
// it protects must be taken as known. A missing one gives [os.ErrNotExist].
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read %s: its mode is %v, so others may have read it; want %v: chmod it if you know that nobody did",
			path, st.Mode().Perm(), os.FileMode(FileMode))
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read %s: over %d bytes: it is not one of ours", path, MaxSize)
	}
	return b, nil
}
