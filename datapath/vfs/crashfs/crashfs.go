// Package crashfs is a file system in memory that loses power and has faults, for
// tests: what was not synced may be lost, kept, or kept in part, as on a disk under
// a journalling file system.
//
// A file's data and size are durable once the file is synced, a name once its
// directory is. Until then each written page may be there in any version it had
// since the last sync, or as a mix of sectors; each change of a name may be there
// or not, but never without those it depends on, and a rename is whole.
package crashfs

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"drover/datapath/vfs"
)

// ErrPower is what every call gives after the power is cut.
var ErrPower = errors.New("the power is cut")

// pageSize is how much is written to the disk at once, at most.
const pageSize = 4096

const rootInode = 1

// tree has the names of each directory, by inodes.
type tree map[uint64]map[string]uint64

func (t tree) clone() tree {
	out := tree{}
	for dir, names := range t {
		out[dir] = maps.Clone(names)
	}
	return out
}

// FS is a file system. Safe for concurrent use.
type FS struct {
	mu    sync.Mutex
	nodes map[uint64]*node
	last  uint64 // inode
	names tree
	// durable is what names would be if all changes in flight were lost.
	durable tree
	flight  []change
	clock   int64

	calls int // that change something, so far
	limit int // after so many the power is cut; none when negative

	rules    []*Rule
	used     int64
	capacity int64 // 0: no limit
	readOnly bool
}

var _ vfs.FS = (*FS)(nil)

// New gives an empty file system.
func New() *FS {
	return &FS{
		nodes: map[uint64]*node{rootInode: newNode(rootInode, true)}, last: rootInode, limit: -1,
		names: tree{rootInode: {}}, durable: tree{rootInode: {}},
	}
}

// CutAfter cuts the power after so many more calls that change something; a
// negative number never does.
func (f *FS) CutAfter(calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limit = calls
	if calls >= 0 {
		f.limit += f.calls
	}
}

// Calls counts the calls that changed something.
func (f *FS) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// begin lets a call go on, or not; mu is held.
func (f *FS) begin(op Op, path string) (*Rule, error) {
	if f.limit >= 0 && f.calls >= f.limit {
		return nil, &fs.PathError{Op: string(op), Path: path, Err: ErrPower}
	}
	if op == Read {
		return f.hit(op, path)
	}
	if f.readOnly {
		return nil, &fs.PathError{Op: string(op), Path: path, Err: syscall.EROFS}
	}
	f.calls++
	f.clock++
	return f.hit(op, path)
}

func parts(path string) []string {
	clean := strings.Trim(filepath.Clean("/"+path), "/")
	if clean == "" {
		return nil
	}
	return strings.Split(clean, "/")
}

// walk finds the directory and the last part of a path; mu is held.
func (f *FS) walk(op, path string) (dir uint64, name string, err error) {
	all := parts(path)
	if len(all) == 0 {
		return 0, "", &fs.PathError{Op: op, Path: path, Err: syscall.EBUSY}
	}
	dir = rootInode
	for _, p := range all[:len(all)-1] {
		next, ok := f.names[dir][p]
		switch {
		case !ok:
			return 0, "", &fs.PathError{Op: op, Path: path, Err: syscall.ENOENT}
		case !f.nodes[next].dir:
			return 0, "", &fs.PathError{Op: op, Path: path, Err: syscall.ENOTDIR}
		}
		dir = next
	}
	return dir, all[len(all)-1], nil
}

// find gives what has the path; mu is held.
func (f *FS) find(op, path string) (*node, error) {
	if len(parts(path)) == 0 {
		return f.nodes[rootInode], nil
	}
	dir, name, err := f.walk(op, path)
	if err != nil {
		return nil, err
	}
	ino, ok := f.names[dir][name]
	if !ok {
		return nil, &fs.PathError{Op: op, Path: path, Err: syscall.ENOENT}
	}
	return f.nodes[ino], nil
}

// add makes a new node under the name; mu is held.
func (f *FS) add(dir uint64, name string, isDir bool) *node {
	f.last++
	n := newNode(f.last, isDir)
	n.modified, n.links = f.clock, 1
	f.nodes[n.ino] = n
	if isDir {
		f.names[n.ino], f.durable[n.ino] = map[string]uint64{}, map[string]uint64{}
	}
	f.apply(change{{dir, name, n.ino}})
	return n
}

