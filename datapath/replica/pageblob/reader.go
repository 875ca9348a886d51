package pageblob

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob/vhd"
)

const (
	ioBytes    = 4 << 20 // read at once
	maxRereads = 3       // how often a block that does not match is read again
)

// reader reads one machine; it keeps nothing open.
type reader struct{ m machine }

// OpenReader opens the machine read-only.
func (s *Store) OpenReader(ctx context.Context, id ident.MachineID) (replica.Reader, error) {
	r := &reader{s.machine(id)}
	if _, err := r.m.load(ctx); err != nil {
		return nil, fmt.Errorf("open replica of machine %s for reading: %w", id, err)
	}
	return r, nil
}

func (r *reader) Close() error { return nil }

func (r *reader) State(ctx context.Context) (replica.State, error) {
	mf, err := r.m.load(ctx)
	if err != nil {
		return replica.State{}, err
	}
	return r.m.state(ctx, mf)
}

// OpenDisk opens the disk as of the point.
func (r *reader) OpenDisk(ctx context.Context, point ident.Seq, disk ident.DiskID) (replica.DiskReader, error) {
	d, err := r.openDisk(ctx, point, disk)
	if err != nil {
		return nil, fmt.Errorf("open disk %s of machine %s at point %d: %w", disk, r.m.id, point, err)
	}
	return d, nil
}

func (r *reader) openDisk(ctx context.Context, point ident.Seq, disk ident.DiskID) (*diskReader, error) {
	mf, err := r.m.load(ctx)
	if err != nil {
		return nil, err
	}
	i := mf.point(point)
	if i < 0 {
		return nil, fmt.Errorf("point: %w", replica.ErrNotFound)
	}
	j := slices.IndexFunc(mf.State.Points[i].Disks, func(d replica.Disk) bool { return d.ID == disk })
	if j < 0 {
		return nil, fmt.Errorf("disk: %w", replica.ErrNotFound)
	}
	d := &diskReader{m: r.m, point: point, disk: mf.State.Points[i].Disks[j]}
	at := mf.Snapshots[i].Disks[disk]
	if d.vhd, err = r.m.store.pages(r.m.diskName(disk)).at(at.Disk); err != nil {
		return nil, err
	}
	sums, err := r.m.store.pages(r.m.sumsName(disk)).at(at.Sums)
	if err != nil {
		return nil, err
	}
	s, err := openSums(ctx, sums, d.disk.Size)
	if err != nil {
		return nil, err
	}
	d.sums = &sumsCursor{s: s}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return d, nil
}

// SnapshotURL gives the snapshot that a disk is at a recovery point, for who makes a
// managed disk from it: its URL, which holds no secret, and the size of the VHD's disk.
func (s *Store) SnapshotURL(ctx context.Context, id ident.MachineID, point replica.Point, disk ident.DiskID) (url string, size int64, err error) {
	m := s.machine(id)
	mf, err := m.load(ctx)
	if err != nil {
		return "", 0, err
	}
	i := mf.point(point.ID)
	if i < 0 || mf.State.Points[i].Position != point.Position {
		return "", 0, fmt.Errorf("point %d of machine %s: %w", point.ID, id, replica.ErrNotFound)
	}
	at, ok := mf.Snapshots[i].Disks[disk]
	j := slices.IndexFunc(mf.State.Points[i].Disks, func(d replica.Disk) bool { return d.ID == disk })
	if !ok || j < 0 {
		return "", 0, fmt.Errorf("disk %s at point %d of machine %s: %w", disk, point.ID, id, replica.ErrNotFound)
	}
	return s.c.Name() + "/" + m.diskName(disk) + "?snapshot=" + at.Disk, vhd.Size(mf.State.Points[i].Disks[j].Size), nil
}

// diskReader reads the snapshots of a disk and of its checksums. It is safe for
// concurrent use.
type diskReader struct {
	m      machine
	point  ident.Seq
	disk   replica.Disk // as of the point
	vhd    *pages
	sums   *sumsCursor
	ctx    context.Context // until Close: the interface has none
	cancel context.CancelFunc
}

func (d *diskReader) Size() int64 { return d.disk.Size }

func (d *diskReader) Close() error {
	d.cancel()
	return nil
}

// ReadAt reads as of the point; every block is compared with its checksum.
func (d *diskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disk %s at %d: negative offset", d.disk.ID, off)
	}
	return replica.ReadBlocks(p, off, d.disk.Size, ioBytes, func(b []byte, at int64) error {
		if err := d.readBlocks(b, at); err != nil {
			return fmt.Errorf("read disk %s of machine %s at point %d: %w", d.disk.ID, d.m.id, d.point, err)
		}
		return nil
	})
}

// readBlocks reads whole blocks.
func (d *diskReader) readBlocks(b []byte, off int64) error {
	sums := make([]uint64, checksum.Blocks(int64(len(b))))
	if err := d.sums.read(d.ctx, off/checksum.BlockSize, sums); err != nil {
		return err
	}
	var err error
	for range maxRereads {
		if err = d.vhd.read(d.ctx, off, b); err != nil {
			return err
		}
		if err = replica.VerifyBlocks(d.disk, off, b, sums); !errors.Is(err, replica.ErrCorrupt) {
			return err
		}
	}
	return err
}

func checkSums(d replica.Disk, first int64, dst []uint64) error {
	blocks := checksum.Blocks(d.Size)
	if first < 0 || first > blocks-int64(len(dst)) {
		return fmt.Errorf("read checksums of disk %s: blocks %d to %d of %d", d.ID, first, first+int64(len(dst)), blocks)
	}
	return nil
}

// ReadSums gives checksums as of the point.
func (d *diskReader) ReadSums(first int64, dst []uint64) error {
	err := checkSums(d.disk, first, dst)
	if err == nil {
		err = d.sums.read(d.ctx, first, dst)
	}
	if err != nil {
		return fmt.Errorf("point %d of machine %s: %w", d.point, d.m.id, err)
	}
	return nil
}

// NextData finds data by the checksums: those that are not 0.
func (d *diskReader) NextData(offset int64) (checksum.Range, bool, error) {
	blocks := checksum.Blocks(d.disk.Size)
	if offset = max(0, offset); offset >= d.disk.Size {
		return checksum.Range{}, false, nil
	}
	from, err := d.sums.next(d.ctx, offset/checksum.BlockSize, blocks, false)
	if err == nil && from < blocks {
		var to int64
		if to, err = d.sums.next(d.ctx, from, min(blocks, from+windowBlocks), true); err == nil {
			start := max(offset, from*checksum.BlockSize)
			return checksum.Range{Offset: start, Length: min(to*checksum.BlockSize, d.disk.Size) - start}, true, nil
		}
	}
	if err != nil {
		err = fmt.Errorf("find data of disk %s of machine %s at point %d: %w", d.disk.ID, d.m.id, d.point, err)
	}
	return checksum.Range{}, false, err
}
