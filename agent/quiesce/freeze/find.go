//go:build linux

package freeze

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/agent/mountinfo"
)

// Types of file systems that the kernel cannot freeze and that hardly change.
var still = []string{"vfat", "msdos"}

// finder looks for file systems; the kernel's files are under root.
type finder struct {
	devices
	mountinfo, swaps string
	writers          func(wanted []mountinfo.Number) (map[mountinfo.Number]string, error)

	mounted []*place
	byDev   map[mountinfo.Number]*place
	disks   map[string]bool   // by name
	images  map[identity]bool // files that stand for disks
	loopOf  map[string]string // backing files by loop device
}

// place is a mounted file system and what it lies on.
type place struct {
	FileSystem
	readOnly bool
	devices  []string // it is made of directly
	lower    []*place // that hold files it lies on
	lies     bool     // on a protected disk
	seen     bool
}

// Find finds the file systems on disks: block devices or image files, by path.
func Find(disks []string) (*Set, error) {
	f := &finder{devices: devices{"/sys", identify}, mountinfo: "/proc/self/mountinfo", swaps: "/proc/swaps", writers: writers}
	s, err := f.find(disks)
	if err != nil {
		return nil, fmt.Errorf("find the file systems on the disks: %w", err)
	}
	return s, nil
}

func (f *finder) find(disks []string) (*Set, error) {
	if err := f.protect(disks); err != nil {
		return nil, err
	}
	if err := f.readMounts(); err != nil {
		return nil, err
	}
	for _, p := range f.mounted {
		if err := f.locate(p, 0); err != nil {
			return nil, err
		}
	}
	s := &Set{}
	for _, p := range f.mounted {
		switch {
		case !p.lies || p.readOnly:
		case slices.Contains(still, p.Type):
			s.Notes = append(s.Notes, p.String()+" cannot be frozen")
		default:
			s.FileSystems = append(s.FileSystems, p.FileSystem)
		}
	}
	slices.SortFunc(s.FileSystems, func(a, b FileSystem) int {
		return cmp.Or(-cmp.Compare(a.level, b.level), cmp.Compare(a.Device.Major, b.Device.Major), cmp.Compare(a.Device.Minor, b.Device.Minor))
	})
	if len(s.FileSystems) == 0 {
		return s, nil // nothing to freeze, so that nothing else matters
	}
	return s, f.bare(s)
}

// protect notes what the disks are.
func (f *finder) protect(disks []string) (err error) {
	f.disks, f.images = map[string]bool{}, map[identity]bool{}
	if f.loopOf, err = f.loops(); err != nil {
		return err
	}
	for _, path := range disks {
		id, err := f.identify(path)
		switch {
		case err != nil:
			return err
		case id.regular:
			f.images[id.file()] = true
		case id.block:
			name, err := f.name(id.number)
			if err != nil {
				return err
			}
			f.disks[name] = true
		default:
			return fmt.Errorf("%s is neither a block device nor an image file", path)
		}
	}
	return nil
}

// readMounts gathers the mounts by file system.
func (f *finder) readMounts() error {
	text, err := os.ReadFile(f.mountinfo)
	if err != nil {
		return err
	}
	f.byDev = map[mountinfo.Number]*place{}
	for m, err := range mountinfo.All(bytes.NewReader(text)) {
		if err != nil {
			return err
		}
		p := f.byDev[m.Device]
		if p == nil {
			p = &place{FileSystem: FileSystem{Device: m.Device, Type: m.Type, Point: m.Point}, readOnly: m.ReadOnly}
			f.byDev[m.Device] = p
			f.mounted = append(f.mounted, p)
		}
		p.mounts = append(p.mounts, m)
	}
	return nil
}

// locate finds out what a file system lies on.
func (f *finder) locate(p *place, depth int) error {
	if p.seen {
		return nil
	}
	p.seen = true
	if err := f.devicesOf(p); err != nil {
		return err
	}
	visited := map[string]bool{}
	for _, name := range p.devices {
		if err := f.descend(p, name, visited, depth); err != nil {
			return err
		}
	}
	for _, l := range p.lower {
		p.lies = p.lies || l.lies
		p.level = max(p.level, l.level+1)
	}
	return nil
}

// devicesOf finds the devices that a file system is made of.
func (f *finder) devicesOf(p *place) error {
	number := p.Device
	if number.Major == 0 { // no device of its own
		source := p.mounts[0].Source
		if !filepath.IsAbs(source) {
			return nil // tmpfs, NFS and the like
		}
		id, err := f.identify(source)
		if err != nil || !id.block {
			return nil //nolint:nilerr // a name, no device
		}
		number = id.number
	}
	name, err := f.name(number)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a device that has vanished under its mount
	}
	if err != nil {
		return err
	}
	p.devices = []string{name}
	if p.Type == "btrfs" {
		p.devices = f.members(name)
	}
	return nil
}