// MkdirAll makes the directory and those above it.
func (f *FS) MkdirAll(path string, _ fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir := uint64(rootInode)
	for _, p := range parts(path) {
		ino, ok := f.names[dir][p]
		if !ok {
			if _, err := f.begin(Name, path); err != nil {
				return err
			}
			ino = f.add(dir, p, true).ino
		}
		if !f.nodes[ino].dir {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		dir = ino
	}
	return nil
}

// Rename moves a file or directory, replacing a file.
func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	fromDir, fromName, err := f.walk("rename", from)
	if err != nil {
		return err
	}
	toDir, toName, err := f.walk("rename", to)
	if err != nil {
		return err
	}
	ino, ok := f.names[fromDir][fromName]
	if !ok {
		return &fs.PathError{Op: "rename", Path: from, Err: syscall.ENOENT}
	}
	old, replaced := f.names[toDir][toName]
	switch {
	case replaced && f.nodes[old].dir:
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.EEXIST}
	case replaced && f.nodes[ino].dir:
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.ENOTDIR}
	case old == ino:
		return nil
	}
	if _, err := f.begin(Name, to); err != nil {
		return err
	}
	if replaced {
		f.unlink(f.nodes[old])
	}
	f.apply(change{{fromDir, fromName, 0}, {toDir, toName, ino}})
	return nil
}

// Link gives a file another name.
func (f *FS) Link(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("link", from)
	if err != nil {
		return err
	}
	dir, name, err := f.walk("link", to)
	if err != nil {
		return err
	}
	switch _, taken := f.names[dir][name]; {
	case taken:
		return &fs.PathError{Op: "link", Path: to, Err: syscall.EEXIST}
	case n.dir:
		return &fs.PathError{Op: "link", Path: from, Err: syscall.EPERM}
	}
	if _, err := f.begin(Name, to); err != nil {
		return err
	}
	n.links++
	f.apply(change{{dir, name, n.ino}})
	return nil
}

// unlink takes a name from a node; the last one gives its room back.
func (f *FS) unlink(n *node) {
	if n.links--; n.links == 0 {
		f.used -= n.allocated()
	}
}

// Remove removes a file or an empty directory.
func (f *FS) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.remove(path)
}

func (f *FS) remove(path string) error {
	n, err := f.find("remove", path)
	if err != nil {
		return err
	}
	if len(f.names[n.ino]) > 0 {
		return &fs.PathError{Op: "remove", Path: path, Err: syscall.ENOTEMPTY}
	}
	dir, name, err := f.walk("remove", path)
	if err == nil {
		_, err = f.begin(Name, path)
	}
	if err != nil {
		return err
	}
	f.unlink(n)
	f.apply(change{{dir, name, 0}})
	return nil
}

// RemoveAll removes what has the path with all that is in it, one by one.
func (f *FS) RemoveAll(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.removeAll(path)
}

func (f *FS) removeAll(path string) error {
	n, err := f.find("remove", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(f.names[n.ino])) {
		if err := f.removeAll(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return f.remove(path)
}

// ReadDir gives the names in a directory.
func (f *FS) ReadDir(path string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.begin(Read, path); err != nil {
		return nil, err
	}
	n, err := f.find("open", path)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	}
	return slices.Sorted(maps.Keys(f.names[n.ino])), nil
}

// Stat tells of what has the path.
func (f *FS) Stat(path string) (vfs.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.limit >= 0 && f.calls >= f.limit {
		return vfs.Info{}, &fs.PathError{Op: "stat", Path: path, Err: ErrPower}
	}
	n, err := f.find("stat", path)
	if err != nil {
		return vfs.Info{}, err
	}
	return n.info(), nil
}

// SyncDir makes the directory's names durable.
func (f *FS) SyncDir(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find("open", path)
	if err == nil {
		_, err = f.begin(SyncDir, path)
	}
	if err != nil {
		return err
	}
	f.settle(n.ino)
	return nil
}
