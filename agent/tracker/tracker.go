// Package tracker is what the agent's change trackers have in common. A tracker
// answers one question: which blocks of the machine's disks may differ from what
// the replica has. It may name too many, never too few.
package tracker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// ErrSize is wrapped when a disk is not as large as it was: what is known of its
// replica is void.
var ErrSize = errors.New("the disk's size changed")

// ErrGap is wrapped when writes may have been missed. Nothing is known of any replica
// until Begin, and Learn for each disk.
var ErrGap = errors.New("writes may have been missed")

// Disk is what a tracker needs of a disk; agent/disk has it.
type Disk interface {
	// ReadAt fills p from off on; offsets and buffers are aligned as agent/disk says.
	ReadAt(p []byte, off int64) (int, error)
	// CurrentSize asks for the size in bytes as it is now.
	CurrentSize() (int64, error)
	// NextData gives the first range at or after off that may hold data; all before
	// it reads as zeros.
	NextData(off int64) (start, end int64, err error)
}

// CheckSize refuses a disk that is not as large as it was.
func CheckSize(d Disk, was changeset.Disk) error {
	size, err := d.CurrentSize()
	if err == nil && size != was.Size {
		err = fmt.Errorf("read disk %s: %w from %d to %d bytes; a resync is needed", was.ID, ErrSize, was.Size, size)
	}
	return err
}

// Emit takes a range that may differ from the replica. The data is valid during the
// call. When it returns nil the tracker takes the replica to have the range.
type Emit func(changeset.Extent) error

// Progress is told how many bytes of a disk were looked at.
type Progress func(done int64)

// Tracker follows the disks of one machine. Its methods are called by one goroutine
// at a time.
type Tracker interface {
	// Name is the tracker's short name, for the inventory.
	Name() string
	// Attach gives the tracker the disks to read, in the order that the other methods
	// count them. kept says that what it knows of their replicas stays; it may come from
	// an earlier process.
	Attach(disks []Disk) (kept bool, err error)
	// Begin forgets everything: the replicas of these disks are all zeros.
	Begin(disks []changeset.Disk)
	// Learn reads a disk and takes the replica to be as the disk is now; compare, which
	// is given the sums that were read window by window, says with Forget where it is not,
	// at once or at any time later: Forget may be called while Learn reads on.
	Learn(ctx context.Context, disk int, compare func(checksum.Window) error, p Progress) error
	// Pass emits what may differ from the replica, in order of offsets. After an error
	// of emit the range it was called with counts as not emitted.
	Pass(ctx context.Context, disk int, emit Emit, p Progress) error
	// Resend is a Pass over what Forget has named. It need not look for anything else.
	Resend(ctx context.Context, disk int, emit Emit, p Progress) error
	// Forget says that the replica may not have the range after all.
	Forget(disk int, r checksum.Range)
	// Keep keeps a note of the caller's beside what is known, for as long as that lives.
	// With safe all that was emitted is in the replica for good: a later process need not
	// emit it again.
	Keep(note []byte, safe bool)
	// Note gives the note that was kept last; nil: there is none, or nothing is known.
	Note() []byte
	// Hashed is the time spent for checksums since the last call.
	Hashed() time.Duration
}
