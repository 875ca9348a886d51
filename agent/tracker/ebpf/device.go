//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

// sysfs is where the kernel tells of devices.
var sysfs = "/sys"

// sectorBytes is the unit of sizes in sysfs, whatever the disk's sectors are.
const sectorBytes = 512

// number is a device's number as the programs have it.
type number uint64

func numberOf(d changes.Device) number { return number(d.Major)<<32 | number(d.Minor) }

func (n number) String() string { return fmt.Sprintf("%d:%d", uint32(n>>32), uint32(n)) } //nolint:gosec // the two halves

// file is the number as a part of a file's name.
func (n number) file() string { return strings.ReplaceAll(n.String(), ":", "-") }

// identity is what tells a disk from another one that has its number later.
type identity struct {
	Size  int64  // bytes
	Seq   uint64 // of the medium, where the kernel counts them (5.15); else 0
	Inode uint64 // of the disk in sysfs
}

// identify looks a disk up.
func identify(n number) (identity, error) {
	dir := changes.Directory(sysfs, changes.Device{Major: uint32(n >> 32), Minor: uint32(n)}) //nolint:gosec // the two halves
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return identity{}, fmt.Errorf("there is no block device %s: %w", n, err)
	}
	sectors, err := readNumber(dir, "size")
	if err != nil {
		return identity{}, err
	}
	seq, err := readNumber(dir, "diskseq")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return identity{}, err
	}
	return identity{Size: int64(sectors) * sectorBytes, Seq: seq, Inode: stat.Ino}, nil //nolint:gosec // of a disk
}

// check refuses what the block layer's events do not tell the writes of, and gives
// the identity of the rest.
func check(d changes.Device) (identity, error) {
	if err := changes.Check(sysfs, d); err != nil {
		return identity{}, err
	}
	n := numberOf(d)
	id, err := identify(n)
	if err == nil && id.Size != d.Size {
		err = fmt.Errorf("%s has %d bytes, not %d: look at its size again", n, id.Size, d.Size)
	}
	return id, err
}

func readNumber(dir, name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // sysfs
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
