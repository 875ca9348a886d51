//go:build linux

package ebpf

import (
	"fmt"
	"strings"
	"sync/atomic"
)

// Gap says why writes may have been missed since the last call. What it says is
// remembered as told when it is called again: a process that dies before it has dealt
// with a gap is told once more after its restart.
func (s *Source) Gap() (string, error) {
	var why []string
	for _, d := range s.disks {
		why = append(why, d.gap()...)
	}
	more, err := s.programs.gap(s.disks)
	return strings.Join(append(why, more...), "; "), err
}

// gap of one disk.
func (d *disk) gap() (why []string) {
	d.oldPassthrough, d.oldBeyond, d.oldChains = d.told[0], d.told[1], d.told[2]
	for i, c := range []struct {
		n    *uint64
		what string
	}{
		{&d.passthrough, "commands went to %s past the block layer (passthrough), %d of them"},
		{&d.beyond, "writes went behind what was the end of %s, %d of them"},
		{&d.chains, "discards of %s had too many ranges, %d of them"},
	} {
		now := atomic.LoadUint64(c.n)
		if now != d.told[i] {
			why = append(why, fmt.Sprintf(c.what, d.path, now-d.told[i]))
		}
		d.told[i] = now
	}
	id, err := identify(d.number)
	switch {
	case id == d.seen:
	case err != nil:
		why = append(why, fmt.Sprintf("%s is gone: %v", d.path, err))
	case id.Seq != d.seen.Seq || id.Inode != d.seen.Inode:
		why = append(why, fmt.Sprintf("%s is another disk than it was", d.path))
	default:
		why = append(why, fmt.Sprintf("%s had %d bytes and has %d", d.path, d.seen.Size, id.Size))
	}
	d.seen = id
	return why
}

// gap of all disks together.
func (p *programs) gap(disks []*disk) (why []string, err error) {
	old, now := p.told, p.told
	for _, c := range []struct {
		n    *uint64
		read func() (uint64, error)
	}{
		{&now.lost, func() (uint64, error) { return p.stat(statRangesLost) }},
		{&now.unknown, func() (uint64, error) { return p.stat(statPassthroughUnknown) }},
		{&now.issue, func() (uint64, error) { return p.misses(trackProgIssue) }},
		{&now.complete, func() (uint64, error) { return p.misses(trackProgComplete) }},
	} {
		if *c.n, err = c.read(); err != nil {
			return nil, err
		}
	}
	p.kept.lost, p.kept.unknown, p.kept.issue, p.kept.complete = old.lost, old.unknown, old.issue, old.complete
	p.told = now
	if n := now.lost - old.lost; n > 0 {
		why = append(why, fmt.Sprintf("%d large discards or writes found no room in the kernel's ring", n))
	}
	if n := now.unknown - old.unknown; n > 0 {
		why = append(why, fmt.Sprintf("%d commands went to unknown disks past the block layer (passthrough)", n))
	}
	if n := now.issue - old.issue; n > 0 {
		why = append(why, fmt.Sprintf("the kernel did not run the program for %d writes (recursion)", n))
	}
	// A completion that was not seen is no loss, but for a write that was begun before
	// its disk was followed.
	if n := now.complete - old.complete; n > 0 && anyYoung(disks) {
		why = append(why, fmt.Sprintf("the kernel did not run the program for the ends of %d writes that may have begun before tracking did (recursion)", n))
	}
	return why, nil
}

func anyYoung(disks []*disk) bool {
	for _, d := range disks {
		if clock() < d.sure {
			return true
		}
	}
	return false
}

// Counters are what was counted since the programs were loaded.
func (s *Source) Counters() (map[string]uint64, error) {
	out := map[string]uint64{"disks": uint64(len(s.disks))}
	for i, name := range [stats]string{"issued", "done", "done_unsure", "doubts", "ranges", "ranges_lost", "ranges_done_lost", "passthrough_unknown"} {
		n, err := s.programs.stat(uint32(i)) //nolint:gosec // a small index
		if err != nil {
			return nil, err
		}
		out[name] = n
	}
	for _, name := range events {
		n, err := s.programs.misses(name)
		if err != nil {
			return nil, err
		}
		out[name+"_missed"] = n
	}
	for i, d := range s.disks {
		out["passthrough"] += atomic.LoadUint64(&d.passthrough)
		out["beyond_end"] += atomic.LoadUint64(&d.beyond)
		out["chains_too_long"] += atomic.LoadUint64(&d.chains)
		out["pending"] += uint64(s.pending[i])    //nolint:gosec // not negative
		out["memory_bytes"] += uint64(len(d.raw)) //nolint:gosec // not negative
	}
	return out, nil
}
