package api

import (
	"time"

	"drover/datapath/ident"
)

// AgentReport is what an agent said last of itself and of the guest it runs in. Of a
// guest that is hostile it is what that guest likes to say.
type AgentReport struct {
	Machine  ident.MachineID `json:"machine"`
	Instance string          `json:"instance"` // hardware uuid of the machine it runs on
	Version  string          `json:"version"`
	// Refused says why the servers do not take this version; empty: they do.
	Refused  string    `json:"refused,omitempty"`
	LastSeen time.Time `json:"lastSeen"`
	State    string    `json:"state,omitempty"` // in a word, when it was last seen
	Detail   string    `json:"detail,omitempty"`
	Hostname string    `json:"hostname,omitempty"`
	OS       string    `json:"os,omitempty"`
	Kernel   string    `json:"kernel,omitempty"`
	BootID   string    `json:"bootId,omitempty"` // another one after every boot of the guest
	// Tracker is how changes are found, and why no better way.
	Tracker string      `json:"tracker,omitempty"`
	Disks   []AgentDisk `json:"disks,omitempty"`
	// Preflight says whether this guest would boot in the target. It blocks nothing.
	Preflight []Finding `json:"preflight,omitempty"`
	// Truncated: the guest has more than fits into a report.
	Truncated bool `json:"truncated,omitempty"`
	// Reached is whether it reaches the server that it was asked to; nil: it was asked for
	// nothing, or is too old to tell.
	Reached *AgentReached `json:"reached,omitempty"`
}

// AgentReached is whether an agent reaches a server.
type AgentReached struct {
	Address string `json:"address"` // of the server, host:port
	Via     string `json:"via,omitempty"`
	Error   string `json:"error,omitempty"` // empty: it does
}

// AgentDisk is a disk as the agent sees it.
type AgentDisk struct {
	BackingUUID string      `json:"backingUUID,omitempty"` // empty: it cannot be told from others
	Path        string      `json:"path"`
	Size        int64       `json:"size"` // bytes
	Model       string      `json:"model,omitempty"`
	Serial      string      `json:"serial,omitempty"`
	Removable   bool        `json:"removable,omitempty"`
	ReadOnly    bool        `json:"readOnly,omitempty"`
	Paths       []string    `json:"paths,omitempty"` // of a disk that is reached by several
	Parts       []AgentPart `json:"parts,omitempty"`
	Protected   bool        `json:"protected,omitempty"`
	Why         string      `json:"why,omitempty"` // why it is not protected, or what is wrong with it
	Gone        time.Time   `json:"gone,omitzero"` // since when it is not there any more
}

// AgentPart is the disk itself, a partition, or a layer above them (LVM, encryption,
// RAID, multipath) that holds something.
type AgentPart struct {
	Name       string   `json:"name"`
	Kind       string   `json:"kind"` // disk, partition, lvm, crypt, raid, multipath, mapped
	Size       int64    `json:"size"`
	FileSystem string   `json:"fileSystem,omitempty"`
	Mounts     []string `json:"mounts,omitempty"`
	Swap       bool     `json:"swap,omitempty"`
	On         []string `json:"on,omitempty"` // the layers below
}

// Finding is what one check of the guest came to, with what to do about it.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, warn, fail
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
}

// Levels of a finding.
const (
	LevelOK   = "ok"
	LevelWarn = "warn"
	LevelFail = "fail"
)

// ListAgentsInput asks for the reports of machines' agents.
type ListAgentsInput struct {
	Machines []ident.MachineID `json:"machines"` // at most MaxAgentsAsked
}

// MaxAgentsAsked bounds how many machines' agents are asked for at once.
const MaxAgentsAsked = 256

// ListAgentsResult has the newest report of each machine that has an agent.
type ListAgentsResult struct {
	Reports []AgentReport `json:"reports"`
	// Looked is how many of the machines these are all reports of: an answer has a size.
	Looked int `json:"looked"`
}

// DiskState is what becomes of a disk of a guest.
type DiskState string

// The states of a guest's disks.
const (
	DiskProtected DiskState = "protected"
	DiskExcluded  DiskState = "excluded" // the operator wants it so
	DiskNew       DiskState = "new"      // of the VM, added after protection began, not protected
	DiskGrown     DiskState = "grown"    // protected; the guest has more of it than is
	DiskShrunk    DiskState = "shrunk"   // protected; the guest has less of it than was
	DiskMissing   DiskState = "missing"  // protected, and not there any more
	DiskGone      DiskState = "gone"     // not protected, and not there any more
	DiskOther     DiskState = "other"    // not one of the VM's that can be protected
)

// GuestDisk is a disk of a machine: as the guest has it, as vCenter has it, and what
// becomes of it.
type GuestDisk struct {
	ID    ident.DiskID `json:"id,omitzero"`
	Label string       `json:"label,omitempty"` // in vCenter
	State DiskState    `json:"state"`
	// ProtectedSize is how much of it is replicated.
	ProtectedSize int64 `json:"protectedSize,omitempty"`
	// Unseen: vCenter has it and the agent does not list it.
	Unseen bool `json:"unseen,omitempty"`
	AgentDisk
}
