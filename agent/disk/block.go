package disk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is read of the system's description of itself.
const (
	maxBlocks  = 1024     // block devices
	maxAttr    = 4 << 10  // bytes of an attribute
	maxTable   = 1 << 20  // bytes of mountinfo, swaps
	sector     = 512      // bytes, whatever the disk's are
	maxLayers  = 8        // from a partition up to a file system
	maxUdev    = 64 << 10 // bytes of udev's entry of a device
	naaDigits  = 32       // of a backing's uuid as VMware shows it
	mpathScsi3 = "3"      // what multipath puts in front of a NAA identifier
)

// System is where the machine describes its block devices. The zero System is the real
// one; tests have trees of their own.
type System struct {
	Sys  string // /sys
	Proc string // /proc/self
	Root string // /proc: swaps
	Udev string // /run/udev/data
}

func or(dir, normal string) string {
	if dir == "" {
		return normal
	}
	return dir
}

// Kinds of a block device.
const (
	kindDisk      = "disk"
	kindPartition = "partition"
	kindLVM       = "lvm"
	kindCrypt     = "crypt"
	kindRAID      = "raid"
	kindMultipath = "multipath"
	kindMapped    = "mapped" // any other device-mapper device
)

// block is one block device.
type block struct {
	name, dev, kind     string // "sda", "8:0"
	mapped              string // device mapper's name
	size                int64
	serial, wwn, model  string
	rotational, removed bool // removed: removable
	readOnly            bool
	below               []string // the devices it lies on
	above               []string
}

// path is where the device is opened.
func (b *block) path() string {
	if b.mapped != "" {
		return "/dev/mapper/" + b.mapped
	}
	return "/dev/" + b.name
}

// notDisks are the names of devices that hold nothing that lasts, or are not the machine's.
var notDisks = []string{"loop", "ram", "zram", "sr", "fd", "nbd", "mtdblock"}

func isDisk(name string) bool {
	return !slices.ContainsFunc(notDisks, func(p string) bool {
		rest, ok := strings.CutPrefix(name, p)
		return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
	})
}

// blocks reads all block devices with a size.
func (s System) blocks() (map[string]*block, error) {
	dir := filepath.Join(or(s.Sys, "/sys"), "block")
	names, err := list(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]*block{}
	for _, name := range names {
		d := filepath.Join(dir, name)
		if attr(d, "hidden") == "1" || !isDisk(name) {
			continue // a path of an NVMe disk that stands there as a whole too
		}
		b := s.block(d, name)
		if b.size == 0 {
			continue // an empty card reader
		}
		out[name] = b
		parts, err := list(d)
		if err != nil {
			continue // it has just vanished
		}
		for _, part := range parts {
			if p := filepath.Join(d, part); attr(p, "partition") != "" {
				out[part] = &block{name: part, kind: kindPartition, dev: attr(p, "dev"), size: number(attr(p, "size")) * sector,
					readOnly: attr(p, "ro") == "1", below: []string{name}}
			}
		}
	}
	for name, b := range out {
		for _, below := range b.below {
			if lower := out[below]; lower != nil {
				lower.above = append(lower.above, name)
			}
		}
	}
	return out, nil
}

func (s System) block(dir, name string) *block {
	b := &block{
		name: name, kind: kindDisk, dev: attr(dir, "dev"), size: number(attr(dir, "size")) * sector,
		rotational: attr(dir, "queue/rotational") == "1", removed: attr(dir, "removable") == "1", readOnly: attr(dir, "ro") == "1",
		serial: first(attr(dir, "device/serial"), attr(dir, "serial"), page80(dir)),
		wwn:    first(attr(dir, "device/wwid"), attr(dir, "wwid")),
		model:  strings.TrimSpace(attr(dir, "device/vendor") + " " + attr(dir, "device/model")),
		mapped: attr(dir, "dm/name"),
	}
	b.below, _ = list(filepath.Join(dir, "slaves")) // none: it lies on nothing
	if uuid := attr(dir, "dm/uuid"); b.mapped != "" {
		b.kind = kindOf(uuid)
		if rest, ok := strings.CutPrefix(uuid, "mpath-"); ok {
			b.wwn = "naa." + strings.TrimPrefix(rest, mpathScsi3)
		}
	} else if _, err := os.Stat(filepath.Join(dir, "md")); err == nil {
		b.kind = kindRAID
	}
	return b
}

// kindOf reads device mapper's uuid, which begins with its maker.
func kindOf(uuid string) string {
	switch {
	case strings.HasPrefix(uuid, "LVM-"):
		return kindLVM
	case strings.HasPrefix(uuid, "CRYPT-"):
		return kindCrypt
	case strings.HasPrefix(uuid, "mpath-"):
		return kindMultipath
	case strings.HasPrefix(uuid, "part"):
		return kindPartition // of a multipath disk
	}
	return kindMapped
}

// page80 is a SCSI disk's serial number, as it came from the disk.
func page80(dir string) string {
	b, err := readLimited(filepath.Join(dir, "device/vpd_pg80"), maxAttr)
	if err != nil || len(b) < 4 {
		return ""
	}
	return strings.Map(printable, strings.TrimSpace(string(b[4:])))
}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return -1
	}
	return r
}

// backingUUID is a disk's identity as the hypervisor knows it, if the disk says it.
func (b *block) backingUUID() string {
	id, ok := strings.CutPrefix(strings.ToLower(b.wwn), "naa.")
	if !ok || len(id) != naaDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

func list(dir string) ([]string, error) {
	d, err := os.Open(dir) //nolint:gosec // below the system's own description of itself
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(maxBlocks)
	if errors.Is(err, io.EOF) { // it is empty
		err = nil
	}
	slices.Sort(names)
	return names, errors.Join(err, d.Close())
}

// attr is one attribute; nothing when there is none.
func attr(dir, name string) string {
	b, err := readLimited(filepath.Join(dir, name), maxAttr)
	if err != nil {
		return ""
	}
	return strings.Map(printable, strings.TrimSpace(string(b)))
}

func readLimited(path string, most int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // below the system's own description of itself
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	return b, errors.Join(err, f.Close())
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<53 {
		return 0
	}
	return n
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
