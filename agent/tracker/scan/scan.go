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
func (t *Tracker) Attach(disks []tracker.Disk) { t.disks = disks }

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
	err = read(ctx, everything(t.disks[disk], s.disk), func(c *chunk) error {
		copy(s.sums[c.offset/checksum.BlockSize:], c.sums)
		report(p, c)
		for done := checksum.Blocks(c.offset + c.length); done >= min(w.First+checksum.WindowBlocks, w.Blocks) && w.First < w.Blocks; w.First += checksum.WindowBlocks {
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
	return t.send(ctx, disk, everything(t.disks[disk], s.disk), emit, p)
}

// Resend reads what is unknown and nothing else.
func (t *Tracker) Resend(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	if err := t.send(ctx, disk, s.forgotten(t.disks[disk]), emit, p); err != nil {
		return err
	}
	report(p, &chunk{length: s.disk.Size})
	return nil
}

func (t *Tracker) send(ctx context.Context, disk int, what part, emit tracker.Emit, p tracker.Progress) error {
	s := t.state[disk]
	err := read(ctx, what, func(c *chunk) error {
		t.hashed += c.hashed
		if err := s.compare(disk, c, emit); err != nil {
			return err
		}
		report(p, c)
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
	s := t.state[disk]
	size, err := t.disks[disk].CurrentSize()
	if err != nil {
		return nil, err
	}
	if size != s.disk.Size {
		return nil, fmt.Errorf("scan disk %s: %w from %d to %d bytes; a resync is needed", s.disk.ID, tracker.ErrSize, s.disk.Size, size)
	}
	return s, nil
}

// Hashed is the time spent for checksums since the last call.
func (t *Tracker) Hashed() time.Duration {
	d := t.hashed
	t.hashed = 0
	return d
}

func report(p tracker.Progress, c *chunk) {
	if p != nil {
		p(c.offset + c.length)
	}
}

// differs reports whether a block may differ from the replica.
func (s *state) differs(block int64, sum uint64) bool {
	return s.sums[block] != sum || s.unknown.Has(block)
}

// compare emits the runs of a chunk that differ, each all data or all zeros.
func (s *state) compare(disk int, c *chunk, emit tracker.Emit) error {
	sumOf := func(i int64) uint64 {
		if c.sums == nil {
			return 0
		}
		return c.sums[i]
	}
	first, n := c.offset/checksum.BlockSize, checksum.Blocks(c.length)
	for i := int64(0); i < n; {
		if !s.differs(first+i, sumOf(i)) {
			i++
			continue
		}
		zero, from := sumOf(i) == 0, i
		for i < n && s.differs(first+i, sumOf(i)) && (sumOf(i) == 0) == zero {
			i++
		}
		off := from * checksum.BlockSize
		e := changeset.Extent{Disk: disk, Offset: c.offset + off, Length: min(i*checksum.BlockSize, c.length) - off, Zero: zero}
		if !zero {
			e.Data, e.Sums = c.data[off:off+e.Length], c.sums[from:i]
		}
		if err := emit(e); err != nil {
			return err
		}
		for b := from; b < i; b++ {
			s.sums[first+b] = sumOf(b)
		}
		s.unknown.Clear(first+from, first+i)
	}
	return nil
}
