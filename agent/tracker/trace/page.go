//go:build linux

package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// A page of the ring has a time, a length with two flags, and events.
type pageLayout struct {
	time, commit field
	data, size   int // where the events begin, and the bytes of a page
}

// entryLayout is how an event in a page begins: a word that has its length (or its
// kind) and the time since the event before.
type entryLayout struct {
	lenBits, deltaBits     uint32
	maxData                uint32 // lengths up to this one are an event's, in words; 0 is a length of its own
	padding, extend, stamp uint32
}

// The length of a page's events is in the low bits of its commit field. Two flags
// beside it say that events before the page were lost, and that their number stands
// behind the page's events. No description names them; they are as old as the format.
const (
	commitBits   = 27
	missedEvents = 1 << 31
	missedStored = 1 << 30
	noKind       = 255 // a kind of entry that the kernel does not have
)

const (
	entryAlign = 4                // bytes an entry's length is a multiple of
	longStamp  = uint64(31) << 59 // the bits of a time that an absolute time stamp leaves out
)

// errPage is wrapped when a page is not what the kernel's description says. What
// was in it is not known.
var errPage = errors.New("a page of the trace ring that cannot be read")

// page walks the events of one page.
type page struct {
	entry  entryLayout
	data   []byte // the events, and what follows in the page
	pos    int
	end    int
	time   uint64
	missed bool // events before this page were lost
}

// open begins a page as it was read.
func (l pageLayout) open(entry entryLayout, raw []byte) (page, error) {
	if len(raw) != l.size {
		return page{}, fmt.Errorf("%w: it has %d bytes, not %d", errPage, len(raw), l.size)
	}
	commit := l.commit.uint(raw)
	p := page{entry: entry, data: raw[l.data:], time: l.time.uint(raw), missed: commit&missedEvents != 0}
	n := commit & (1<<commitBits - 1)
	if n > uint64(len(p.data)) {
		return page{}, fmt.Errorf("%w: it says that it has %d bytes of %d", errPage, n, len(p.data))
	}
	p.end = int(n)
	return p, nil
}

// next gives the next event with its time; no data at the page's end. The data is
// valid as long as the page is.
func (p *page) next() (at uint64, data []byte, err error) {
	for p.pos < p.end {
		if p.end-p.pos < entryAlign {
			return 0, nil, fmt.Errorf("%w: %d bytes at its end are no event", errPage, p.end-p.pos)
		}
		word := binary.NativeEndian.Uint32(p.data[p.pos:])
		kind, delta := p.split(word)
		p.pos += entryAlign
		switch {
		case kind == p.entry.padding && delta == 0: // nothing follows
			p.pos = p.end
		case kind == p.entry.padding: // an event that was taken back
			n, err := p.word()
			if err == nil {
				err = p.skip(n, entryAlign)
			}
			if err != nil {
				return 0, nil, err
			}
			p.time += uint64(delta)
		case kind == p.entry.extend, kind == p.entry.stamp:
			high, err := p.word()
			if err != nil {
				return 0, nil, err
			}
			p.pos += entryAlign
			p.advance(kind, uint64(high)<<p.entry.deltaBits|uint64(delta))
		case kind <= p.entry.maxData:
			p.time += uint64(delta)
			data, err := p.event(int(kind) * entryAlign)
			return p.time, data, err
		default:
			return 0, nil, fmt.Errorf("%w: an entry of the unknown kind %d", errPage, kind)
		}
	}
	return 0, nil, nil
}

// split takes the first word of an entry apart. Bit fields lie in it in the order of
// the machine's bytes.
func (p *page) split(word uint32) (kind, delta uint32) {
	if littleEndian {
		return word & (1<<p.entry.lenBits - 1), word >> p.entry.lenBits
	}
	return word >> p.entry.deltaBits, word & (1<<p.entry.deltaBits - 1)
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// advance moves the time by a long step, or to an absolute time, whose highest bits
// are those of the time so far.
func (p *page) advance(kind uint32, n uint64) {
	if kind == p.entry.extend {
		p.time += n
		return
	}
	n = n&^longStamp | p.time&longStamp
	if n < p.time { // the bits that are left out have changed since
		n += 1 << bits.TrailingZeros64(longStamp)
	}
	p.time = n
}

// word looks at the word that follows.
func (p *page) word() (uint32, error) {
	if p.end-p.pos < entryAlign {
		return 0, fmt.Errorf("%w: an entry goes beyond its end", errPage)
	}
	return binary.NativeEndian.Uint32(p.data[p.pos:]), nil
}

// skip passes n bytes, at least so many.
func (p *page) skip(n uint32, least int) error {
	if int64(n) < int64(least) || int64(n) > int64(p.end-p.pos) {
		return fmt.Errorf("%w: an entry of %d bytes where %d are left", errPage, n, p.end-p.pos)
	}
	p.pos += int(n)
	return nil
}

// event gives an event's data and passes it. With a length of 0 the length is in the
// word that follows, and counts that word.
func (p *page) event(n int) ([]byte, error) {
	if n == 0 {
		long, err := p.word()
		if err != nil {
			return nil, err
		}
		start, length := p.pos+entryAlign, int64(long)
		if err := p.skip(uint32(min((length+entryAlign-1)/entryAlign*entryAlign, 1<<32-1)), 2*entryAlign); err != nil {
			return nil, err
		}
		return p.data[start:p.pos:p.pos], nil
	}
	start := p.pos
	if err := p.skip(uint32(n), entryAlign); err != nil {
		return nil, err
	}
	return p.data[start:p.pos:p.pos], nil
}

// count walks a copy of the page to its end: how many events it has.
func (p page) count() (n uint64, err error) {
	for {
		_, data, err := p.next()
		if err != nil || data == nil {
			return n, err
		}
		n++
	}
}
