package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ByID is where udev links disks by what they call themselves.
const ByID = "/dev/disk/by-id"

// Prefixes of the links of a SCSI disk whose identity is its backing's uuid (VMware
// with disk.EnableUUID): NAA identifiers, as udev and as scsi_id write them.
var prefixes = []string{"wwn-0x", "scsi-3"}

// maxLinks bounds how many links of the directory are looked at.
const maxLinks = 4096

// ErrNotFound is wrapped when a machine has no disk with a backing uuid.
var ErrNotFound = errors.New("no such disk")

// Finder finds disks by the uuids of their backings, or by their places in Azure.
type Finder struct {
	// Paths maps backing uuids to devices or image files; it wins over ByID.
	Paths map[string]string
	// ByID is the directory of udev's links; [ByID] when empty.
	ByID string
	// Azure is the directory of a guest's links in Azure; [Azure] when empty.
	Azure string
	// System is asked where there is no link: in an initramfs there may be no udev.
	System System
}

// Found is a disk that can be opened at Path.
type Found struct {
	BackingUUID string // as configured, or as the link has it (no dashes)
	Path        string
}

// Find gives the path of the disk with the backing's uuid. Case and dashes of the
// uuid do not matter.
func (f Finder) Find(backingUUID string) (string, error) {
	want := plain(backingUUID)
	for uuid, path := range f.named() {
		if plain(uuid) == want {
			return path, nil
		}
	}
	found, err := f.links()
	if err != nil {
		return "", fmt.Errorf("find disk %s: %w", backingUUID, err)
	}
	for _, d := range found {
		if d.BackingUUID == want {
			return d.Path, nil
		}
	}
	if path := f.whole(want); path != "" {
		return path, nil
	}
	return "", f.notFound(backingUUID)
}

// whole asks the kernel for the disk; nothing when it has none of that name.
func (f Finder) whole(want string) string {
	all, err := f.System.Discover()
	if err != nil {
		return ""
	}
	for _, d := range all {
		if d.BackingUUID == want && want != "" {
			return d.Path
		}
	}
	return ""
}

// List gives all disks that can be named by a uuid, configured ones first.
func (f Finder) List() ([]Found, error) {
	seen := map[string]bool{}
	var out []Found
	for uuid, path := range f.named() {
		out = append(out, Found{uuid, path})
		seen[plain(uuid)] = true
	}
	sort.Slice(out, func(i, j int) bool { return out[i].BackingUUID < out[j].BackingUUID })
	links, err := f.links()
	for _, d := range links {
		if !seen[d.BackingUUID] {
			seen[d.BackingUUID] = true
			out = append(out, d)
		}
	}
	return out, err
}

// links gives the whole disks among udev's links. No directory is no disks.
func (f Finder) links() ([]Found, error) {
	dir, err := os.Open(f.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(maxLinks)
	if errors.Is(err, io.EOF) { // it is empty
		err = nil
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	sort.Strings(names)
	var out []Found
	for _, name := range names {
		for _, p := range prefixes {
			id, ok := strings.CutPrefix(name, p)
			if ok && len(id) == 32 && !strings.Contains(id, "-") {
				out = append(out, Found{strings.ToLower(id), filepath.Join(f.dir(), name)})
			}
		}
	}
	return out, nil
}

func (f Finder) dir() string {
	if f.ByID != "" {
		return f.ByID
	}
	return ByID
}

func plain(uuid string) string { return strings.ToLower(strings.ReplaceAll(uuid, "-", "")) }
