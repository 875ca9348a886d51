package api

import (
	"slices"
	"strings"
	"time"
	"unicode"

	"drover/datapath/ident"
)

// Location says where in vSphere a machine's VM is made anew for its way back. Names are
// those that vCenter shows.
type Location struct {
	VCenter   string `json:"vcenter,omitempty"` // its name in Drover; empty: the original's
	Datastore string `json:"datastore"`         // of the VM and its disks, which are thin
	Host      string `json:"host,omitempty"`    // empty: the master target's
	Pool      string `json:"pool,omitempty"`    // resource pool; empty: all of the host or its cluster
	Folder    string `json:"folder,omitempty"`  // of VMs, with / between; empty: the datacenter's
	Name      string `json:"name,omitempty"`    // of the VM; empty: the original's
	// Networks give for a network of the original the one to take instead; others are
	// looked for by the name that they had.
	Networks map[string]string `json:"networks,omitempty"`
	// Site of the master target; empty: the machine's own.
	Site string `json:"site,omitempty"`
	// OnlyIfGone takes the original as long as it is there.
	OnlyIfGone bool `json:"onlyIfGone,omitempty"`
}

// maxNetworks bounds the network cards of a VM that are given other networks.
const maxNetworks = 10

// Equal reports whether two locations are the same; nil is none.
//
//workflowcheck:ignore
func (l *Location) Equal(o *Location) bool {
	if l == nil || o == nil {
		return l == o
	}
	if len(l.Networks) != len(o.Networks) {
		return false
	}
	for k, v := range l.Networks {
		if w, ok := o.Networks[k]; !ok || v != w {
			return false
		}
	}
	return l.VCenter == o.VCenter && l.Datastore == o.Datastore && l.Host == o.Host && l.Pool == o.Pool && l.Folder == o.Folder &&
		l.Name == o.Name && l.Site == o.Site && l.OnlyIfGone == o.OnlyIfGone
}

// String tells people where it is.
func (l Location) String() string {
	text := "datastore " + l.Datastore
	if l.Host != "" {
		text += " and host " + l.Host
	}
	if l.VCenter != "" {
		text += " of vCenter " + l.VCenter
	}
	if l.OnlyIfGone {
		text += ", if the original is gone"
	}
	return text
}

// ValidateLocation gives all that is wrong with a location, as far as it shows without
// asking vCenter.
func ValidateLocation(l Location) []FieldError {
	c := &checker{}
	if l.Datastore == "" {
		c.fail("datastore", "want the datastore on which the VM is made anew")
	}
	for _, f := range []struct{ path, value string }{
		{"vcenter", l.VCenter}, {"datastore", l.Datastore}, {"host", l.Host}, {"pool", l.Pool}, {"name", l.Name}, {"site", l.Site},
	} {
		c.vname(f.path, f.value)
	}
	if l.Folder != "" {
		for _, part := range strings.Split(l.Folder, "/") {
			if part == "" || part == "." || part == ".." {
				c.fail("folder", "%q: want folders below the datacenter's VMs, such as servers/linux", l.Folder)
				break
			}
			c.vname("folder", part)
		}
	}
	if len(l.Networks) > maxNetworks {
		c.fail("networks", "%d, at most %d", len(l.Networks), maxNetworks)
	}
	for _, from := range names(l.Networks) {
		if from == "" || l.Networks[from] == "" {
			c.fail("networks", "%q: want the original's network and the one to take instead", from)
		}
		c.vname("networks", from)
		c.vname("networks", l.Networks[from])
	}
	return c.errs
}

// vname checks the name of something in vCenter; none is fine.
func (c *checker) vname(path, s string) {
	if len(s) > MaxMachineName || strings.ContainsAny(s, "/\\") || strings.ContainsFunc(s, unicode.IsControl) {
		c.fail(path, "%q: want a name as vCenter shows it, up to %d characters", s, MaxMachineName)
	}
}

// Gone tells people what to do when the original VM is not there.
func (vm VM) Gone() string {
	return "VM " + vm.Name + " is not in vCenter " + vm.VCenter + " any more; name where it is to be made anew: drover reprotect " + vm.Name +
		" --datastore NAME, or location: {datastore: NAME} of the machine in a plan"
}

// MakeVMInput makes a machine's VM anew, switched off. What an earlier try of the run made
// is found and used.
type MakeVMInput struct {
	VM    VM       `json:"vm"`    // as it was
	Disks []VMDisk `json:"disks"` // that it is to have, by id and size
	// At is where; nil (to be checked): the original is to be there.
	At  *Location `json:"at,omitempty"`
	Run string    `json:"run"` // owns what is made
	// MasterTarget is the server whose VM is to write to the disks; empty (to be checked):
	// it is not chosen yet.
	MasterTarget string `json:"masterTarget,omitempty"`
}

// VCenter is the one in which the VM is made.
func (in MakeVMInput) VCenter() string {
	if in.At != nil && in.At.VCenter != "" {
		return in.At.VCenter
	}
	return in.VM.VCenter
}

// MadeVM is a VM that a run made.
type MadeVM struct {
	VM    VM       `json:"vm"`
	Disks []VMDisk `json:"disks"` // in the order of the input
}

// UnmakeVMInput deletes the VM that a run made, with its disks; nothing else.
type UnmakeVMInput struct {
	VCenter string          `json:"vcenter"`
	Machine ident.MachineID `json:"machine"`
	Run     string          `json:"run"`
}

// Remade is a machine's VM that was made anew, while the machine has not failed back to
// it: what the machine had before, and has again when its reprotect is rolled back.
type Remade struct {
	Run       string    `json:"run"`
	Made      VMRef     `json:"made"`
	Former    VM        `json:"former"`
	Protected []VMDisk  `json:"protected"`
	Excluded  []string  `json:"excluded,omitempty"`
	At        time.Time `json:"at"`
}

// FormerVM is a VM that is the machine's no more.
type FormerVM struct {
	VCenter      string    `json:"vcenter"`
	InstanceUUID string    `json:"instanceUUID"`
	Name         string    `json:"name"`
	Until        time.Time `json:"until"`
}

// MaxFormer bounds the former VMs that a machine remembers.
const MaxFormer = 8

// Remember adds a former VM, and forgets the oldest.
func Remember(all []FormerVM, f FormerVM) []FormerVM {
	all = append(slices.Clone(all), f)
	if len(all) > MaxFormer {
		all = all[len(all)-MaxFormer:]
	}
	return all
}
