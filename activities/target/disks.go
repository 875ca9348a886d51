package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.temporal.io/sdk/activity"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

const (
	copyBuffer = 1 << 20
	beatEvery  = 2 * time.Second
)

// Progress is the heartbeat of CreateMachine.
type Progress struct {
	Disk  string `json:"disk"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// createDisks makes all disks and fills them from the recovery point.
func (a *Activities) createDisks(ctx context.Context, ref Ref, in api.CreateMachineInput, tags map[string]string) error {
	reader, err := a.store.OpenReader(ctx, in.Machine)
	if err != nil {
		return failed(err, "open the replica of %s", in.Name)
	}
	defer func() { _ = reader.Close() }()
	for i, d := range in.Disks {
		size := sizeAt(in.Point, d)
		disk, err := a.cloud.CreateDisk(ctx, ref, DiskSpec{ID: d.ID, Name: fmt.Sprintf("%s-disk-%d", in.Name, i), Size: size, Tags: tags})
		if err != nil {
			return failed(err, "create disk %s of %s", d.Label, in.Name)
		}
		if disk.Filled {
			continue
		}
		if err := a.fill(ctx, ref, disk, reader, in.Point.ID); err != nil {
			return failed(err, "fill disk %s of %s from recovery point %d", d.Label, in.Name, in.Point.ID)
		}
	}
	return nil
}

// sizeAt is the disk's size at the point: it may have grown since.
func sizeAt(p replica.Point, d api.VMDisk) int64 {
	for _, at := range p.Disks {
		if at.ID == d.ID {
			return at.Size
		}
	}
	return d.Size
}

func (a *Activities) fill(ctx context.Context, ref Ref, disk Disk, reader replica.Reader, point ident.Seq) (err error) {
	from, err := reader.OpenDisk(ctx, point, disk.ID)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := a.cloud.OpenDisk(ctx, ref, disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := copySparse(ctx, to, from, disk.Name); err != nil {
		return err
	}
	return to.Finish(ctx)
}

// copySparse copies the ranges that may hold data, in order.
func copySparse(ctx context.Context, to io.WriterAt, from replica.DiskReader, name string) error {
	buf := make([]byte, copyBuffer)
	beat := time.Time{}
	for offset := int64(0); ; {
		r, ok, err := from.NextData(offset)
		if err != nil || !ok {
			return err
		}
		end := r.Offset + r.Length
		for at := r.Offset; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			if time.Since(beat) > beatEvery {
				beat = time.Now()
				heartbeat(ctx, Progress{Disk: name, Done: at, Total: from.Size()})
			}
			part := buf[:min(int64(len(buf)), end-at)]
			if n, err := from.ReadAt(part, at); n < len(part) {
				return fmt.Errorf("read at %d: %w", at, err)
			}
			if _, err := to.WriteAt(part, at); err != nil {
				return fmt.Errorf("write at %d: %w", at, err)
			}
			at += int64(len(part))
		}
		offset = end
	}
}

// heartbeat reports progress when it runs as an activity.
func heartbeat(ctx context.Context, p Progress) {
	if activity.IsActivity(ctx) {
		activity.RecordHeartbeat(ctx, p)
	}
}
