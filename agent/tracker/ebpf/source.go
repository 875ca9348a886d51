//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

const (
	// maxDevices bounds how many disks are followed at once.
	maxDevices = 64
	// maxShare bounds the kernel's memory for all disks, as a part of the machine's
	// memory: 130 MiB for a TiB of disk. It counts as the agent's (MemoryHigh of its
	// unit), as does what the tracker keeps with the disks: half as much.
	maxShare = 10
	// maxMemory bounds what somebody keeps with a disk by Memory.
	maxMemory = 1 << 34
)

// Source implements [changes.Source].
type Source struct {
	programs *programs
	pins     *pins // nil: nothing outlives the process
	unpinned string
	disks    []*disk // in the order of Follow
	limit    uint64  // changes.PendingLimit in nanoseconds
	pending  []int64 // of each disk, at its last Drain
}

var _ changes.Source = (*Source)(nil)

// Open loads the programs, or finds them pinned in a directory. The directory is made;
// it is to be in a mounted bpffs, as [DefaultDir] is. Where there is none, or with an
// empty name, the source ends with the process; see [Source.Unpinned]. A directory
// that another process uses is an error.
func Open(dir string) (*Source, error) {
	s := &Source{limit: uint64(changes.PendingLimit)}
	var err error
	if s.pins, s.unpinned, err = openPins(dir); err != nil {
		return nil, err
	}
	if s.programs = s.pins.load(); s.programs != nil {
		return s, nil
	}
	if s.programs, err = load(); err != nil {
		return nil, errors.Join(fmt.Errorf("start tracking changes by eBPF: %w", err), s.pins.close())
	}
	if err := s.pins.pin(s.programs); err != nil {
		s.unpinned = errors.Join(err, s.pins.wipe(), s.pins.close()).Error()
		s.pins = nil
	}
	return s, nil
}

// Name is "ebpf".
func (*Source) Name() string { return Name }

// Unpinned says why nothing outlives the process; it is empty if all does.
func (s *Source) Unpinned() string { return s.unpinned }

// Follow follows these disks and no others.
func (s *Source) Follow(devices []changes.Device) ([]bool, error) {
	ids, err := checkAll(devices)
	if err != nil {
		return nil, err
	}
	old := map[number]*disk{}
	for _, d := range s.disks {
		old[d.number] = d
	}
	disks, kept := make([]*disk, len(devices)), make([]bool, len(devices))
	for i, device := range devices {
		if d := old[numberOf(device)]; d != nil && d.identity() == ids[i] {
			disks[i], kept[i] = d, true
			continue
		}
		if disks[i], kept[i], err = s.take(device, ids[i]); err != nil {
			return nil, errors.Join(fmt.Errorf("follow %s (%s): %w", device.Path, numberOf(device), err), s.giveUp(disks[:i]))
		}
	}
	before := s.disks
	s.disks, s.pending = disks, make([]int64, len(disks))
	return kept, errors.Join(s.release(before, disks), s.forgetOthers())
}

// giveUp stops following the disks that were not followed before.
func (s *Source) giveUp(disks []*disk) error {
	var errs []error
	for _, d := range disks {
		if !slices.Contains(s.disks, d) {
			errs = append(errs, s.unfollow(d.number), d.close())
		}
	}
	return errors.Join(errs...)
}

// checkAll refuses what cannot be followed before anything is changed.
func checkAll(devices []changes.Device) ([]identity, error) {
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("follow %d disks: at most %d can be followed at once", len(devices), maxDevices)
	}
	ids, there, need := make([]identity, len(devices)), map[number]string{}, int64(0)
	for i, device := range devices {
		n := numberOf(device)
		if other, twice := there[n]; twice {
			return nil, fmt.Errorf("follow %s: it is the same disk (%s) as %s", device.Path, n, other)
		}
		there[n] = device.Path
		var err error
		if ids[i], err = check(device); err != nil {
			return nil, fmt.Errorf("follow %s: %w", device.Path, err)
		}
		need += elements(device.Size) * wordBytes
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("ask for the size of the memory: %w", err)
	}
	return ids, enough(len(devices), need, int64(info.Totalram)*int64(info.Unit)) //nolint:gosec // of a machine
}

// enough reports whether the machine's memory is.
func enough(devices int, need, all int64) error {
	if have := all / maxShare; need > have {
		return fmt.Errorf("follow %d disks: it takes %d MiB of the kernel's memory, and no more than %d MiB (a tenth of the machine's) may be used; give the machine more memory, or protect fewer disks",
			devices, need>>20, have>>20)
	}
	return nil
}

