//go:build linux

package freeze

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"drover/agent/mountinfo"
)

// maxDepth bounds how deep devices lie on each other.
const maxDepth = 32

// identity is what a path names.
type identity struct {
	block, regular bool
	number         mountinfo.Number // of a block device
	dev            mountinfo.Number // of the file system that a file is on
	ino            uint64
}

func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, fmt.Errorf("stat %s: unknown answer", path)
	}
	mode := info.Mode()
	return identity{
		block:   mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0,
		regular: mode.IsRegular(), number: numberOf(st.Rdev), dev: numberOf(st.Dev), ino: st.Ino,
	}, nil
}

// file is a regular file's part of an identity.
func (i identity) file() identity { return identity{regular: true, dev: i.dev, ino: i.ino} }

// devices is the kernel's view of block devices, by their names in sysfs.
type devices struct {
	sys      string // /sys
	identify func(path string) (identity, error)
}

// name gives the kernel's name of a device's number.
func (d devices) name(n mountinfo.Number) (string, error) {
	dir, err := d.dir(n)
	return filepath.Base(dir), err
}

func (d devices) dir(n mountinfo.Number) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(d.sys, "dev/block", n.String()))
	if err != nil {
		return "", fmt.Errorf("block device %s: %w", n, err)
	}
	return dir, nil
}

// path gives the sysfs directory of a device, also of a partition.
func (d devices) path(name string) (string, error) {
	return filepath.EvalSymlinks(filepath.Join(d.sys, "class/block", name))
}

// below gives what a device lies on directly: devices, and perhaps a file.
func (d devices) below(name string) (names []string, file string, err error) {
	dir, err := d.path(name)
	if err != nil {
		return nil, "", fmt.Errorf("block device %s: %w", name, err)
	}
	if exists(filepath.Join(dir, "partition")) {
		return []string{filepath.Base(filepath.Dir(dir))}, "", nil
	}
	if names, err = list(filepath.Join(dir, "slaves")); err != nil {
		return nil, "", err
	}
	backing, err := os.ReadFile(filepath.Join(dir, "loop/backing_file"))
	if errors.Is(err, os.ErrNotExist) {
		return names, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("block device %s: %w", name, err)
	}
	return names, strings.TrimSuffix(string(backing), "\n"), nil
}

// above gives what lies on a device directly: its partitions, or device mapper, md
// and the like.
func (d devices) above(name string) (names []string, err error) {
	dir, err := d.path(name)
	if err != nil {
		return nil, fmt.Errorf("block device %s: %w", name, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() && exists(filepath.Join(dir, e.Name(), "partition")) {
			names = append(names, e.Name())
		}
	}
	holders, err := list(filepath.Join(dir, "holders"))
	return append(names, holders...), err
}

// loops gives the loop devices with their backing files.
func (d devices) loops() (map[string]string, error) {
	all, err := filepath.Glob(filepath.Join(d.sys, "block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, file := range all {
		backing, err := os.ReadFile(file) //nolint:gosec // in sysfs
		if err != nil {
			continue // detached meanwhile
		}
		out[filepath.Base(filepath.Dir(filepath.Dir(file)))] = strings.TrimSuffix(string(backing), "\n")
	}
	return out, nil
}

func (d devices) readOnly(name string) bool {
	dir, err := d.path(name)
	if err != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, "ro"))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// empty reports whether a device has no size, as a loop device without a file.
func (d devices) empty(name string) bool {
	dir, err := d.path(name)
	if err != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, "size"))
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// elsewhere reports whether the kernel has a file system of the device that is not
// among our mounts: one of another mount namespace.
func (d devices) elsewhere(name string) bool {
	return slices.ContainsFunc([]string{"ext4", "xfs", "f2fs"}, func(fs string) bool {
		return exists(filepath.Join(d.sys, "fs", fs, name))
	})
}

// members gives the devices of the btrfs that one device is part of.
func (d devices) members(name string) []string {
	found, err := filepath.Glob(filepath.Join(d.sys, "fs/btrfs/*/devices", name))
	if err != nil || len(found) == 0 {
		return []string{name}
	}
	names, err := list(filepath.Dir(found[0]))
	if err != nil || len(names) == 0 {
		return []string{name}
	}
	return names
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// list gives the names in a directory; none if it is not there.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}
