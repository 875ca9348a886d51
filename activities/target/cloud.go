// Package target has the activities that make machines in the target cloud from
// recovery points. They are written once, against the interface [Cloud];
// target/local keeps its machines in a directory, Azure comes behind the same
// interface.
package target

import (
	"context"
	"errors"
	"io"

	"drover/datapath/ident"
)

// Errors of a Cloud that callers act upon.
var (
	ErrNotFound = errors.New("not found in the target")
	// ErrRefused: the target will not do it however often it is asked (quota,
	// policy, an address outside the subnet).
	ErrRefused = errors.New("refused by the target")
)

// Tags that everything we make carries, so that a later try finds it and a
// clean-up takes it all.
const (
	TagRun     = "drover-run"     // workflow id of the failover or test
	TagMachine = "drover-machine" // machine id
	TagTest    = "drover-test"    // "true" on what a test failover made
)

// Network is a virtual network.
type Network struct {
	Name    string
	Subnets []string
	// WaysOut are peerings, gateways and routes that leave the network. A test
	// network has none.
	WaysOut []string
}

// Size is a kind of machine the cloud offers.
type Size struct {
	Name     string
	CPUs     int32
	MemoryMB int32
	MaxDisks int
}

// Ref names a machine that we made, or are about to: its name, and the run that
// makes it unique.
type Ref struct {
	Name string
	Run  string
}

// DiskSpec is a disk to make.
type DiskSpec struct {
	ID   ident.DiskID
	Name string
	Size int64 // bytes
	Tags map[string]string
}

// Disk is a disk in the cloud.
type Disk struct {
	ID          ident.DiskID
	Name        string
	BackingUUID string // as the guest sees it
	Size        int64
	Location    string
	Filled      bool // its content was written to the end
}

// MachineSpec is a machine to make from disks that are there already.
type MachineSpec struct {
	Size    string
	Network string
	Subnet  string
	Address string // to keep; empty takes a free one
	Test    bool
	Tags    map[string]string
}

// Machine is a machine in the cloud.
type Machine struct {
	Name     string
	Instance string // hardware uuid that its guest sees
	Size     string
	Network  string
	Address  string
	Running  bool
	Disks    []Disk
	Tags     map[string]string
}

// DiskWriter fills a new disk. What is not written is zero. Close without Finish
// leaves the disk unfilled.
type DiskWriter interface {
	io.WriterAt
	// Finish makes the content durable and marks the disk as filled.
	Finish(ctx context.Context) error
	io.Closer
}

// Cloud is what a target must do. Every method is idempotent: what exists
// already, from an earlier try with the same Ref, is found and used. Methods
// return when the operation has ended; an implementation over a service with
// long-running operations waits for them, and stops waiting with the context.
type Cloud interface {
	// Network gives a network; ErrNotFound.
	Network(ctx context.Context, name string) (Network, error)
	// Sizes lists what machines there are, smallest first.
	Sizes(ctx context.Context) ([]Size, error)
	// CreateDisk makes an empty disk for the machine.
	CreateDisk(ctx context.Context, ref Ref, spec DiskSpec) (Disk, error)
	// OpenDisk opens a disk that is not filled, empty again, for writing.
	OpenDisk(ctx context.Context, ref Ref, disk Disk) (DiskWriter, error)
	// CreateMachine makes the machine from its disks, switched off.
	CreateMachine(ctx context.Context, ref Ref, spec MachineSpec) (Machine, error)
	// Start, Stop: ErrNotFound. They change nothing that is so already.
	Start(ctx context.Context, ref Ref) (Machine, error)
	Stop(ctx context.Context, ref Ref) error
	// Check says whether a started machine is up, and by what evidence.
	Check(ctx context.Context, ref Ref) (ready bool, evidence string, err error)
	// Delete removes all that was made for the ref; nothing there is no error.
	Delete(ctx context.Context, ref Ref) error
}
