//go:build linux

package trace

import "drover/agent/tracker/changes"

// maxFlights bounds how many writes of one device may be under way at once: more than
// any device's queues take. What is beyond makes a gap.
const maxFlights = 1 << 16

// span is a range of sectors.
type span struct{ first, end uint64 }

// flights are the writes to one device that are under way. Two of them may begin at
// the same sector.
type flights struct {
	heads map[uint64]int32 // by first sector, the index of the latest in all
	all   []flight
	free  int32 // the index of an unused one, -1 if there is none
	count int
}

type flight struct {
	span
	at   int64 // when it was noticed, by our clock
	next int32 // the one before that begins at the same sector, or the next unused one; -1 for none
	used bool
}

func newFlights() flights { return flights{heads: map[uint64]int32{}, free: -1} }

// add notes a write. It is false when there is no room.
func (f *flights) add(s span, at int64) bool {
	i := f.free
	switch {
	case i >= 0:
		f.free = f.all[i].next
	case len(f.all) == maxFlights:
		return false
	default:
		i = int32(len(f.all))
		f.all = append(f.all, flight{})
	}
	before, ok := f.heads[s.first]
	if !ok {
		before = -1
	}
	f.all[i] = flight{span: s, at: at, next: before, used: true}
	f.heads[s.first] = i
	f.count++
	return true
}

// done takes the sectors off a write that begins with them: of several one of the same
// length, else one that is longer and goes on. It is false when there is none.
func (f *flights) done(s span) bool {
	longer := int32(-1)
	for i := f.head(s.first); i >= 0; i = f.all[i].next {
		if f.all[i].end == s.end {
			f.drop(i)
			return true
		}
		if f.all[i].end > s.end {
			longer = i
		}
	}
	if longer < 0 {
		return false
	}
	rest := f.all[longer]
	f.drop(longer)
	return f.add(span{s.end, rest.end}, rest.at)
}

func (f *flights) head(first uint64) int32 {
	if i, ok := f.heads[first]; ok {
		return i
	}
	return -1
}

// drop forgets a write.
func (f *flights) drop(i int32) {
	w := &f.all[i]
	if at := f.heads[w.first]; at != i {
		for f.all[at].next != i {
			at = f.all[at].next
		}
		f.all[at].next = w.next
	} else if w.next >= 0 {
		f.heads[w.first] = w.next
	} else {
		delete(f.heads, w.first)
	}
	*w = flight{next: f.free}
	f.free = i
	f.count--
}

// report calls mark for every write that is under way. Those that were noticed longer
// than the limit ago are reported for the last time.
func (f *flights) report(now int64, mark func(span)) {
	for i := range f.all {
		w := f.all[i]
		if !w.used {
			continue
		}
		mark(w.span)
		if now-w.at > int64(changes.PendingLimit) {
			f.drop(int32(i))
		}
	}
	if f.count == 0 {
		f.all, f.free = f.all[:0], -1 // the next ones are found faster
	}
}
