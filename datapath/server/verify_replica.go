package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// replicaAt is a machine's replica as of one recovery point, which is held.
type replicaAt struct {
	reader replica.Reader
	owner  string // of the hold
	point  ident.Seq
	disks  map[ident.DiskID]replica.DiskReader
	held   time.Time
}

// moveTo goes to another point, and lets the one before go.
func (r *replicaAt) moveTo(ctx context.Context, store replica.Store, machine ident.MachineID, id uint64, point ident.Seq) error {
	if r.reader != nil && r.point == point && time.Since(r.held) < verifyHold/2 {
		return nil
	}
	if r.reader == nil {
		reader, err := store.OpenReader(ctx, machine)
		if err != nil {
			return err
		}
		r.reader, r.owner = reader, fmt.Sprintf("verify-%x", id)
	}
	if err := r.reader.Hold(ctx, point, replica.Hold{Owner: r.owner, Expires: time.Now().Add(verifyHold)}); err != nil {
		return err
	}
	if r.point != point {
		r.leave(ctx)
	}
	r.point, r.held = point, time.Now()
	return nil
}

// leave lets the point go. A hold that stays ends by itself.
func (r *replicaAt) leave(ctx context.Context) {
	for _, d := range r.disks {
		_ = d.Close() // it was only read
	}
	r.disks = nil
	if r.point != 0 {
		_ = r.reader.Release(ctx, r.point, r.owner)
	}
}

func (r *replicaAt) close(ctx context.Context) {
	if r.reader == nil {
		return
	}
	r.leave(ctx)
	_ = r.reader.Close()
	*r = replicaAt{}
}

// disk opens a disk as of the point.
func (r *replicaAt) disk(ctx context.Context, id ident.DiskID) (replica.DiskReader, error) {
	if d := r.disks[id]; d != nil {
		return d, nil
	}
	d, err := r.reader.OpenDisk(ctx, r.point, id)
	if err != nil {
		return nil, err
	}
	if r.disks == nil {
		r.disks = map[ident.DiskID]replica.DiskReader{}
	}
	r.disks[id] = d
	return d, nil
}

// pointLeaves are a disk's checksums as the store's map has them.
// Reading ends with the context.
type pointLeaves struct {
	replica.DiskReader
	ctx context.Context
}

func (p pointLeaves) Len() int64 { return checksum.Blocks(p.Size()) }

func (p pointLeaves) ReadSums(first int64, dst []uint64) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	return p.DiskReader.ReadSums(first, dst)
}

// storedLeaves are a disk's checksums computed from the stored bytes. Bytes that do not
// match the map get a sum that no source has there.
type storedLeaves struct {
	pointLeaves
	seed uint64
}

func (s storedLeaves) ReadSums(first int64, dst []uint64) error {
	buf := make([]byte, min(int64(len(dst))*checksum.BlockSize, deepBytes))
	for len(dst) > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		off := first * checksum.BlockSize
		b := buf[:min(int64(len(buf)), int64(len(dst))*checksum.BlockSize, s.Size()-off)]
		n := int(checksum.Blocks(int64(len(b))))
		_, err := s.ReadAt(b, off)
		switch {
		case errors.Is(err, replica.ErrCorrupt) && n > 1:
			err = s.eachBlock(first, dst[:n])
		case errors.Is(err, replica.ErrCorrupt):
			err = s.notThis(first, dst[:n])
		case err == nil:
			checksum.SumAll(dst[:0], s.seed, off, b)
		}
		if err != nil {
			return err
		}
		first, dst = first+int64(n), dst[n:]
	}
	return nil
}

// eachBlock reads the blocks one by one: some of them are damaged.
func (s storedLeaves) eachBlock(first int64, dst []uint64) error {
	for i := range dst {
		if err := s.ReadSums(first+int64(i), dst[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// notThis gives sums that the map does not have.
func (s storedLeaves) notThis(first int64, dst []uint64) error {
	if err := s.pointLeaves.ReadSums(first, dst); err != nil {
		return err
	}
	for i := range dst {
		dst[i] = ^dst[i]
	}
	return nil
}
