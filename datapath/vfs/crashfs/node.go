package crashfs

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"

	"drover/datapath/vfs"
)

// content of a file. Pages are never changed, but replaced; one that is not there
// is a hole.
type content struct {
	size  int64
	pages map[int64][]byte
}

func (c content) clone() content { return content{c.size, maps.Clone(c.pages)} }

func (c content) put(at int64, page []byte) {
	if page == nil {
		delete(c.pages, at)
	} else {
		c.pages[at] = page
	}
}

// cut removes what lies beyond the size.
func (c content) cut(size int64) {
	for at, page := range c.pages {
		switch start := at * pageSize; {
		case start >= size:
			delete(c.pages, at)
		case start+pageSize > size:
			page = bytes.Clone(page)
			clear(page[size-start:])
			c.pages[at] = page
		}
	}
}

// node is a file or directory.
type node struct {
	ino      uint64
	dir      bool
	modified int64
	holder   *file // of the lock
	links    int   // names

	content                    // as it is read
	synced  content            // as it is on the disk for certain
	dirty   map[int64][][]byte // versions of pages since the last sync
	sizes   []int64            // since the last sync
}

func newNode(ino uint64, dir bool) *node {
	return &node{
		ino: ino, dir: dir, content: content{pages: map[int64][]byte{}},
		synced: content{pages: map[int64][]byte{}}, dirty: map[int64][][]byte{},
	}
}

func (n *node) allocated() int64 { return int64(len(n.pages)) * pageSize }

func (n *node) info() vfs.Info {
	return vfs.Info{Dir: n.dir, Size: n.size, Allocated: n.allocated(), Modified: n.modified, ID: vfs.ID{Device: 1, Inode: n.ino}}
}

// set replaces a page.
func (n *node) set(at int64, page []byte) {
	n.put(at, page)
	n.dirty[at] = append(n.dirty[at], page)
}

func (n *node) resize(size int64) {
	if size < n.size {
		for _, at := range slices.Sorted(maps.Keys(n.pages)) {
			if end := (at + 1) * pageSize; end > size {
				n.clearRange(at, max(size, at*pageSize)-at*pageSize, pageSize)
			}
		}
	}
	if size != n.size {
		n.size = size
		n.sizes = append(n.sizes, size)
	}
}

// clearRange zeros bytes of a page; one that is cleared whole becomes a hole.
func (n *node) clearRange(at, from, to int64) {
	old, ok := n.pages[at]
	if !ok {
		return
	}
	if from == 0 && to == pageSize {
		n.set(at, nil)
		return
	}
	page := bytes.Clone(old)
	clear(page[from:to])
	n.set(at, page)
}

// sync makes what was written durable.
func (n *node) sync() {
	for at, versions := range n.dirty {
		n.synced.put(at, versions[len(versions)-1])
	}
	n.synced.size = n.size
	n.synced.cut(n.size)
	clear(n.dirty)
	n.sizes = nil
}

// lose is a sync that failed: data that was written counts as clean and never gets
// to the disk. Some of it is still read as if it were there, some is not. Size and
// holes are the journal's: the next sync has them.
func (n *node) lose(rnd *rand.Rand) {
	for _, at := range slices.Sorted(maps.Keys(n.dirty)) {
		if versions := n.dirty[at]; versions[len(versions)-1] == nil {
			continue
		}
		delete(n.dirty, at)
		if rnd.IntN(2) == 0 {
			n.put(at, n.synced.pages[at])
		}
	}
	n.cut(n.size)
}
