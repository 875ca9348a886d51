package disk

import (
	"path/filepath"
	"strconv"
	"strings"
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
		name, ok := byDev[m.dev]
		if !ok { // btrfs has device numbers of its own
			name, ok = byPath[m.source]
		}
		if ok {
			u := of(name)
			u.fileSystem = m.fileSystem
			u.mounts = append(u.mounts, m.point)
		}
	}
	b, err := readLimited(filepath.Join(or(s.Root, "/proc"), "swaps"), maxTable)
	if err == nil {
		for line := range strings.Lines(string(b)) {
			path, _, _ := strings.Cut(line, " ")
			if name, ok := byPath[unescape(path)]; ok {
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

type mount struct{ dev, point, fileSystem, source string }

// mounted reads mountinfo: "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw".
func (s System) mounted() []mount {
	b, err := readLimited(filepath.Join(or(s.Proc, "/proc/self"), "mountinfo"), maxTable)
	if err != nil {
		return nil
	}
	var out []mount
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if ok && len(f) >= 5 && len(g) >= 2 {
			out = append(out, mount{dev: f[2], point: unescape(f[4]), fileSystem: g[0], source: unescape(g[1])})
		}
	}
	return out
}

// unescape undoes the kernel's escapes: a space is \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
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
