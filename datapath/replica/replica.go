// Package replica is the contract of a store that keeps machines' replicas: disk
// images with their recovery points. Implementations: replica/file (a directory,
// a second site, or the disks attached to a master target).
//
// What every store must hold, and replicatest checks:
//
//   - A recovery point exists completely or not at all, over all the machine's
//     disks, and only at the cut of an applied change set.
//   - Apply is whole or nothing as far as points and position tell: after a crash
//     in the middle, the position is still the old one, all points read as
//     before, and applying the same change set again finishes the work.
//   - A writer whose epoch is lower than the store's is refused by the store with
//     [ErrFenced], at every call, whatever it believed before.
//   - A change set that does not follow the position is refused with [ErrGap];
//     one that was applied already is accepted and changes nothing.
//   - Every block's checksum is verified before it is written; a mismatch is
//     [ErrCorrupt] and nothing is changed.
//   - During a base copy (generation not complete) no points are made and the old
//     ones stay readable.
//   - Readers need no coordination with the writer, in this process or another.
package replica

import (
	"context"
	"errors"
	"io"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
)

// Errors that callers act upon.
var (
	ErrFenced   = errors.New("fenced: another owner has raised the epoch")
	ErrGap      = errors.New("change set does not follow the replica's position")
	ErrCorrupt  = errors.New("checksum mismatch")
	ErrNotFound = errors.New("not found")
	ErrHeld     = errors.New("recovery point is held")
	ErrVersion  = errors.New("store of another format")
	// ErrNoSpace is permanent until somebody makes room: it is not retried in a loop.
	ErrNoSpace = errors.New("no space left in the store")
)

// MaxDocument bounds a document of a store, in bytes.
const MaxDocument = 1 << 20

// Disk describes a disk of a replica.
type Disk struct {
	changeset.Disk
	Name string `json:"name"` // for people, e.g. "Hard disk 1"
	// BackingUUID is the uuid of the VM's disk backing.
	BackingUUID string `json:"backingUUID,omitempty"`
	// Path, when set, is an existing block device or file outside the store that
	// holds the disk (master target). Its content is unknown until compared.
	Path string `json:"path,omitempty"`
}

// Spec is what a machine's replica is made from.
type Spec struct {
	Machine ident.MachineID `json:"machine"`
	Name    string          `json:"name"`
	Disks   []Disk          `json:"disks"` // Seed is chosen by the store when 0
	KeyID   string          `json:"keyId"`
	// Documents are kept in the manifest for recovery without a control plane:
	// the policy, target settings. Each at most 64 KiB of JSON.
	Documents map[string]string `json:"documents,omitempty"`
}

// Point is one recovery point.
type Point struct {
	ID          ident.Seq         `json:"id"` // the sequence number of its cut; unique per machine
	Position    ident.Position    `json:"position"`
	Generation  uint32            `json:"generation"`
	Time        time.Time         `json:"time"` // the cut's source time, corrected by the measured clock offset
	Consistency ident.Consistency `json:"consistency"`
	Final       bool              `json:"final,omitempty"`
	Freeze      time.Duration     `json:"freeze,omitempty"`
	Note        string            `json:"note,omitempty"`
	Group       *changeset.Group  `json:"group,omitempty"` // it is of the one moment of several machines
	Disks       []Disk            `json:"disks"`           // sizes as of the cut
	UndoBytes   int64             `json:"undoBytes"`
	Holds       []Hold            `json:"holds,omitempty"`
}

// Hold keeps retention away from a point until it expires.
type Hold struct {
	Owner   string    `json:"owner"`
	Expires time.Time `json:"expires"`
}

// State is what the manifest says of a machine.
type State struct {
	Spec       Spec           `json:"spec"`
	Epoch      ident.Epoch    `json:"epoch"`
	Position   ident.Position `json:"position"`
	Generation uint32         `json:"generation"`
	Complete   bool           `json:"complete"` // the generation's base copy is complete
	Empty      bool           `json:"empty"`    // nothing was ever written: zero ranges need not be sent
	Points     []Point        `json:"points"`   // oldest first
	UsedBytes  int64          `json:"usedBytes"`
}

