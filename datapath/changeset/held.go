package changeset

import "io"

// Held is a change set whose data is in memory: what was checked when it came need
// not be read and decoded again to be applied. Not safe for concurrent use.
type Held struct {
	summary Summary
	extents []Extent // with data
	next    int
	free    []func()
}

// Add appends a chunk's extents, whose data lies one after the other in plain. free
// gives the memory back; it is called once.
func (h *Held) Add(extents []Extent, plain []byte, free func()) {
	for _, e := range extents {
		if !e.Zero {
			e.Data, plain = plain[:e.Length:e.Length], plain[e.Length:]
		}
		h.extents = append(h.extents, e)
	}
	h.free = append(h.free, free)
}

// Finish says what the set is.
func (h *Held) Finish(s Summary) { h.summary = s }

// Summary says what is in the change set.
func (h *Held) Summary() Summary { return h.summary }

// Rewind starts with the first extent again.
func (h *Held) Rewind() error {
	h.next = 0
	return nil
}

// Next gives the next extent, io.EOF after the last.
func (h *Held) Next() (Extent, error) {
	if h.next == len(h.extents) {
		return Extent{}, io.EOF
	}
	h.next++
	return h.extents[h.next-1], nil
}

// Disk gives the extents of one disk, by its place in the header. Those of several disks
// may be gone over at once.
func (h *Held) Disk(disk int) Extents { return OfDisk(h.extents, disk) }

// OfDisk gives those of the extents that are of the disk.
func OfDisk(extents []Extent, disk int) Extents { return &ofDisk{extents, disk} }

type ofDisk struct {
	rest []Extent
	disk int
}

func (o *ofDisk) Next() (Extent, error) {
	for len(o.rest) > 0 {
		e := o.rest[0]
		o.rest = o.rest[1:]
		if e.Disk == o.disk {
			return e, nil
		}
	}
	return Extent{}, io.EOF
}

// Free gives the memory back; the set is empty afterwards. It may be called on nil.
func (h *Held) Free() {
	if h == nil {
		return
	}
	for _, f := range h.free {
		f()
	}
	h.extents, h.free, h.next = nil, nil, 0
}
