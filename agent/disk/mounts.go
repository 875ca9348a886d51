package disk

import (
	"bytes"
	"path/filepath"
	"strings"

	"drover/agent/mountinfo"
)

// use is what a block device is used for.
type use struct {
	fileSystem string
	mounts     []string
	swap       bool
}

// uses reads what is mounted and what is swap, by the devices' kernel names.
func (s System) uses(all map[string]*block) map[string]*use {
	byDev, byPath := map[string]string{}, map[string]string{}
	for name, b := range all {
		byDev[b.dev], byPath["/dev/"+name], byPath[b.path()] = name, name, name
	}
	out := map[string]*use{}
	of := func(name string) *use {
		if out[name] == nil {
			out[name] = &use{}
		}
		return out[name]
	}
	for _, m := range s.mounted() {
		name, ok := byDev[m.Device.String()]
		if !ok { // btrfs has device numbers of its own
			name, ok = byPath[m.Source]
		}
		if ok {
			u := of(name)
			u.fileSystem = m.Type
			u.mounts = append(u.mounts, m.Point)
		}
	}
	b, err := readLimited(filepath.Join(or(s.Root, "/proc"), "swaps"), maxTable)
	if err == nil {
		for line := range strings.Lines(string(b)) {
			path, _, _ := strings.Cut(line, " ")
			if name, ok := byPath[mountinfo.Unescape(path)]; ok {
				of(name).swap = true
			}
		}
	}
	for name, b := range all {
		if out[name] == nil && b.dev != "" {
			if fs := s.udev(b.dev, "ID_FS_TYPE"); fs != "" {
				of(name).fileSystem = fs
			}
		}
	}
	return out
}

// mounted reads the mounts. What is no mount, or cannot be read, is left out: an inventory
// that lacks a mount is better than none.
func (s System) mounted() (out []mountinfo.Mount) {
	b, err := readLimited(filepath.Join(or(s.Proc, "/proc/self"), "mountinfo"), maxTable)
	if err != nil {
		return nil
	}
	for m, err := range mountinfo.All(bytes.NewReader(b)) {
		if err == nil {
			out = append(out, m)
		}
	}
	return out
}

// udev is what udev found out about a device.
func (s System) udev(dev, key string) string {
	b, err := readLimited(filepath.Join(or(s.Udev, "/run/udev/data"), "b"+dev), maxUdev)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "E:"+key+"="); ok {
			return strings.Map(printable, value)
		}
	}
	return ""
}
