package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

const copyBuffer = 1 << 20

// createDisks makes all disks with what they have at the recovery point.
func (a *Activities) createDisks(ctx context.Context, ref Ref, in api.CreateMachineInput, tags map[string]string) error {
	for i, d := range in.Disks {
		spec := diskSpec(in, i, tags)
		spec.Size = sizeAt(in.Point, d)
		if importer, ok := a.cloud.(Importer); ok && importer.Imports() {
			if _, err := importer.ImportDisk(ctx, ref, spec, in.Machine, in.Point); err != nil {
				return Failed(err, "make disk %s of %s from recovery point %d", d.Label, in.Name, in.Point.ID)
			}
			continue
		}
		if err := a.copyDisk(ctx, ref, in, spec, d.Label); err != nil {
			return err
		}
	}
	return nil
}

// copyDisk makes an empty disk and fills it from the store.
func (a *Activities) copyDisk(ctx context.Context, ref Ref, in api.CreateMachineInput, spec DiskSpec, label string) error {
	disk, err := a.cloud.CreateDisk(ctx, ref, spec)
	if err != nil {
		return Failed(err, "create disk %s of %s", label, in.Name)
	}
	if disk.Filled {
		return nil
	}
	reader, err := a.store.OpenReader(ctx, in.Machine)
	if err != nil {
		return Failed(err, "open the replica of %s", in.Name)
	}
	defer func() { _ = reader.Close() }()
	if err := a.fill(ctx, ref, disk, reader, in.Point.ID); err != nil {
		return Failed(err, "fill disk %s of %s from recovery point %d", label, in.Name, in.Point.ID)
	}
	return nil
}

func diskSpec(in api.CreateMachineInput, number int, tags map[string]string) DiskSpec {
	d := in.Disks[number]
	return DiskSpec{
		ID: d.ID, Name: fmt.Sprintf("%s-disk-%d", in.Name, number), Size: d.Size, Tags: tags,
		Number: number, Firmware: in.Firmware, Windows: windows(in.GuestID), Kind: in.Target.DiskType, Zone: in.Target.Zone,
	}
}

// windows: vCenter's ids of Windows guests begin so.
func windows(guest string) bool { return strings.HasPrefix(strings.ToLower(guest), "win") }

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
	journal := JournalOf(ctx)
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
			journal.Fill(name, at, from.Size())
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
