// Package durable writes small files so that after a power cut they are what they
// were or what they were to be, never something in between.
package durable

import (
	"errors"
	"io/fs"
	"path/filepath"

	"drover/datapath/vfs"
)

// TempSuffix ends the names of files that are being written. One that a crash left
// may be removed.
const TempSuffix = ".tmp"

// WriteFile replaces a file, or makes it: when it returns nil the new content
// survives a power cut, when it does not the file is as it was.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	return WriteFileOn(vfs.OS, path, content, mode)
}

// WriteFileOn is WriteFile on another file system.
func WriteFileOn(fsys vfs.FS, path string, content []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := vfs.CreateTemp(fsys, dir, "."+filepath.Base(path)+".", TempSuffix)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(f.Name()))
	}
	return fsys.SyncDir(dir)
}

// MkdirAll makes a directory, and those above it that are missing, durably.
func MkdirAll(fsys vfs.FS, path string, mode fs.FileMode) error {
	var above []string
	for dir := filepath.Clean(path); ; {
		dir = filepath.Dir(dir)
		above = append(above, dir)
		_, err := fsys.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsys.MkdirAll(path, mode); err != nil {
		return err
	}
	for _, dir := range above {
		// A directory that may not be read is not ours: nothing was made there.
		if err := fsys.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// SyncDir makes the names in a directory durable: of files that were made, renamed
// or removed there.
func SyncDir(dir string) error { return vfs.OS.SyncDir(dir) }