// descend follows a device down to the disks.
func (f *finder) descend(p *place, name string, visited map[string]bool, depth int) error {
	if visited[name] {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("%s: devices lie on each other more than %d deep", p.Point, maxDepth)
	}
	visited[name] = true
	p.lies = p.lies || f.disks[name]
	names, file, err := f.below(name)
	if err != nil {
		return err
	}
	if file != "" {
		more, err := f.under(p, file, depth)
		if err != nil {
			return err
		}
		names = append(names, more...)
	}
	for _, n := range names {
		if err := f.descend(p, n, visited, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// under follows a loop device's file: to the file system that holds it, or, when it is
// a device itself, to that.
func (f *finder) under(p *place, file string, depth int) (devices []string, err error) {
	id, err := f.identify(file)
	if err != nil {
		return nil, nil //nolint:nilerr // deleted, or of another mount namespace: it is not on a disk that we would find
	}
	if id.block {
		name, err := f.name(id.number)
		return []string{name}, err
	}
	p.lies = p.lies || f.images[id.file()]
	if lower := f.byDev[id.dev]; lower != nil && lower != p {
		if err := f.locate(lower, depth+1); err != nil {
			return nil, err
		}
		p.lower = append(p.lower, lower)
	}
	return nil, nil
}

// bare finds what on the disks is not in a file system of ours.
func (f *finder) bare(s *Set) error {
	swaps, err := f.swapDevices()
	if err != nil {
		return err
	}
	used := map[string]*place{}
	for _, p := range f.mounted {
		for _, d := range p.devices {
			used[d] = p
		}
	}
	var open []mountinfo.Number
	names := map[mountinfo.Number]string{}
	for _, name := range f.tops() {
		switch {
		case used[name] != nil || f.readOnly(name) || f.empty(name):
		case swaps[name]:
			s.Notes = append(s.Notes, name+" is swap")
		case f.elsewhere(name):
			s.Loose = append(s.Loose, name+", mounted where the agent does not see it")
		default:
			b, err := os.ReadFile(filepath.Join(f.sys, "class/block", name, "dev"))
			if err != nil {
				return err
			}
			n, err := mountinfo.ParseNumber(strings.TrimSpace(string(b)))
			if err != nil {
				return err
			}
			open, names[n] = append(open, n), name
		}
	}
	if len(open) == 0 {
		return f.bareImages(s)
	}
	who, err := f.writers(open)
	if err != nil {
		return err
	}
	hidden := f.hidden()
	for _, n := range open {
		switch w := who[n]; {
		case w != "":
			s.Loose = append(s.Loose, fmt.Sprintf("%s, which %s writes to", names[n], w))
		case hidden != "":
			s.Loose = append(s.Loose, fmt.Sprintf("%s, perhaps of %s", names[n], hidden))
		}
	}
	return f.bareImages(s)
}

// hidden names what of this machine does not tell which devices it writes to.
func (f *finder) hidden() string {
	if slices.ContainsFunc(f.mounted, func(p *place) bool { return p.Type == "zfs" }) {
		return "ZFS"
	}
	if found, err := filepath.Glob(filepath.Join(f.sys, "block/drbd*")); err == nil && len(found) > 0 {
		return "DRBD"
	}
	return ""
}

// bareImages: nobody knows who writes to a file that stands for a disk, unless it is
// a loop device's.
func (f *finder) bareImages(s *Set) error {
	looped := map[identity]bool{}
	for _, file := range f.loopOf {
		if id, err := f.identify(file); err == nil {
			looped[id.file()] = true
		}
	}
	for id := range f.images {
		if !looped[id] {
			s.Loose = append(s.Loose, "an image file")
		}
	}
	return nil
}

// tops gives the devices on the disks that nothing else lies on.
func (f *finder) tops() (out []string) {
	seen := map[string]bool{}
	var climb func(name string, depth int)
	climb = func(name string, depth int) {
		if seen[name] || depth > maxDepth {
			return
		}
		seen[name] = true
		above, err := f.above(name)
		for loop, file := range f.loopOf {
			if id, e := f.identify(file); e == nil && id.block {
				if n, e := f.name(id.number); e == nil && n == name {
					above = append(above, loop)
				}
			}
		}
		if err != nil || len(above) == 0 {
			out = append(out, name)
			return
		}
		for _, a := range above {
			climb(a, depth+1)
		}
	}
	for name := range f.disks {
		climb(name, 0)
	}
	for loop, file := range f.loopOf {
		if id, err := f.identify(file); err == nil && f.images[id.file()] {
			climb(loop, 0)
		}
	}
	slices.Sort(out)
	return out
}

// swapDevices gives the devices that are swapped to.
func (f *finder) swapDevices() (map[string]bool, error) {
	text, err := os.ReadFile(f.swaps)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for i, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if i == 0 || len(fields) < 2 || fields[1] != "partition" {
			continue
		}
		id, err := f.identify(mountinfo.Unescape(fields[0]))
		if err != nil {
			continue // gone
		}
		if name, err := f.name(id.number); err == nil {
			out[name] = true
		}
	}
	return out, nil
}