// Store keeps replicas of many machines.
type Store interface {
	// ID is the store's own: the same however it is reached, and no other store's.
	// It is made when it is asked for first.
	ID(ctx context.Context) (string, error)
	// OpenWriter opens the machine's replica for the owner of the epoch, making it
	// when absent. An epoch higher than the store's raises it; a lower one is
	// refused with ErrFenced. Disks that grew are grown; any other change of the
	// disk list needs BeginGeneration by the caller.
	OpenWriter(ctx context.Context, epoch ident.Epoch, spec Spec) (Writer, error)
	// OpenReader opens the machine read-only; it needs no epoch.
	OpenReader(ctx context.Context, machine ident.MachineID) (Reader, error)
	// Fence raises the epoch, so that every older writer is refused from then on.
	// Raising to the present epoch changes nothing; a lower one is ErrFenced.
	Fence(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error
	// Machines lists what the store holds.
	Machines(ctx context.Context) ([]ident.MachineID, error)
	// Remove deletes the machine's replica and all its points. It is refused with
	// ErrHeld while a point is held, and with ErrFenced for an old epoch.
	Remove(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error
	// PutDocument keeps a document for recovery without a control plane (a recovery
	// plan, say) beside the machines; the name is [a-z0-9-]{1,80}, the content at most
	// MaxDocument bytes.
	PutDocument(ctx context.Context, name string, content []byte) error
	// RemoveDocument forgets a document; an absent one is no error.
	RemoveDocument(ctx context.Context, name string) error
	Documents(ctx context.Context) (map[string][]byte, error)
}

// ChangeSet is what a writer applies; *changeset.Reader is one.
type ChangeSet interface {
	Summary() changeset.Summary
	// Extents are those of all disks; Rewind starts again.
	changeset.Extents
	Rewind() error
	// Disk gives the extents of one disk. Those of several disks may be gone over at
	// once, as long as the change set itself is not.
	Disk(disk int) changeset.Extents
}

// Writer changes one machine's replica. Not safe for concurrent use, but Sums and
// State may be called while Apply runs.
type Writer interface {
	State() State
	// BeginGeneration says that the base is no longer trusted (initial copy, or
	// resync): Complete becomes false until a base set with Complete is applied.
	// For disks whose content is unknown (Path, or after damage) rescan reads the
	// stored bytes again instead of trusting the checksum map; it can take long,
	// progress (may be nil) is told bytes done of total.
	BeginGeneration(ctx context.Context, disks []Disk, rescan bool, progress func(done, total int64)) error
	// Apply writes the change set and, unless it is an incomplete base, makes a
	// recovery point at its cut.
	Apply(ctx context.Context, cs ChangeSet) (Point, error)
	// Leaves gives the level-0 checksums of a disk as they are stored now.
	Leaves(disk ident.DiskID) (checksum.Leaves, error)
	// SetDocuments replaces the manifest's documents.
	SetDocuments(ctx context.Context, docs map[string]string) error
	// Delete removes the points, by a durable plan executed idempotently. Held
	// points are skipped and returned.
	Delete(ctx context.Context, points []ident.Seq) (held []ident.Seq, err error)
	Close() error
}

// Reader reads one machine's replica while it may be written.
type Reader interface {
	// State reads the manifest anew.
	State(ctx context.Context) (State, error)
	// OpenDisk reads one disk as it was at the point. The caller holds the point.
	OpenDisk(ctx context.Context, point ident.Seq, disk ident.DiskID) (DiskReader, error)
	// Hold keeps retention away from the point; the same owner extends its hold.
	Hold(ctx context.Context, point ident.Seq, hold Hold) error
	// Release ends the owner's hold; unknown owners and points are no error.
	Release(ctx context.Context, point ident.Seq, owner string) error
	Close() error
}

// DiskReader reads a disk as of a point. Blocks are verified where sums are known.
type DiskReader interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// ReadSums fills dst with the level-0 checksums of the blocks from first on, as the
	// store's map has them: the stored bytes are not read.
	ReadSums(first int64, dst []uint64) error
	// NextData gives the next range from offset on that may hold data other than
	// zeros, so that copies stay sparse. ok is false when none is left.
	NextData(offset int64) (r checksum.Range, ok bool, err error)
}
