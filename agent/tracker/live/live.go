// Package live is the tracker that reads what the kernel has seen change. It costs a
// few bits of memory for 4 KiB of disk, and reads nothing else.
//
// What it knows is in three bitmaps for each disk. A block is dirty from the moment
// the source has seen a write, or somebody says that the replica does not have it,
// until it has been emitted. From then on it is flying, until all that was emitted is
// safe: where the source outlives the process, the next process takes what was flying
// for dirty. While a disk is copied for the first time, what was never emitted is all
// zeros in the replica, and zeros need not be sent.
//
// A block is read after it has been taken from the source. A write that comes while it
// is being read is seen by the source, and makes the block dirty with the next look.
package live

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

// maxRecent bounds the blocks whose checksums are remembered from one pass to the
// next.
const maxRecent = 32 << 10

// Disk is a disk that can be followed.
type Disk interface {
	tracker.Disk
	// Device names the whole block device.
	Device() (changes.Device, error)
}

// Tracker implements [tracker.Tracker].
type Tracker struct {
	source  changes.Source
	disks   []tracker.Disk
	devices []changes.Device
	state   []*state
	notes   notes
	gap     string // why nothing is known; empty: it is
	hashed  time.Duration
}

// state is what is known of the replica of one disk.
type state struct {
	disk   changeset.Disk
	dirty  changes.Bitmap
	flying changes.Bitmap
	filled changes.Bitmap // not nil: all other blocks are zeros in the replica
	// recent has the checksums of blocks that the newest pass looked at. A block whose
	// write is pending is reported again and again; it is emitted once.
	recent map[int64]uint64
}

var _ tracker.Tracker = (*Tracker)(nil)

// New makes a tracker over a source, which is the tracker's from then on.
func New(source changes.Source) *Tracker { return &Tracker{source: source} }

// Close closes the source.
func (t *Tracker) Close() error { return t.source.Close() }

// Name is the source's.
func (t *Tracker) Name() string { return t.source.Name() }

// Counters are the source's, and the blocks that are dirty.
func (t *Tracker) Counters() (map[string]uint64, error) { return t.source.Counters() }

// Attach follows the disks.
func (t *Tracker) Attach(disks []tracker.Disk) (kept bool, err error) {
	devices, err := devicesOf(disks)
	if err != nil {
		return false, err
	}
	if same(devices, t.devices) {
		t.disks = disks
		return t.state != nil, nil
	}
	t.state, t.devices, t.disks = nil, nil, nil
	goesOn, err := t.source.Follow(devices)
	if err != nil {
		return false, err
	}
	if err := t.remember(devices, goesOn); err != nil {
		return false, err
	}
	t.devices, t.disks = devices, disks
	return t.notes.known, nil
}

// Followable says why disks cannot be followed at all, by any source.
func Followable(disks []tracker.Disk) error {
	_, err := devicesOf(disks)
	return err
}

func devicesOf(disks []tracker.Disk) ([]changes.Device, error) {
	devices := make([]changes.Device, len(disks))
	for i, d := range disks {
		followed, ok := d.(Disk)
		if !ok {
			return nil, fmt.Errorf("follow disk %d: it is no block device", i)
		}
		var err error
		if devices[i], err = followed.Device(); err != nil {
			return nil, err
		}
	}
	return devices, nil
}

func same(a, b []changes.Device) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// remember finds what an earlier process has known of the devices, if the source has
// followed all of them since.
func (t *Tracker) remember(devices []changes.Device, goesOn []bool) error {
	t.state = make([]*state, len(devices))
	all := true
	for i, d := range devices {
		dirty, kept, err := bitmap(t.source, i, "dirty", d.Size)
		if err != nil {
			return err
		}
		flying, keptToo, err := bitmap(t.source, i, "flying", d.Size)
		if err != nil {
			return err
		}
		all = all && kept && keptToo && goesOn[i]
		t.state[i] = &state{disk: changeset.Disk{Size: d.Size}, dirty: dirty, flying: flying}
	}
	if err := t.notes.open(t.source, devices); err != nil {
		return err
	}
	disks, ok := t.notes.load(devices)
	if t.notes.known = all && ok; !t.notes.known {
		t.gap = "nothing is known yet"
		return nil
	}
	t.gap = ""
	for i, s := range t.state {
		s.disk = disks[i]
		for w := range s.flying {
			s.dirty[w] |= s.flying[w]
		}
	}
	return nil
}

// Begin takes the replicas to be all zeros: all data is to be emitted.
func (t *Tracker) Begin(disks []changeset.Disk) {
	_, _ = t.source.Gap() // everything is read anew; an error comes again with the next look
	for i, d := range disks {
		s := t.state[i]
		s.disk = d
		s.dirty.Set(0, checksum.Blocks(d.Size))
		s.filled = make(changes.Bitmap, len(s.dirty))
		s.recent = nil
	}
	t.gap = ""
	t.notes.forget()
}

