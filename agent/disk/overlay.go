package disk

import (
	"fmt"
	"slices"
)

// Overlay is a disk of which some parts are read from elsewhere: from copies of its
// volumes as they were at one moment.
type Overlay struct {
	base  *Disk
	parts []OverlayPart // by offset
}

// OverlayPart is a part of the disk that is read from another device's beginning.
type OverlayPart struct {
	Offset, Length int64
	From           *Disk
}

// NewOverlay lays the parts over a disk. They belong to the caller.
func NewOverlay(base *Disk, parts []OverlayPart) (*Overlay, error) {
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b OverlayPart) int { return int(min(max(a.Offset-b.Offset, -1), 1)) })
	end := int64(0)
	for i, p := range parts {
		// What the copy lacks at its end is read from the disk itself.
		parts[i].Length = min(p.Length, p.From.Size())
		if p.Offset < end || p.Length <= 0 || p.Length > base.Size()-p.Offset {
			return nil, fmt.Errorf("lay %d bytes of %s over disk %s at %d: it has %d bytes, and the part before ends at %d",
				p.Length, p.From.Path(), base.Path(), p.Offset, base.Size(), end)
		}
		end = p.Offset + p.Length
	}
	return &Overlay{base, parts}, nil
}

// Covers reports whether all of a range comes from parts.
func (o *Overlay) Covers(off, length int64) bool {
	for length > 0 {
		p, n := o.at(off, length)
		if p == nil {
			return false
		}
		off, length = off+n, length-n
	}
	return true
}

// at gives the part at an offset, nil for the disk itself, and for how many bytes.
func (o *Overlay) at(off, most int64) (*OverlayPart, int64) {
	for i := range o.parts {
		p := &o.parts[i]
		switch {
		case off < p.Offset:
			return nil, min(most, p.Offset-off)
		case off < p.Offset+p.Length:
			return p, min(most, p.Offset+p.Length-off)
		}
	}
	return nil, most
}

// ReadAt reads as [Disk.ReadAt] does.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		part, n := o.at(off, int64(len(p)-done))
		from, at := o.base, off
		if part != nil {
			from, at = part.From, off-part.Offset
		}
		if _, err := from.ReadAt(p[done:done+int(n)], at); err != nil {
			return done, err
		}
		done, off = done+int(n), off+n
	}
	return done, nil
}

// CurrentSize is the disk's.
func (o *Overlay) CurrentSize() (int64, error) { return o.base.CurrentSize() }

// NextData says that everything may hold data: what is a hole in the disk by now may
// have been data at the moment of the copies.
func (o *Overlay) NextData(off int64) (start, end int64, err error) {
	return min(off, o.base.Size()), o.base.Size(), nil
}
