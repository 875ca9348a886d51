package disk

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"drover/agent/controlapi"
)

// Bounds of what is remembered of disks that went away.
const (
	maxGone  = 16
	keepGone = 24 * time.Hour
)

// Watch looks at the machine's disks again and again, and remembers those that went
// away. It is used by one goroutine.
type Watch struct {
	Finder Finder
	seen   map[string]controlapi.InventoryDisk // by key, as they were last
}

// Look lists the disks as they are now, says which are protected and why the others are
// not, and then those that were there before, or should be. The error says what could
// not be listed.
func (w *Watch) Look(now time.Time, as controlapi.Assignment) ([]controlapi.InventoryDisk, error) {
	found, err := w.Finder.System.Discover()
	found = w.configured(found)
	missing := explain(found, as)
	if err != nil {
		return found, err // what was not listed has not gone
	}
	if w.seen == nil {
		w.seen = map[string]controlapi.InventoryDisk{}
	}
	here := map[string]bool{}
	for _, d := range found {
		here[key(d)], w.seen[key(d)] = true, d
	}
	for k, d := range missing {
		if _, known := w.seen[k]; !known {
			w.seen[k] = controlapi.InventoryDisk{BackingUUID: d.BackingUUID, Size: d.Size}
		}
	}
	return append(found, w.gone(now, here, missing)...), nil
}

// gone are the disks that were seen, or should be there, and are not; newest first.
func (w *Watch) gone(now time.Time, here map[string]bool, missing map[string]controlapi.Disk) []controlapi.InventoryDisk {
	var out []controlapi.InventoryDisk
	for k, d := range w.seen {
		if here[k] {
			continue
		}
		if d.Gone.IsZero() {
			d.Gone = now.UTC()
		}
		d.Why = "it is not on this machine any more"
		if _, d.Protected = missing[k]; d.Protected {
			d.Why = "it is protected, but not on this machine; attach it again, or protect the machine anew without it"
		}
		w.seen[k] = d
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b controlapi.InventoryDisk) int {
		return cmp.Or(cmp.Compare(protected(b), protected(a)), b.Gone.Compare(a.Gone), cmp.Compare(key(a), key(b)))
	})
	kept := out[:0]
	for i, d := range out {
		if i >= maxGone || now.Sub(d.Gone) > keepGone && !d.Protected {
			delete(w.seen, key(d))
			continue
		}
		kept = append(kept, d)
	}
	return kept
}

func protected(d controlapi.InventoryDisk) int {
	if d.Protected {
		return 1
	}
	return 0
}

// key is what a disk is recognised by.
func key(d controlapi.InventoryDisk) string {
	return first(plain(d.BackingUUID), d.WWN, d.Serial, d.Path)
}

// configured gives the disks that the configuration or Azure names their names, and adds
// those that the kernel does not list, such as image files.
func (w *Watch) configured(found []controlapi.InventoryDisk) []controlapi.InventoryDisk {
	named := w.Finder.named()
	uuids := make([]string, 0, len(named))
	for uuid := range named {
		uuids = append(uuids, uuid)
	}
	slices.Sort(uuids)
	for _, uuid := range uuids {
		path := named[uuid]
		if i := slices.IndexFunc(found, func(d controlapi.InventoryDisk) bool { return leadsTo(path, d) }); i >= 0 {
			found[i].BackingUUID, found[i].Path = uuid, path
			continue
		}
		d := controlapi.InventoryDisk{BackingUUID: uuid, Path: path}
		if open, err := Open(path); err != nil {
			d.Why = "named in the configuration, but: " + err.Error()
		} else {
			d.Size = open.Size()
			_ = open.Close() // only its size was wanted
		}
		found = append(found, d)
	}
	return found
}

// leadsTo reports whether a path is one of the disk's names.
func leadsTo(path string, d controlapi.InventoryDisk) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = path
	}
	disk, err := filepath.EvalSymlinks(d.Path)
	if err != nil {
		disk = d.Path
	}
	return real == disk || slices.Contains(d.Paths, real)
}

// explain says of each disk whether it is protected, and why not. It gives the assigned
// disks that are not there, by key.
func explain(found []controlapi.InventoryDisk, as controlapi.Assignment) map[string]controlapi.Disk {
	want := map[string]controlapi.Disk{}
	if as.Action == controlapi.ActionReplicate {
		for _, d := range as.Disks {
			want[plain(d.BackingUUID)] = d
		}
	}
	for i := range found {
		d := &found[i]
		w, protected := want[plain(d.BackingUUID)]
		delete(want, plain(d.BackingUUID))
		d.Protected = protected
		switch {
		case d.Why != "": // said already
		case d.Protected && w.Size != d.Size:
			d.Why = fmt.Sprintf("it has %d bytes, %d are protected; `drover resync` takes the new size", d.Size, w.Size)
		case d.Protected:
		case d.Removable:
			d.Why = "removable"
		case d.BackingUUID == "":
			d.Why = "it does not say who it is; set disk.EnableUUID = TRUE on the VM, or name it under `disks` in the agent's configuration"
		case as.Action != controlapi.ActionReplicate:
			d.Why = "this machine is not assigned to replicate"
		default:
			d.Why = "excluded, or added after protection began"
		}
	}
	return want
}
