//go:build linux

package freeze

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"drover/agent/mountinfo"
)

func numberOf(dev uint64) mountinfo.Number {
	return mountinfo.Number{Major: unix.Major(dev), Minor: unix.Minor(dev)}
}

// FileSystem is a mounted file system.
type FileSystem struct {
	Device mountinfo.Number // as mountinfo has it
	Type   string
	Point  string // where it is mounted, or one of the places

	mounts []mountinfo.Mount
	level  int // 0: on disks; 1: in a file on such a file system, and so on
}

func (f FileSystem) String() string { return fmt.Sprintf("%s (%s)", f.Point, f.Type) }

func (f FileSystem) points() (out []string) {
	for _, m := range f.mounts {
		out = append(out, m.Point)
	}
	return out
}

// open opens the file system by the first of its mounts that is not covered by
// another one.
func (f FileSystem) open() (*os.File, error) {
	var last error
	for _, m := range f.mounts {
		dir, err := openPoint(m.Point, f.Device.String())
		if err == nil {
			return dir, nil
		}
		last = err
	}
	return nil, fmt.Errorf("open the file system %s: %w", f, last)
}

// openPoint opens what is mounted there if it is the file system with the number.
func openPoint(point, device string) (*os.File, error) {
	dir, err := os.OpenFile(point, os.O_RDONLY|unix.O_NONBLOCK, 0) //nolint:gosec // a mount point, from the kernel
	if err != nil {
		return nil, err
	}
	number, err := mountedNumber(dir)
	if err == nil && number.String() != device {
		err = fmt.Errorf("%s is of file system %s, not of %s: something is mounted above it", point, number, device)
	}
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

// mountedNumber gives the number that mountinfo has for an open directory's file
// system. Its own may be another, as in a subvolume of btrfs.
func mountedNumber(dir *os.File) (mountinfo.Number, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", dir.Fd()))
	if err != nil {
		return mountinfo.Number{}, err
	}
	_, after, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	f, err := os.Open(mountinfo.Path)
	if err != nil {
		return mountinfo.Number{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	for m, err := range mountinfo.All(f) {
		if err == nil && m.ID == id {
			return m.Device, nil
		}
	}
	return mountinfo.Number{}, fmt.Errorf("mount %s of %s is not in mountinfo", id, dir.Name())
}
