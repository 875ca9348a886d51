package freespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/mountinfo"
	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// FS_IOC_GETFSMAP; linux/fsmap.h.
const (
	getFSMap     = 0xc0c0583b
	ownFree      = 1 // FMR_OWN_FREE without its kind
	flagSpecial  = 0x10
	flagLast     = 0x20
	pageRecords  = 16 << 10
	maxRecords   = 64 << 20 // of one file system
	sector       = 512
	maxAttribute = 64
)

// known are the file systems whose maps are believed.
var known = []string{"ext4", "xfs"}

// record is a struct fsmap.
type record struct {
	Device, Flags                   uint32
	Physical, Owner, Offset, Length uint64
	_                               [3]uint64
}

// page is a struct fsmap_head with room for records.
type page struct {
	InFlags, OutFlags, Count, Entries uint32
	_                                 [6]uint64
	Keys                              [2]record
	Records                           [pageRecords]record
}

// Taker makes maps. It is used by one goroutine; its memory is kept from one map to the
// next, so that little is asked of the system while file systems are frozen.
type Taker struct {
	Mounts string // mountinfo; empty: this process's
	Sys    string // /sys/dev/block

	page *page
}

// Take makes a map of the disks. notes say which mounted file systems on them it leaves
// alone and why.
func (t *Taker) Take(disks []*disk.Disk) (m Map, notes []string, err error) {
	list, err := os.Open(first(t.Mounts, mountinfo.Path))
	if err != nil {
		return nil, nil, fmt.Errorf("map of free blocks: %w", err)
	}
	defer func() { _ = list.Close() }() // only read
	m = make(Map, len(disks))
	seen := map[mountinfo.Number]bool{}
	for mount, err := range mountinfo.All(list) {
		if err != nil || seen[mount.Device] || mount.Device.Major == 0 {
			continue
		}
		i, start, size := t.place(disks, mount.Device)
		if i < 0 {
			continue
		}
		seen[mount.Device] = true
		switch {
		case !slices.Contains(known, mount.Type):
			notes = append(notes, fmt.Sprintf("%s is %s", mount.Point, mount.Type))
			continue
		case mount.ReadOnly:
			notes = append(notes, mount.Point+" is mounted read-only")
			continue
		}
		if m[i] == nil {
			m[i] = make(changes.Bitmap, changes.Words(disks[i].Size()))
		}
		if err := t.add(m[i], mount, start, size); err != nil {
			return nil, notes, fmt.Errorf("map of free blocks of %s: %w", mount.Point, err)
		}
	}
	return m, notes, nil
}

// place finds the disk that a device is, or is a partition of; the number is negative
// when it is none of them.
func (t *Taker) place(disks []*disk.Disk, device mountinfo.Number) (i int, start, size int64) {
	dir := filepath.Join(first(t.Sys, "/sys/dev/block"), device.String())
	for i, d := range disks {
		whole, err := d.Device()
		if err != nil {
			continue
		}
		number := mountinfo.Number{Major: whole.Major, Minor: whole.Minor}
		if number == device {
			return i, 0, d.Size()
		}
		if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
			continue
		}
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		if parent, err := attribute(filepath.Join(filepath.Dir(real), "dev")); err != nil || parent != number.String() {
			continue
		}
		begin, err1 := sectors(filepath.Join(dir, "start"))
		length, err2 := sectors(filepath.Join(dir, "size"))
		if errors.Join(err1, err2) == nil && begin+length <= d.Size() {
			return i, begin, length
		}
	}
	return -1, 0, 0
}

func sectors(path string) (int64, error) {
	s, err := attribute(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(s, 10, 54)
	return n * sector, err
}

func attribute(path string) (string, error) {
	b, err := os.ReadFile(path) //nolint:gosec // below the system's own description of itself
	if len(b) > maxAttribute {
		b = b[:maxAttribute]
	}
	return strings.TrimSpace(string(b)), err
}

// add marks what a file system has free. It lies on the disk from start on.
func (t *Taker) add(free changes.Bitmap, m mountinfo.Mount, start, size int64) error {
	root, err := os.Open(m.Point)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // only asked
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return err
	}
	if st.Dev != unix.Mkdev(m.Device.Major, m.Device.Minor) {
		return errors.New("another file system is mounted over it")
	}
	return t.ask(int(root.Fd()), func(r record) error {
		if r.Device != encode(m.Device) {
			return nil // a log or realtime device
		}
		if r.Physical > uint64(size) || r.Length > uint64(size)-r.Physical { //nolint:gosec // not negative
			return fmt.Errorf("it tells of %d bytes at %d, of %d", r.Length, r.Physical, size)
		}
		if r.Flags&flagSpecial == 0 || r.Owner != ownFree {
			return nil
		}
		// Blocks that are free in part are in use.
		from, to := start+int64(r.Physical), start+int64(r.Physical+r.Length) //nolint:gosec // looked at above
		a, b := (from+checksum.BlockSize-1)/checksum.BlockSize, to/checksum.BlockSize
		if a < b {
			free.Set(a, b)
		}
		return nil
	})
}

// ask has the file system tell of all its extents.
func (t *Taker) ask(fd int, each func(record) error) error {
	if t.page == nil {
		t.page = new(page)
	}
	p := t.page
	p.Keys[0] = record{}
	p.Keys[1] = record{Device: ^uint32(0), Flags: ^uint32(0), Physical: ^uint64(0), Owner: ^uint64(0), Offset: ^uint64(0)}
	for told := uint64(0); ; {
		p.InFlags, p.OutFlags, p.Count, p.Entries = 0, 0, pageRecords, 0
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getFSMap, uintptr(unsafe.Pointer(p))); e != 0 {
			return fmt.Errorf("FS_IOC_GETFSMAP: %w", e)
		}
		if p.Entries == 0 || p.Entries > pageRecords {
			return fmt.Errorf("FS_IOC_GETFSMAP: %d extents, and no end", p.Entries)
		}
		for _, r := range p.Records[:p.Entries] {
			if err := each(r); err != nil {
				return err
			}
		}
		last := p.Records[p.Entries-1]
		if last.Flags&flagLast != 0 {
			return nil
		}
		if told += uint64(p.Entries); told > maxRecords {
			return fmt.Errorf("more than %d extents", maxRecords)
		}
		p.Keys[0] = last // go on after it
	}
}

// encode writes a device's number as the kernel tells it.
func encode(n mountinfo.Number) uint32 { return n.Minor&0xff | n.Major<<8 | n.Minor&^0xff<<12 }

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
