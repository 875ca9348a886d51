// Package target has the activities that make machines in the target cloud from
// recovery points. They are written once, against the interface [Cloud];
// target/local keeps its machines in a directory, activities/azure makes Azure's.
package target

import (
	"context"
	"errors"
	"io"

	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Errors of a Cloud that callers act upon.
var (
	ErrNotFound = errors.New("not found in the target")
	// ErrRefused: the target will not do it however often it is asked (quota,
	// policy, an address outside the subnet).
	ErrRefused = errors.New("refused by the target")
)

// Fault is an error that knows its code. Its text is for people and goes into
// histories: it never holds what an SDK printed, which may have signed addresses.
type Fault struct {
	Code string // one of api.Code*
	Text string
	Kind error // ErrNotFound, ErrRefused or nil
}

func (f *Fault) Error() string { return f.Text }

// Unwrap gives the kind.
func (f *Fault) Unwrap() error { return f.Kind }

// Tags that everything we make carries, so that a later try finds it and a
// clean-up takes it all.
const (
	TagRun     = "drover-run"     // workflow id of the failover or test
	TagMachine = "drover-machine" // machine id
	TagTest    = "drover-test"    // "true" on what a test failover made
	TagName    = "drover-name"    // of the machine, as in Ref
	TagPlan    = "drover-plan"    // workflow id of the plan's run, if one asked
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
	// Firmware lists what it boots, "bios" and "efi"; empty: anything.
	Firmware []string
	Zones    []string // that have it; empty: there are no zones
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
	// Number is the disk's place; the machine boots from 0.
	Number   int
	Firmware string // "bios" or "efi"
	Windows  bool
	Kind     string // as the target calls its kinds of disk; empty: its default
	Zone     string
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
	Machine ident.MachineID
	Size    string
	// FallBack lists the sizes to take, in order, when there is no room for Size.
	FallBack []string
	Network  string
	Subnet   string
	Address  string // to keep; empty takes a free one
	// AddressPolicy says what to do when Address is taken; see api.Target.
	AddressPolicy   string
	Zone            string
	AvailabilitySet string
	Health          string // see api.Target
	Firmware        string
	Windows         bool
	Disks           int
	Test            bool
	Tags            map[string]string
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

// Importer is a Cloud that takes a disk's content from the store by itself, so that
// it does not pass through us.
type Importer interface {
	// Imports says whether it does, with the store as it is configured.
	Imports() bool
	// ImportDisk makes the disk with the content it has at the point.
	ImportDisk(ctx context.Context, ref Ref, spec DiskSpec, machine ident.MachineID, point replica.Point) (Disk, error)
}

// Checker is a Cloud that can say beforehand what it would refuse: quota, names,
// permissions, addresses, regions.
type Checker interface {
	Precheck(ctx context.Context, ref Ref, spec MachineSpec, disks []DiskSpec) error
}

// RelayMachine is the temporary process server.
type RelayMachine struct {
	Name    string // what it is enrolled as
	Address string
}

// Relayer is a Cloud that can have a temporary process server, one at most.
type Relayer interface {
	// MakeRelay makes the machine, or finds it, when it runs. firstBoot gives what it does
	// at its first boot; it holds a secret, and is called only if the machine is made.
	MakeRelay(ctx context.Context, firstBoot func(name, address string) ([]byte, error)) (RelayMachine, error)
	// DeleteRelay deletes all that was made for it.
	DeleteRelay(ctx context.Context) error
}

// Committer is a Cloud that keeps things until a failover is committed.
type Committer interface {
	// Commit deletes what the machine does not need any more.
	Commit(ctx context.Context, ref Ref) error
}