// take gives a disk that an earlier process followed, or begins to follow it.
func (s *Source) take(device changes.Device, id identity) (*disk, bool, error) {
	d, err := s.pins.disk(device, id)
	if err != nil {
		return nil, false, err
	}
	if d != nil && s.programs.has(d) {
		d.resume()
		return d, true, nil
	}
	if d != nil {
		if err := d.close(); err != nil {
			return nil, false, err
		}
	}
	if d, err = newDisk(device, id); err != nil {
		return nil, false, err
	}
	if err := s.pins.addDisk(d); err != nil {
		return nil, false, errors.Join(err, d.close())
	}
	if err := s.programs.add(d); err != nil {
		return nil, false, errors.Join(err, s.unfollow(d.number), d.close())
	}
	d.begin(s.limit)
	return d, false, nil
}

// release stops following those disks that are not among others. A number that one of
// the others has by now stays followed.
func (s *Source) release(disks, others []*disk) error {
	var errs []error
	for _, d := range disks {
		if slices.Contains(others, d) {
			continue
		}
		if !slices.ContainsFunc(others, func(o *disk) bool { return o.number == d.number }) {
			errs = append(errs, s.unfollow(d.number))
		}
		errs = append(errs, d.close())
	}
	return errors.Join(errs...)
}

func (s *Source) unfollow(n number) error {
	return errors.Join(s.programs.remove(n), s.pins.removeDisk(n))
}

// forgetOthers stops following what an earlier process followed and this one does not.
func (s *Source) forgetOthers() error {
	follow := map[number]bool{}
	for _, d := range s.disks {
		follow[d.number] = true
	}
	all, err := s.programs.all()
	errs := []error{err}
	for _, n := range all {
		if !follow[n] {
			errs = append(errs, s.unfollow(n))
		}
	}
	return errors.Join(errs...)
}

func (s *Source) find(i int) (*disk, error) {
	if i < 0 || i >= len(s.disks) {
		return nil, fmt.Errorf("disk %d of %d that are followed", i, len(s.disks))
	}
	return s.disks[i], nil
}

// apply marks a range that the programs have put into the ring.
func (s *Source) apply(r span) {
	for _, d := range s.disks {
		if uint64(d.number) == r.dev {
			d.apply(r)
		}
	}
}

// Drain adds what may have changed on a disk since the last Drain to the bitmap. It
// adds before it takes: if the bitmap outlives processes, as that of Memory does, a
// process that is killed here loses nothing.
func (s *Source) Drain(device int, into changes.Bitmap) error {
	d, err := s.find(device)
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	if len(into) < len(d.words) {
		return fmt.Errorf("drain %s: the bitmap has %d words, the disk takes %d", d.path, len(into), len(d.words))
	}
	if err := s.programs.ring.drain(s.apply); err != nil {
		return fmt.Errorf("drain %s: %w", d.path, err)
	}
	s.pending[device] = d.drain(into, clock()-d.turned >= s.limit)
	return nil
}

// Memory gives memory that lives as long as the following of the disk does.
func (s *Source) Memory(device int, name string, n int) ([]byte, bool, error) {
	d, err := s.find(device)
	if err != nil {
		return nil, false, fmt.Errorf("memory %q: %w", name, err)
	}
	if !nameOK(name) || n <= 0 || n > maxMemory {
		return nil, false, fmt.Errorf("memory %q of %d bytes for %s: a name has 1 to 8 lower-case letters, and there are at most %d bytes", name, n, d.path, maxMemory)
	}
	if m, ok := d.memory[name]; ok && m.n == n {
		return m.raw[:n], true, nil
	} else if ok {
		return nil, false, fmt.Errorf("memory %q for %s: it has %d bytes, not %d", name, d.path, m.n, n)
	}
	m, kept, err := s.pins.memory(d.number, name, n)
	if err != nil {
		return nil, false, fmt.Errorf("memory %q of %d bytes for %s: %w", name, n, d.path, err)
	}
	d.memory[name] = m
	return m.raw[:n], kept, nil
}

func nameOK(name string) bool {
	for _, c := range name {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return len(name) >= 1 && len(name) <= 8
}

// Close lets go of everything. What is pinned goes on. It may be called twice.
func (s *Source) Close() error {
	var errs []error
	for _, d := range s.disks {
		errs = append(errs, d.close())
	}
	if s.programs != nil {
		errs = append(errs, s.programs.close(), s.pins.close())
	}
	s.disks, s.programs = nil, nil
	return errors.Join(errs...)
}
