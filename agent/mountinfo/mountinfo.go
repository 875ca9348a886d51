// Package mountinfo reads the kernel's list of mounts, which the inventory, the freeze
// of file systems and the search for tracefs all go by.
package mountinfo

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
)

// Path is the list of the mounts that this process sees.
const Path = "/proc/self/mountinfo"

// Bounds of a list.
const (
	maxMounts = 1 << 16 // a host of containers has thousands
	maxLine   = 1 << 20 // an overlay's options are long
)

// Number is a block device's number, or a file system's when it has no device.
type Number struct{ Major, Minor uint32 }

func (n Number) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

// ParseNumber reads "8:1".
func ParseNumber(s string) (Number, error) {
	major, minor, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return Number{}, fmt.Errorf("%q: want major:minor", s)
	}
	return Number{uint32(a), uint32(b)}, nil
}

// Mount is a line of the list.
type Mount struct {
	ID       string
	Device   Number
	Root     string // what of the file system is mounted
	Point    string // where
	Type     string
	Source   string // empty if whoever mounted it gave none
	ReadOnly bool   // the file system, not this mount of it
}

// All reads the mounts of a list. A line that is no mount comes as an error, and the next
// line after it; a list that cannot be read further, or has no end, ends with one.
func All(r io.Reader) iter.Seq2[Mount, error] {
	return func(yield func(Mount, error) bool) {
		scan := bufio.NewScanner(r)
		scan.Buffer(nil, maxLine)
		for n := 0; scan.Scan(); n++ {
			if n == maxMounts {
				yield(Mount{}, fmt.Errorf("mountinfo: more than %d mounts", maxMounts))
				return
			}
			if !yield(parse(scan.Text())) {
				return
			}
		}
		if err := scan.Err(); err != nil {
			yield(Mount{}, fmt.Errorf("mountinfo: %w", err))
		}
	}
}

// parse reads a line; see proc(5):
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parse(line string) (Mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	head, tail := strings.Fields(before), strings.SplitN(after, " ", 3) // a source may be empty
	if !ok || len(head) < 6 || len(tail) < 3 {
		return Mount{}, fmt.Errorf("mountinfo: %q is no mount", line)
	}
	dev, err := ParseNumber(head[2])
	if err != nil {
		return Mount{}, fmt.Errorf("mountinfo: %w", err)
	}
	m := Mount{ID: head[0], Device: dev, Root: Unescape(head[3]), Point: Unescape(head[4]), Type: tail[0], Source: Unescape(tail[1])}
	for option := range strings.SplitSeq(tail[2], ",") {
		m.ReadOnly = m.ReadOnly || option == "ro"
	}
	return m, nil
}

// Unescape undoes the kernel's escapes: a blank is \040. /proc/swaps has them too.
func Unescape(s string) string {
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
