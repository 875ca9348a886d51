package crashfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const sectorSize = 512

// Seeds of Crash with a plain meaning. Any other is a choice of its own.
const (
	AllLost uint64 = iota
	AllKept
)

// change is one change of names: all its parts or none.
type change []part

// part gives a name in a directory a meaning; none when ino is 0.
type part struct {
	dir  uint64
	name string
	ino  uint64
}

func (c change) on(t tree) {
	for _, p := range c {
		if p.ino == 0 {
			delete(t[p.dir], p.name)
		} else {
			t[p.dir][p.name] = p.ino
		}
	}
}

// apply changes names; mu is held.
func (f *FS) apply(c change) {
	c.on(f.names)
	f.flight = append(f.flight, c)
}

// needs reports whether c cannot be without the earlier one: they are about one
// name, or c removes a directory that the earlier one was in. What is in a
// directory may be durable before the directory's own name; it is not found then.
func (f *FS) needs(c, earlier change) bool {
	for _, a := range c {
		for _, b := range earlier {
			if a.dir == b.dir && a.name == b.name || a.ino == 0 && f.was(a, b.dir) {
				return true
			}
		}
	}
	return false
}

// was reports whether the part's name may have meant the directory.
func (f *FS) was(p part, dir uint64) bool {
	if f.durable[p.dir][p.name] == dir {
		return true
	}
	return slices.ContainsFunc(f.flight, func(c change) bool { return slices.Contains(c, part{p.dir, p.name, dir}) })
}

// settle makes the changes in the directory durable, with what they need.
func (f *FS) settle(dir uint64) {
	must := make([]bool, len(f.flight))
	for i := len(f.flight) - 1; i >= 0; i-- {
		must[i] = must[i] || slices.ContainsFunc(f.flight[i], func(p part) bool { return p.dir == dir })
		for j := range i {
			must[j] = must[j] || must[i] && f.needs(f.flight[i], f.flight[j])
		}
	}
	var left []change
	for i, c := range f.flight {
		if must[i] {
			c.on(f.durable)
		} else {
			left = append(left, c)
		}
	}
	f.flight = left
}

// Crash gives the file system as it may be found after the power was cut now. The
// same seed finds the same. This one goes on as it was, so that more than one end
// can be tried.
func (f *FS) Crash(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	rnd := rand.New(rand.NewPCG(seed, 0))
	out := New()
	out.last, out.clock, out.capacity = f.last, f.clock+1, f.capacity
	out.durable = f.durable.clone()
	kept := make([]bool, len(f.flight))
	for i, c := range f.flight {
		kept[i] = pick(rnd, seed, 2) > 0
		for j := range i {
			kept[i] = kept[i] && (kept[j] || !f.needs(c, f.flight[j]))
		}
		if kept[i] {
			c.on(out.durable)
		}
	}
	out.names = out.durable.clone()
	for _, ino := range slices.Sorted(maps.Keys(f.nodes)) {
		n := newNode(ino, f.nodes[ino].dir)
		n.content = f.nodes[ino].crash(rnd, seed)
		n.synced = n.clone()
		n.modified = f.nodes[ino].modified
		out.nodes[ino] = n
	}
	out.count(rootInode)
	return out
}

// count counts names and the room they take, below the directory.
func (f *FS) count(dir uint64) {
	for _, ino := range f.names[dir] {
		n := f.nodes[ino]
		if n.links++; n.links == 1 {
			f.used += n.allocated()
			f.count(ino)
		}
	}
}

// pick chooses one of n, the last being the newest.
func pick(rnd *rand.Rand, seed uint64, n int) int {
	switch seed {
	case AllLost:
		return 0
	case AllKept:
		return n - 1
	}
	return rnd.IntN(n)
}

// crash gives the content that may be found.
func (n *node) crash(rnd *rand.Rand, seed uint64) content {
	c := n.synced.clone()
	sizes := append([]int64{n.synced.size}, n.sizes...)
	c.size = sizes[pick(rnd, seed, len(sizes))]
	if low, high := n.synced.size, n.size; low < high && seed > AllKept && rnd.IntN(4) == 0 {
		c.size = low + rnd.Int64N(high-low)
	}
	for _, at := range slices.Sorted(maps.Keys(n.dirty)) {
		versions := append([][]byte{n.synced.pages[at]}, n.dirty[at]...)
		page := versions[pick(rnd, seed, len(versions))]
		if seed > AllKept && rnd.IntN(4) == 0 {
			page = torn(rnd, versions)
		}
		c.put(at, page)
	}
	c.cut(c.size)
	return c
}

// torn takes each sector of a page from any version.
func torn(rnd *rand.Rand, versions [][]byte) []byte {
	page := make([]byte, pageSize)
	for at := 0; at < pageSize; at += sectorSize {
		if v := versions[rnd.IntN(len(versions))]; v != nil {
			copy(page[at:at+sectorSize], v[at:])
		}
	}
	return page
}
