//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

// Names of pins. The state is pinned last and looked for first: where it is, all is.
const (
	pinState  = "state"
	pinMap    = "map-"
	pinLink   = "link-"
	pinDisk   = "disk-"
	pinMemory = "memory-"
)

// version goes up when something of what is pinned gets another meaning.
const version = 1

// format tells whether what is pinned is what this agent would pin: programs of
// another agent are replaced, and nothing of them is kept.
func format() uint64 { return version<<32 | uint64(crc32.ChecksumIEEE(_TrackBytes)) }

// pins is a directory of a bpffs, which one process uses at a time. A nil one pins
// nothing.
type pins struct {
	path string
	lock *os.File // the directory
}

// openPins takes a directory for this process. Where nothing can be pinned it says
// why.
func openPins(dir string) (*pins, string, error) {
	if dir == "" {
		return nil, "no directory for it is configured", nil
	}
	var in unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(dir), &in); err != nil {
		return nil, fmt.Sprintf("look at %s: %v", filepath.Dir(dir), err), nil
	}
	if in.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Sprintf("%s is not in a bpffs; mount one: mount -t bpf bpf /sys/fs/bpf", dir), nil
	}
	f, err := makeDir(dir)
	if f == nil {
		return nil, err.Error(), nil
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("changes are tracked by %s already (%s): stop it, there can be only one", holder(f), dir)
		}
		return nil, "", errors.Join(err, f.Close())
	}
	var there unix.Stat_t
	if err := unix.Stat(dir, &there); err != nil || inode(f) != [2]uint64{there.Dev, there.Ino} {
		return nil, "", errors.Join(fmt.Errorf("%s was just removed by another process: start again", dir), f.Close())
	}
	return &pins{dir, f}, "", nil
}

// makeDir makes a directory, unless it is there, and opens it.
func makeDir(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.Open(dir) //nolint:gosec // of the configuration
}

func inode(f *os.File) [2]uint64 {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return [2]uint64{}
	}
	return [2]uint64{stat.Dev, stat.Ino}
}

// holder names the process that has a file locked.
func holder(f *os.File) string {
	locks, err := os.ReadFile("/proc/locks")
	id := inode(f)
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(id[0]), unix.Minor(id[0]), id[1])
	for line := range strings.Lines(string(locks)) {
		if part := strings.Fields(line); err == nil && len(part) > 5 && part[1] == "FLOCK" && part[5] == want {
			name, _ := os.ReadFile(filepath.Join("/proc", part[4], "comm")) // a hint
			return strings.TrimSpace("process " + part[4] + " " + strings.TrimSpace(string(name)))
		}
	}
	return "another process"
}

func (p *pins) close() error {
	if p == nil {
		return nil
	}
	return p.lock.Close()
}

func (p *pins) file(parts ...string) string { return filepath.Join(p.path, strings.Join(parts, "")) }

// load gives the programs that are pinned; nil if there are none, or not those that
// this agent would load.
func (p *pins) load() *programs {
	if p == nil {
		return nil
	}
	all, err := p.find()
	if err == nil && all.kept.format == format() {
		all.told = *all.kept
		return all
	}
	_ = all.close()
	return nil
}

// find gives what is pinned. What it gives is to be closed, also after an error.
func (p *pins) find() (all *programs, err error) {
	all = &programs{maps: map[string]*ebpf.Map{}, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{}}
	if all.state, err = ebpf.LoadPinnedMap(p.file(pinState), nil); err != nil {
		return all, err
	}
	if all.state.ValueSize() != stateBytes {
		return all, errors.New("another version")
	}
	for _, name := range []string{trackMapDisks, trackMapRanges, trackMapStats} {
		if all.maps[name], err = ebpf.LoadPinnedMap(p.file(pinMap, name), nil); err != nil {
			return all, err
		}
	}
	for _, name := range events {
		if all.links[name], err = link.LoadPinnedLink(p.file(pinLink, name), nil); err != nil {
			return all, err
		}
		info, err := all.links[name].Info()
		if err != nil {
			return all, err
		}
		if all.programs[name], err = ebpf.NewProgramFromID(info.Program); err != nil {
			return all, err
		}
	}
	return all, all.view()
}

