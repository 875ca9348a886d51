package disk

import (
	"fmt"
	"slices"
	"strings"

	"drover/agent/controlapi"
)

// Discover lists the machine's whole disks with what lies on them. A disk that is
// reached by several paths stands there once.
func (s System) Discover() ([]controlapi.InventoryDisk, error) {
	all, err := s.blocks()
	if err != nil {
		return nil, fmt.Errorf("list the disks: %w", err)
	}
	uses := s.uses(all)
	var out []controlapi.InventoryDisk
	for _, group := range wholes(all) {
		top := group[0]
		d := controlapi.InventoryDisk{
			BackingUUID: top.backingUUID(), Path: top.path(), Size: top.size, Serial: top.serial, WWN: top.wwn, Model: top.model,
			Rotational: top.rotational, Removable: top.removed, ReadOnly: top.readOnly, Parts: parts(all, uses, group),
		}
		members := group[1:]
		if top.kind != kindMultipath && len(group) > 1 {
			members = group
			d.Why = "several paths lead to this disk and no multipath device joins them; set up multipathd"
		}
		for _, m := range members {
			d.Paths = append(d.Paths, m.path())
			d.Serial, d.Model = first(d.Serial, m.serial), first(d.Model, m.model)
		}
		out = append(out, d)
	}
	return out, nil
}

// wholes groups the devices that are one disk: the one to use first, then its paths.
func wholes(all map[string]*block) [][]*block {
	var groups [][]*block
	taken := map[string]bool{}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if b := all[name]; b.kind == kindMultipath {
			group := []*block{b}
			for _, path := range b.below {
				if p := all[path]; p != nil && p.kind == kindDisk {
					group, taken[path] = append(group, p), true
				}
			}
			groups = append(groups, group)
		}
	}
	byWWN := map[string]int{}
	for _, name := range names {
		b := all[name]
		if b.kind != kindDisk || taken[name] {
			continue
		}
		// Virtual devices of a kernel driver have no name of their own; only a name tells
		// two disks apart or the same.
		if i, ok := byWWN[b.wwn]; ok && b.wwn != "" && groups[i][0].size == b.size {
			groups[i] = append(groups[i], b)
			continue
		}
		byWWN[b.wwn] = len(groups)
		groups = append(groups, []*block{b})
	}
	slices.SortStableFunc(groups, func(a, b []*block) int { return strings.Compare(a[0].path(), b[0].path()) })
	return groups
}

// parts are the disk's partitions and the layers above them, lowest first; the disk
// itself is among them when it is used as it is.
func parts(all map[string]*block, uses map[string]*use, group []*block) []controlapi.InventoryPart {
	var out []controlapi.InventoryPart
	seen := map[string]bool{}
	layer := make([]string, 0, len(group))
	for _, b := range group {
		seen[b.name] = true
		if group[0].kind != kindMultipath || b == group[0] { // what lies on a path lies on the whole too
			layer = append(layer, b.name)
		}
	}
	if u := uses[group[0].name]; u != nil {
		out = append(out, part(group[0], u, all))
	}
	for range maxLayers {
		var next []string
		for _, name := range layer {
			above := slices.Clone(all[name].above)
			slices.Sort(above)
			for _, a := range above {
				if !seen[a] {
					seen[a], next = true, append(next, a)
					out = append(out, part(all[a], uses[a], all))
				}
			}
		}
		layer = next
	}
	return out
}

func part(b *block, u *use, all map[string]*block) controlapi.InventoryPart {
	p := controlapi.InventoryPart{Name: b.name, Kind: b.kind, Size: b.size}
	if b.mapped != "" {
		p.Name = b.mapped
	}
	if u != nil {
		p.FileSystem, p.Mounts, p.Swap = u.fileSystem, u.mounts, u.swap
	}
	for _, below := range b.below {
		if l := all[below]; l != nil && l.mapped != "" {
			below = l.mapped
		}
		p.On = append(p.On, below)
	}
	return p
}
