package trace

import (
	"slices"

	"drover/agent/tracker/changes"
)

// maxDiscards bounds how many discards of one device may be under way.
const maxDiscards = 4096

// discards are those under way on a device that takes several ranges in one request:
// the events of such a request name the first range only. So they are followed before
// they become requests. What says that one is done has only its end; a discard that was
// split says so of each part.
type discards []discard

type discard struct {
	span
	at int64
}

// add notes a discard. It is false when there is no room.
func (d *discards) add(s span, at int64) bool {
	if len(*d) == maxDiscards {
		return false
	}
	*d = append(*d, discard{s, at})
	return true
}

// done forgets the shortest discard with this end, and gives it. When the end may also
// be that of a part of another one, none is: it stays until its time is over.
func (d *discards) done(end uint64) (span, bool) {
	found := -1
	for i, x := range *d {
		if x.first < end && end < x.end {
			return span{}, false
		}
		if x.end == end && (found < 0 || x.first > (*d)[found].first) {
			found = i
		}
	}
	if found < 0 {
		return span{}, false
	}
	s := (*d)[found].span
	*d = slices.Delete(*d, found, found+1)
	return s, true
}

// report calls mark for every discard that is under way, for those that are too old a
// last time.
func (d *discards) report(now int64, mark func(span)) {
	*d = slices.DeleteFunc(*d, func(x discard) bool {
		mark(x.span)
		return now-x.at > int64(changes.PendingLimit)
	})
}
