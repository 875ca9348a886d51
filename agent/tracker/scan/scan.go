// Package scan is the tracker that needs nothing of the operating system: it keeps
// the checksum of every block the replica has, and finds changes by reading the
// disk and comparing. It costs 8 bytes of memory for 4 KiB of disk, and one read of
// the disk for each pass.
package scan

import (
	"context"
	"fmt"
	"time"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/reading"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// Name is the tracker's name.
const Name = "scan"

// Tracker implements [tracker.Tracker].
type Tracker struct {
	disks  []tracker.Disk
	state  []*state
	hashed time.Duration
}

// state is what is known of the replica of one disk.
type state struct {
	disk    changeset.Disk
	sums    checksum.Memory
	unknown changes.Bitmap // the sum is not to be trusted
}

var _ tracker.Tracker = (*Tracker)(nil)

// New makes a tracker; call Attach and Begin before anything else.
func New() *Tracker { return &Tracker{} }

// Name is "scan".
func (*Tracker) Name() string { return Name }

// Attach gives the tracker the disks to read.
func (t *Tracker) Attach(disks []tracker.Disk) (kept bool, err error) {
	t.disks = disks
	return len(t.state) == len(disks), nil
}

// Keep does nothing: what is known ends with the process.
func (*Tracker) Keep([]byte, bool) {}

// Note gives none.
func (*Tracker) Note() []byte { return nil }

// Begin takes the replicas to be all zeros.
func (t *Tracker) Begin(disks []changeset.Disk) {
	t.state = make([]*state, len(disks))
	for i, d := range disks {
		blocks := checksum.Blocks(d.Size)
		t.state[i] = &state{disk: d, sums: make(checksum.Memory, blocks), unknown: make(changes.Bitmap, changes.Words(d.Size))}
	}
}

// Learn reads the disk and takes the replica to be like it.
func (t *Tracker) Learn(ctx context.Context, disk int, compare func(checksum.Window) error, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	clear(s.sums)
	clear(s.unknown)
	w := checksum.Window{Blocks: s.sums.Len()}
	err = reading.Read(ctx, reading.All(t.disks[disk], s.disk), func(c *reading.Chunk) error {
		copy(s.sums[c.First():], c.Sums)
		report(p, c.Offset+c.Length)
		for done := c.End(); done >= min(w.First+checksum.WindowBlocks, w.Blocks) && w.First < w.Blocks; w.First += checksum.WindowBlocks {
			w.Sums = s.sums[w.First:min(w.First+checksum.WindowBlocks, w.Blocks)]
			if err := compare(w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.unknown.Set(0, s.sums.Len()) // half of what is known is old, half is new
		return fmt.Errorf("learn the checksums of disk %s: %w", s.disk.ID, err)
	}
	return nil
}

// Pass reads the disk and emits what differs from the sums kept.
func (t *Tracker) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	return t.send(ctx, disk, reading.All(t.disks[disk], s.disk), emit, p)
}

// Resend reads what is unknown and nothing else.
func (t *Tracker) Resend(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	if err := t.send(ctx, disk, reading.Blocks(t.disks[disk], s.disk, s.unknown), emit, p); err != nil {
		return err
	}
	report(p, s.disk.Size)
	return nil
}

func (t *Tracker) send(ctx context.Context, disk int, what reading.Part, emit tracker.Emit, p tracker.Progress) error {
	s := t.state[disk]
	err := reading.Read(ctx, what, func(c *reading.Chunk) error {
		t.hashed += c.Hashed
		if err := s.compare(disk, c, emit); err != nil {
			return err
		}
		report(p, c.Offset+c.Length)
		return nil
	})
	if err != nil {
		return fmt.Errorf("scan disk %s: %w", s.disk.ID, err)
	}
	return nil
}

// Forget makes the next pass emit the range whatever it holds.
func (t *Tracker) Forget(disk int, r checksum.Range) {
	s := t.state[disk]
	s.unknown.Set(r.Offset/checksum.BlockSize, min(checksum.Blocks(r.End()), s.sums.Len()))
}

// check refuses a disk that is not the one the sums are of.
func (t *Tracker) check(disk int) (*state, error) {
	if disk < 0 || disk >= len(t.state) || disk >= len(t.disks) {
		return nil, fmt.Errorf("scan disk %d of %d: not attached", disk, len(t.disks))
	}
	return t.state[disk], tracker.CheckSize(t.disks[disk], t.state[disk].disk)
}

// Hashed is the time spent for checksums since the last call.
func (t *Tracker) Hashed() time.Duration {
	d := t.hashed
	t.hashed = 0
	return d
}

func report(p tracker.Progress, done int64) {
	if p != nil {
		p(done)
	}
}

// compare emits what of a chunk may differ from the replica.
func (s *state) compare(disk int, c *reading.Chunk, emit tracker.Emit) error {
	differs := func(b int64) bool { return s.sums[b] != c.Sum(b) || s.unknown.Has(b) }
	return c.Emit(disk, differs, emit, func(first, end int64) {
		for b := first; b < end; b++ {
			s.sums[b] = c.Sum(b)
		}
		s.unknown.Clear(first, end)
	})
}
