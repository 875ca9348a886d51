//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Indexes of the counters of the programs; bpf/track.h says the same in C.
const (
	statIssued = iota
	statDone
	statSeen
	statDoubts
	statRanges
	statRangesLost
	statRangesDoneLost
	statPassthroughUnknown
	stats
)

// events are the names of the programs, by what they are attached to.
var events = []string{trackProgIssue, trackProgComplete, trackProgRequeue}

// programs is what is loaded into the kernel once, for all disks.
type programs struct {
	maps     map[string]*ebpf.Map
	state    *ebpf.Map
	raw      []byte
	kept     *state // that outlives the process, if it is pinned
	programs map[string]*ebpf.Program
	links    map[string]link.Link
	ring     *ring
	told     state // as of the last call of Gap
}

// state is memory that is pinned beside the programs.
type state struct {
	format   uint64
	lost     uint64 // what Gap has told of, but for its last call
	unknown  uint64
	issue    uint64
	complete uint64
	_        [3]uint64
}

const stateBytes = uint32(unsafe.Sizeof(state{}))

// load loads and attaches the programs.
func load() (*programs, error) {
	spec, err := loadTrack()
	if err != nil {
		return nil, err
	}
	all, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	p := &programs{maps: all.Maps, programs: all.Programs, links: map[string]link.Link{}}
	for _, name := range events {
		if p.links[name], err = link.AttachTracing(link.TracingOptions{Program: p.programs[name]}); err != nil {
			return nil, errors.Join(fmt.Errorf("attach to the block layer's event %s: %w", name, err), p.close())
		}
	}
	if p.state, err = ebpf.NewMap(arraySpec(stateBytes, 1, 0)); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if err := p.view(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	p.kept.format = format()
	return p, nil
}

// view maps what the programs share with the agent.
func (p *programs) view() (err error) {
	if p.ring, err = mapRing(p.maps[trackMapRanges]); err != nil {
		return err
	}
	if p.raw, err = mapArray(p.state); err != nil {
		return err
	}
	p.kept = (*state)(unsafe.Pointer(&p.raw[0])) //nolint:gosec // pages are aligned
	return nil
}

// has reports whether the programs know the disk's memory.
func (p *programs) has(d *disk) bool {
	var id ebpf.MapID
	key := uint64(d.number)
	if err := p.maps[trackMapDisks].Lookup(&key, &id); err != nil {
		return false
	}
	info, err := d.array.Info()
	if err != nil {
		return false
	}
	own, ok := info.ID()
	return ok && own == id
}

// add has the programs follow a disk. When it returns they all do: the kernel waits
// for those that run.
func (p *programs) add(d *disk) error {
	key := uint64(d.number)
	if err := p.maps[trackMapDisks].Update(&key, d.array, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("hand the disk to the programs: %w", err)
	}
	return nil
}

// remove has the programs follow a disk no longer.
func (p *programs) remove(n number) error {
	key := uint64(n)
	if err := p.maps[trackMapDisks].Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take the disk %s from the programs: %w", n, err)
	}
	return nil
}

// all gives the disks that the programs follow.
func (p *programs) all() (numbers []number, err error) {
	var key uint64
	var id ebpf.MapID
	entries := p.maps[trackMapDisks].Iterate()
	for entries.Next(&key, &id) {
		numbers = append(numbers, number(key))
	}
	return numbers, entries.Err()
}

// stat sums a counter over the processors.
func (p *programs) stat(i uint32) (sum uint64, err error) {
	var each []uint64
	if err := p.maps[trackMapStats].Lookup(&i, &each); err != nil {
		return 0, fmt.Errorf("read the programs' counters: %w", err)
	}
	for _, n := range each {
		sum += n
	}
	return sum, nil
}

// misses is how often the kernel did not run a program because it was running already.
func (p *programs) misses(name string) (uint64, error) {
	s, err := p.programs[name].Stats()
	if err != nil {
		return 0, fmt.Errorf("ask for the program %s: %w", name, err)
	}
	return s.RecursionMisses, nil
}

// close lets go of the programs; unless they are pinned they end.
func (p *programs) close() error {
	var errs []error
	for _, l := range p.links {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	for _, prog := range p.programs {
		errs = append(errs, prog.Close())
	}
	for _, m := range p.maps {
		errs = append(errs, m.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.close())
	}
	if p.raw != nil {
		errs = append(errs, unmap(p.raw))
	}
	if p.state != nil {
		errs = append(errs, p.state.Close())
	}
	return errors.Join(errs...)
}
