//go:build linux

package trace

import "fmt"

// kind is what an event of the block layer says of a request.
type kind int

const (
	issue    kind = iota // the request is given to the device
	complete             // the device is done with it, or with its first part
	requeue              // the device did not take it; it will be issued again
	bioQueue             // a discard is on its way to become a request, or a part of one
)

// counter is the name of how many such events were seen.
func (k kind) counter() string {
	return [...]string{issue: "seen", complete: "completed", requeue: "requeued", bioQueue: "discards"}[k]
}

// sectorBytes is the unit of the block layer's events.
const sectorBytes = 512

// number is the device's number as events have it.
func number(major, minor uint32) uint32 { return major<<minorBits | minor }

const minorBits = 20

// eventLayout is where an event has what we need of it.
type eventLayout struct {
	kind                            kind
	id                              uint16
	dev, sector, sectors, rwbs, len field
	least                           int // bytes the event has at least
}

// record is what an event says.
type record struct {
	kind            kind
	dev             uint32
	sector, sectors uint64
	bytes           uint64 // of a request that is issued
	op              byte   // the operation's letter
}

// parseEvent reads an event's format file; id is where every event has its number.
func parseEvent(k kind, text string) (e eventLayout, id field, err error) {
	fields, err := parseFields(text)
	if err != nil {
		return e, id, err
	}
	e.kind = k
	want := map[string]*field{"common_type": &id, "dev": &e.dev, "sector": &e.sector, "nr_sector": &e.sectors}
	if k == issue {
		want["bytes"] = &e.len
	}
	if err := numbers(fields, want); err != nil {
		return e, id, err
	}
	rwbs, ok := fields["rwbs"]
	if !ok || rwbs.size == 0 {
		return e, id, fmt.Errorf(`the kernel describes no field "rwbs"`)
	}
	e.rwbs = rwbs
	for _, f := range []field{id, e.dev, e.sector, e.sectors, e.len, e.rwbs} {
		e.least = max(e.least, f.end())
	}
	if e.id, err = parseID(text); err != nil {
		return e, id, err
	}
	return e, id, nil
}

// decode takes an event of this layout apart.
func (e *eventLayout) decode(data []byte) (record, error) {
	if len(data) < e.least {
		return record{}, fmt.Errorf("%w: an event of %d bytes, which has at least %d", errPage, len(data), e.least)
	}
	r := record{kind: e.kind, dev: uint32(e.dev.uint(data)), sector: e.sector.uint(data), sectors: e.sectors.uint(data), op: operation(e.rwbs.text(data))}
	if e.len.size > 0 {
		r.bytes = e.len.uint(data)
	}
	return r, nil
}

// operation gives the letter of the operation. A flush that goes before it is an F in
// front, and letters behind it are flags: FWFSM is a write.
func operation(rwbs []byte) byte {
	if len(rwbs) > 1 && rwbs[0] == opFlush {
		rwbs = rwbs[1:]
	}
	if len(rwbs) == 0 {
		return opOther
	}
	return rwbs[0]
}

// Letters of operations. All the others, today W for writes, D for discards and secure
// erase, Z for zones and what kernels to come have, are changes when they have sectors.
// So is N, which stands for all that have no letter: kernels before 6.17 write zeroes
// with it.
const (
	opRead  = 'R'
	opFlush = 'F' // a flush alone has no sectors
	opOther = 'N'

	opDiscard = 'D'
)

// changes reports whether the event is of something that may change its sectors.
func (r record) changes() bool { return r.op != opRead && r.sectors > 0 }

// foreign reports whether a program speaks to the device in the device's own words,
// with data: a command that the block layer does not understand, and whose sectors
// nobody knows. Without data it is a question whether the disk is ready.
func (r record) foreign() bool {
	return r.kind == issue && r.op == opOther && r.sectors == 0 && r.bytes > 0
}
