package crashfs

import (
	"io/fs"
	"path/filepath"
)

// Op is a kind of call.
type Op string

// Kinds of calls.
const (
	Read    Op = "read"    // also of directories, and opening
	Write   Op = "write"   // also of the size, and of holes
	Name    Op = "name"    // creating, renaming, removing
	Sync    Op = "sync"    // of a file; when it fails what was written is lost
	SyncDir Op = "syncdir" // of a directory
)

// Rule makes calls fail.
type Rule struct {
	Op Op
	// Name is a pattern, as of filepath.Match, of the last part of the path; empty
	// means every file.
	Name string
	Err  error
	// Short: a write writes half before it fails.
	Short bool
	// Flip: a read gives one bit wrong. Err is nil.
	Flip bool
	// Skip calls are well, Times are hit; 0 means all from then on.
	Skip, Times int
}

// Inject adds a rule.
func (f *FS) Inject(r Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Times == 0 {
		r.Times = -1
	}
	f.rules = append(f.rules, &r)
}

// Mend removes all rules, and what SetCapacity and SetReadOnly did.
func (f *FS) Mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.capacity, f.readOnly = nil, 0, false
}

// SetCapacity bounds the bytes of all files; beyond it writes fail with ENOSPC.
func (f *FS) SetCapacity(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = bytes
}

// Used is what all files take.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// SetReadOnly makes every change fail with EROFS, as after an error of the disk.
func (f *FS) SetReadOnly() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readOnly = true
}

// hit gives the rule that the call meets, with its error; mu is held.
func (f *FS) hit(op Op, path string) (*Rule, error) {
	for _, r := range f.rules {
		ok, err := filepath.Match(r.Name, filepath.Base(path))
		if r.Op != op || r.Name != "" && (err != nil || !ok) || r.Times == 0 {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		if r.Times > 0 {
			r.Times--
		}
		if r.Err == nil {
			return r, nil
		}
		return r, &fs.PathError{Op: string(op), Path: path, Err: r.Err}
	}
	return nil, nil
}
