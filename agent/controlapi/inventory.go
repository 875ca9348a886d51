package controlapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Bounds of an inventory. A machine with more is told in part.
const (
	MaxInventory = 60 << 10 // JSON bytes; the registry takes a little more
	maxDisks     = 64
	maxParts     = 32 // of a disk
	maxNames     = 8  // of mounts, paths and layers
	maxFindings  = 24
	maxText      = 128 // bytes of a name
	maxWords     = 300 // bytes of what is for people
)

// Inventory is what an agent sees of its machine.
type Inventory struct {
	Hostname string          `json:"hostname"`
	OS       string          `json:"os"`
	Kernel   string          `json:"kernel"`
	BootID   string          `json:"bootId"`
	Tracker  string          `json:"tracker"` // which tracker is used and why
	Disks    []InventoryDisk `json:"disks"`
	// Preflight says whether this guest would boot in the target. It blocks nothing.
	Preflight []Finding `json:"preflight,omitempty"`
	// Truncated: there was more than fits.
	Truncated bool `json:"truncated,omitempty"`
}

// InventoryDisk is one disk of the machine.
type InventoryDisk struct {
	BackingUUID string          `json:"backingUUID"` // empty: the disk cannot be told from others
	Path        string          `json:"path"`
	Size        int64           `json:"size"`
	Serial      string          `json:"serial,omitempty"`
	WWN         string          `json:"wwn,omitempty"`
	Model       string          `json:"model,omitempty"`
	Rotational  bool            `json:"rotational,omitempty"`
	Removable   bool            `json:"removable,omitempty"`
	ReadOnly    bool            `json:"readOnly,omitempty"`
	Paths       []string        `json:"paths,omitempty"` // of a disk that is reached by several
	Parts       []InventoryPart `json:"parts,omitempty"` // partitions and what lies on them
	Protected   bool            `json:"protected,omitempty"`
	Why         string          `json:"why,omitempty"` // why it is not protected, or what is wrong with it
	Gone        time.Time       `json:"gone,omitzero"` // since when it is not there any more
}

// InventoryPart is the disk itself, a partition, or a layer above them, that holds
// something.
type InventoryPart struct {
	Name       string   `json:"name"`
	Kind       string   `json:"kind"` // disk, partition, lvm, crypt, raid, multipath, mapped
	Size       int64    `json:"size"`
	FileSystem string   `json:"fileSystem,omitempty"`
	Mounts     []string `json:"mounts,omitempty"`
	Swap       bool     `json:"swap,omitempty"`
	On         []string `json:"on,omitempty"` // the layer, or layers, below
}

// Levels of a finding.
const (
	LevelOK   = "ok"
	LevelWarn = "warn"
	LevelFail = "fail"
)

// Finding is the result of one check, with what to do about it.
type Finding struct {
	Check  string `json:"check"` // stable, e.g. "initramfs"
	Level  string `json:"level"` // ok, warn, fail
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
}

// UnmarshalJSON refuses more disks than an inventory may have before it makes room for
// them: an empty one is two bytes of text and a hundred times that in memory.
func (in *Inventory) UnmarshalJSON(b []byte) error {
	type plain Inventory // without this method
	raw := struct {
		*plain
		Disks     []json.RawMessage `json:"disks"`
		Preflight []json.RawMessage `json:"preflight"`
	}{plain: (*plain)(in)}
	err := json.Unmarshal(b, &raw)
	if err == nil {
		in.Disks, err = parse[InventoryDisk](raw.Disks, maxDisks, "disks")
	}
	if err == nil {
		in.Preflight, err = parse[Finding](raw.Preflight, maxFindings, "findings")
	}
	return err
}

// UnmarshalJSON refuses more parts than a disk may have before it makes room for them.
func (d *InventoryDisk) UnmarshalJSON(b []byte) error {
	type plain InventoryDisk // without this method
	raw := struct {
		*plain
		Parts []json.RawMessage `json:"parts"`
	}{plain: (*plain)(d)}
	err := json.Unmarshal(b, &raw)
	if err == nil {
		d.Parts, err = parse[InventoryPart](raw.Parts, maxParts, "parts of a disk")
	}
	return err
}

// parse reads a list of at most so many elements; none is nil.
func parse[T any](raw []json.RawMessage, most int, what string) ([]T, error) {
	if len(raw) > most {
		return nil, fmt.Errorf("%d %s, at most %d", len(raw), what, most)
	}
	if len(raw) == 0 {
		return nil, nil
	}
	out := make([]T, len(raw))
	for i, b := range raw {
		if err := json.Unmarshal(b, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Bound cuts the inventory down to what a heartbeat may carry.
func (in *Inventory) Bound() {
	for _, s := range []*string{&in.Hostname, &in.OS, &in.Kernel, &in.BootID} {
		clip(s, maxText)
	}
	clip(&in.Tracker, maxWords)
	in.Disks = few(in.Disks, maxDisks, &in.Truncated)
	in.Preflight = few(in.Preflight, maxFindings, &in.Truncated)
	for i := range in.Preflight {
		f := &in.Preflight[i]
		clip(&f.Check, maxText)
		clip(&f.Level, maxText)
		clip(&f.What, maxWords)
		clip(&f.Advice, maxWords)
	}
	for i := range in.Disks {
		in.Disks[i].bound(&in.Truncated)
	}
	for i := len(in.Disks) - 1; i >= 0 && in.size() > MaxInventory; i-- {
		in.Disks[i].Parts, in.Truncated = nil, true
	}
	for in.size() > MaxInventory && len(in.Disks) > 0 {
		in.Disks, in.Truncated = in.Disks[:len(in.Disks)/2], true
	}
}

func (d *InventoryDisk) bound(cut *bool) {
	for _, s := range []*string{&d.BackingUUID, &d.Serial, &d.WWN, &d.Model} {
		clip(s, maxText)
	}
	clip(&d.Path, maxWords)
	clip(&d.Why, maxWords)
	d.Paths = names(d.Paths, cut)
	d.Parts = few(d.Parts, maxParts, cut)
	for i := range d.Parts {
		p := &d.Parts[i]
		clip(&p.Name, maxText)
		clip(&p.Kind, maxText)
		clip(&p.FileSystem, maxText)
		p.Mounts, p.On = names(p.Mounts, cut), names(p.On, cut)
	}
}

func (in *Inventory) size() int {
	b, err := json.Marshal(in)
	if err != nil {
		return 0 // there is nothing in it that has no JSON
	}
	return len(b)
}

func names(list []string, cut *bool) []string {
	list = few(list, maxNames, cut)
	for i := range list {
		clip(&list[i], maxText)
	}
	return list
}

func few[T any](list []T, n int, cut *bool) []T {
	if len(list) <= n {
		return list
	}
	*cut = true
	return list[:n]
}

func clip(s *string, n int) {
	if len(*s) > n {
		*s = strings.ToValidUTF8((*s)[:n], "")
	}
}