// pin pins the programs in place of what was there.
func (p *pins) pin(all *programs) error {
	if p == nil {
		return nil
	}
	if err := p.wipe(); err != nil {
		return err
	}
	for name, m := range all.maps {
		if err := m.Pin(p.file(pinMap, name)); err != nil {
			return err
		}
	}
	for name, l := range all.links {
		if err := l.Pin(p.file(pinLink, name)); err != nil {
			return err
		}
	}
	return all.state.Pin(p.file(pinState))
}

// wipe removes all pins of ours.
func (p *pins) wipe() error {
	if p == nil {
		return nil
	}
	return p.remove(func(name string) bool {
		for _, prefix := range []string{pinState, pinMap, pinLink, pinDisk, pinMemory} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	})
}

func (p *pins) remove(which func(name string) bool) error {
	entries, err := os.ReadDir(p.path)
	errs := []error{err}
	for _, e := range entries {
		if which(e.Name()) {
			errs = append(errs, os.Remove(p.file(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// disk gives the memory that is pinned of a disk; nil if there is none, or it is of
// another one.
func (p *pins) disk(device changes.Device, id identity) (*disk, error) {
	if p == nil {
		return nil, nil
	}
	array, err := ebpf.LoadPinnedMap(p.file(pinDisk, numberOf(device).file()), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if int64(array.MaxEntries()) != elements(device.Size) || int64(array.ValueSize()) != wordBytes {
		return nil, array.Close()
	}
	d, err := viewDisk(device, array)
	if err != nil {
		return nil, errors.Join(err, array.Close())
	}
	if d.identity() != id || d.since == never {
		return nil, d.close()
	}
	return d, nil
}

// addDisk pins the memory of a disk in place of that of one with the same number.
func (p *pins) addDisk(d *disk) error {
	if p == nil {
		return nil
	}
	return errors.Join(p.removeDisk(d.number), d.array.Pin(p.file(pinDisk, d.number.file())))
}

// removeDisk removes what is pinned of a disk.
func (p *pins) removeDisk(n number) error {
	if p == nil {
		return nil
	}
	return p.remove(func(name string) bool {
		return name == pinDisk+n.file() || strings.HasPrefix(name, pinMemory+n.file()+"-")
	})
}

// memory gives memory of a disk, and whether it was there.
func (p *pins) memory(n number, name string, size int) (m memory, kept bool, err error) {
	const value = 8
	m.n = size
	count := (int64(size) + value - 1) / value
	if p != nil {
		m.array, err = ebpf.LoadPinnedMap(p.file(pinMemory, n.file(), "-", name), nil)
		kept = err == nil && int64(m.array.MaxEntries()) == count && m.array.ValueSize() == value
		if err == nil && !kept {
			err = errors.Join(m.array.Close(), os.Remove(p.file(pinMemory, n.file(), "-", name)))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return m, false, err
		}
	}
	if !kept {
		if m.array, err = ebpf.NewMap(arraySpec(value, count, 0)); err != nil {
			return m, false, err
		}
	}
	if m.raw, err = mapArray(m.array); err != nil {
		return m, false, errors.Join(err, m.array.Close())
	}
	if p != nil && !kept {
		if err = m.array.Pin(p.file(pinMemory, n.file(), "-", name)); err != nil {
			return m, false, errors.Join(err, unmap(m.raw), m.array.Close())
		}
	}
	return m, kept, nil
}

// Unpin ends the programs that are pinned in a directory and removes it, for an agent
// that is uninstalled. No directory is no error.
func Unpin(dir string) error {
	if !exists(dir) {
		return nil
	}
	p, why, err := openPins(dir)
	if err == nil && p == nil {
		err = errors.New(why)
	}
	if err != nil {
		return fmt.Errorf("remove the pinned programs: %w", err)
	}
	return errors.Join(p.wipe(), os.Remove(dir), p.close())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
