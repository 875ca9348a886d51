package freeze

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMounts bounds how many mounts are looked at; a host of containers has thousands.
const maxMounts = 1 << 16

// Number is a block device's number, or a file system's when it has no device.
type Number struct{ Major, Minor uint32 }

func (n Number) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

func numberOf(dev uint64) Number { return Number{unix.Major(dev), unix.Minor(dev)} }

func parseNumber(s string) (Number, error) {
	major, minor, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return Number{}, fmt.Errorf("%q: want major:minor", s)
	}
	return Number{uint32(a), uint32(b)}, nil
}

// mount is a line of /proc/self/mountinfo.
type mount struct {
	dev      Number
	point    string
	fstype   string
	source   string
	readOnly bool // the file system, not this mount of it
}

// parseMounts reads /proc/self/mountinfo; see proc(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMounts(r io.Reader) ([]mount, error) {
	var out []mount
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20) // an overlay's options are long
	for scan.Scan() {
		if len(out) == maxMounts {
			return nil, fmt.Errorf("more than %d mounts", maxMounts)
		}
		before, after, ok := strings.Cut(scan.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 {
			return nil, fmt.Errorf("mountinfo: %q is no mount", scan.Text())
		}
		dev, err := parseNumber(head[2])
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %w", err)
		}
		m := mount{dev: dev, point: unescape(head[4]), fstype: tail[0], source: unescape(tail[1])}
		for option := range strings.SplitSeq(tail[len(tail)-1], ",") {
			m.readOnly = m.readOnly || option == "ro"
		}
		out = append(out, m)
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("mountinfo: %w", err)
	}
	return out, nil
}

// unescape undoes the kernel's \040 for blanks and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// FileSystem is a mounted file system.
type FileSystem struct {
	Device Number // as mountinfo has it
	Type   string
	Point  string // where it is mounted, or one of the places

	mounts []mount
	level  int // 0: on disks; 1: in a file on such a file system, and so on
}

func (f FileSystem) String() string { return fmt.Sprintf("%s (%s)", f.Point, f.Type) }

func (f FileSystem) points() (out []string) {
	for _, m := range f.mounts {
		out = append(out, m.point)
	}
	return out
}

// open opens the file system by the first of its mounts that is not covered by
// another one.
func (f FileSystem) open() (*os.File, error) {
	var last error
	for _, m := range f.mounts {
		dir, err := openPoint(m.point, f.Device.String())
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
func mountedNumber(dir *os.File) (Number, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", dir.Fd()))
	if err != nil {
		return Number{}, err
	}
	_, after, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Number{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if fields := strings.Fields(scan.Text()); len(fields) > 2 && fields[0] == id {
			return parseNumber(fields[2])
		}
	}
	return Number{}, fmt.Errorf("mount %s of %s is not in mountinfo", id, dir.Name())
}
