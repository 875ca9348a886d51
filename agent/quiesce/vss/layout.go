package vss

import (
	"fmt"
	"slices"
	"strings"

	"drover/agent/disk"
)

// shadowable are the file systems of which Windows makes shadow copies.
var shadowable = []string{"NTFS", "ReFS"}

// Layout is what of some disks can be read from shadow copies.
type Layout struct {
	Parts []Part
	// Loose says what is in use and has no shadow copy. It is read from the disks
	// themselves, and a point is no better than crash-consistent.
	Loose []string
}

// Part is where on a disk a volume lies.
type Part struct {
	Disk           string // path
	Offset, Length int64
	Volume         string // \\?\Volume{...}\
}

// Volumes of the layout, each once.
func (l *Layout) Volumes() (out []string) {
	for _, p := range l.Parts {
		out = append(out, p.Volume)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Arrange finds the volumes on the disks. What has no file system, or is mounted
// nowhere, such as an EFI system partition, is read from the disks: nobody writes there,
// and if somebody does there is no point this time.
func Arrange(disks []string, volumes []disk.Volume) *Layout {
	l := &Layout{}
	for _, v := range volumes {
		on := slices.ContainsFunc(v.Extents, func(e disk.Extent) bool { return e.Disk != "" && slices.Contains(disks, e.Disk) })
		if !on {
			continue
		}
		can := slices.ContainsFunc(shadowable, func(fs string) bool { return strings.EqualFold(fs, v.FileSystem) })
		switch {
		case can && len(v.Extents) == 1:
			e := v.Extents[0]
			l.Parts = append(l.Parts, Part{e.Disk, e.Offset, e.Length, v.Name})
		case can:
			l.Loose = append(l.Loose, fmt.Sprintf("%s, which lies on %d parts of disks", called(v), len(v.Extents)))
		case len(v.Mounts) > 0:
			l.Loose = append(l.Loose, fmt.Sprintf("%s, a file system without shadow copies (%s)", called(v), v.FileSystem))
		}
	}
	return l
}

// called is the volume's name for people.
func called(v disk.Volume) string {
	if len(v.Mounts) > 0 {
		return v.Mounts[0]
	}
	return v.Name
}