// Learn reads the disk and takes the replica to be like it.
func (t *Tracker) Learn(ctx context.Context, disk int, compare func(checksum.Window) error, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	blocks := checksum.Blocks(s.disk.Size)
	if err := t.look(disk); err != nil {
		return err
	}
	// What the source has seen so far is read from now on; what is pending comes again.
	s.dirty.Clear(0, blocks)
	s.flying.Clear(0, blocks)
	s.filled, s.recent = nil, nil
	w := checksum.Window{Blocks: blocks, Sums: make([]uint64, 0, min(checksum.WindowBlocks, blocks))}
	err = reading.Read(ctx, reading.All(t.disks[disk], s.disk), func(c *reading.Chunk) error {
		report(p, c.Offset+c.Length)
		for b := c.First(); b < c.End(); b++ {
			w.Sums = append(w.Sums, c.Sum(b))
			if len(w.Sums) < checksum.WindowBlocks && b+1 < blocks {
				continue
			}
			if err := compare(w); err != nil {
				return err
			}
			w.First, w.Sums = b+1, w.Sums[:0]
		}
		return nil
	})
	if err != nil {
		s.dirty.Set(0, blocks)
		return fmt.Errorf("learn the checksums of disk %s: %w", s.disk.ID, err)
	}
	return nil
}

// Pass reads what is dirty and emits it.
func (t *Tracker) Pass(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	s, err := t.check(disk)
	if err != nil {
		return err
	}
	if err := t.look(disk); err != nil {
		return err
	}
	recent := map[int64]uint64{}
	err = reading.Read(ctx, reading.Blocks(t.disks[disk], s.disk, s.dirty), func(c *reading.Chunk) error {
		t.hashed += c.Hashed
		s.drop(c, recent)
		err := c.Emit(disk, s.dirty.Has, emit, func(first, end int64) {
			s.emitted(c, first, end, recent)
		})
		report(p, c.Offset+c.Length)
		return err
	})
	s.recent = recent
	if err != nil {
		return fmt.Errorf("read what changed on disk %s: %w", s.disk.ID, err)
	}
	report(p, s.disk.Size)
	return nil
}

// Resend is a Pass.
func (t *Tracker) Resend(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error {
	return t.Pass(ctx, disk, emit, p)
}

// drop clears the blocks of a chunk that the replica has already, or will have.
func (s *state) drop(c *reading.Chunk, recent map[int64]uint64) {
	for b := c.First(); b < c.End(); b++ {
		sum := c.Sum(b)
		last, known := s.recent[b]
		switch {
		case !s.dirty.Has(b):
		case known && last == sum:
			s.dirty.Clear(b, b+1)
			remember(recent, b, sum)
		case s.filled != nil && sum == 0 && !s.filled.Has(b):
			s.dirty.Clear(b, b+1)
		}
	}
}

// emitted notes a run of blocks that the replica will have.
func (s *state) emitted(c *reading.Chunk, first, end int64, recent map[int64]uint64) {
	s.flying.Set(first, end) // first: a process that ends in between emits them again
	s.dirty.Clear(first, end)
	if s.filled != nil {
		s.filled.Set(first, end)
	}
	for b := first; b < end; b++ {
		remember(recent, b, c.Sum(b))
	}
}

func remember(recent map[int64]uint64, block int64, sum uint64) {
	if len(recent) < maxRecent {
		recent[block] = sum
	}
}

// Forget makes the range dirty.
func (t *Tracker) Forget(disk int, r checksum.Range) {
	s := t.state[disk]
	first, end := r.Offset/checksum.BlockSize, min(checksum.Blocks(r.End()), checksum.Blocks(s.disk.Size))
	s.dirty.Set(first, end)
	if s.filled != nil {
		s.filled.Set(first, end) // it may have something now
	}
	for b := range s.recent {
		if first <= b && b < end {
			delete(s.recent, b)
		}
	}
}

// look takes what the source has seen.
func (t *Tracker) look(disk int) error {
	err := t.source.Drain(disk, t.state[disk].dirty)
	if err == nil && t.gap == "" {
		t.gap, err = t.source.Gap() // after Drain: of all that happened before it
	}
	if err != nil {
		return fmt.Errorf("look for changes of disk %s: %w", t.state[disk].disk.ID, err)
	}
	if t.gap != "" {
		t.notes.forget()
		return fmt.Errorf("%w: %s", tracker.ErrGap, t.gap)
	}
	return nil
}

// check refuses a disk that is not the one that is followed.
func (t *Tracker) check(disk int) (*state, error) {
	if disk < 0 || disk >= len(t.state) || disk >= len(t.disks) {
		return nil, fmt.Errorf("read disk %d of %d: not attached", disk, len(t.disks))
	}
	return t.state[disk], tracker.CheckSize(t.disks[disk], t.state[disk].disk)
}

// Keep keeps the note.
func (t *Tracker) Keep(note []byte, safe bool) {
	if t.state == nil || t.gap != "" {
		return
	}
	disks := make([]changeset.Disk, len(t.state))
	for i, s := range t.state {
		disks[i] = s.disk
	}
	t.notes.save(t.devices, disks, note)
	if !safe {
		return
	}
	for _, s := range t.state {
		for at := int64(0); ; {
			first, end := s.flying.Next(at, int64(len(s.flying))*64)
			if first == end {
				break
			}
			s.flying.Clear(first, end)
			at = end
		}
	}
}

// Note gives the note.
func (t *Tracker) Note() []byte { return t.notes.note }

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
