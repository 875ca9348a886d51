package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/google/uuid"

	"drover/activities/target"
	"drover/datapath/ident"
)

// CreateDisk makes the disk's file and enters it in the machine's record.
func (c *Cloud) CreateDisk(_ context.Context, ref target.Ref, spec target.DiskSpec) (target.Disk, error) {
	var out target.Disk
	err := c.locked(func() error {
		m, err := c.load(ref)
		switch {
		case errors.Is(err, target.ErrNotFound):
			m = Machine{Ref: ref}
			m.Tags = maps.Clone(spec.Tags)
		case err != nil:
			return err
		}
		if i := slices.IndexFunc(m.Disks, func(d target.Disk) bool { return d.ID == spec.ID }); i >= 0 {
			out = m.Disks[i]
			if out.Size != spec.Size {
				return fmt.Errorf("disk %s exists with %d bytes, want %d: delete the machine and try again: %w", spec.Name, out.Size, spec.Size, target.ErrRefused)
			}
			return nil
		}
		out = target.Disk{
			ID: spec.ID, Name: spec.Name, Size: spec.Size, Location: c.diskFile(ref, spec.ID),
			BackingUUID: uuid.NewSHA1(namespace, []byte("disk\x00"+id(ref)+"\x00"+spec.ID.String())).String(),
		}
		m.Disks = append(m.Disks, out)
		return c.save(m)
	})
	return out, err
}

// OpenDisk opens the disk's file, emptied.
func (c *Cloud) OpenDisk(_ context.Context, ref target.Ref, disk target.Disk) (target.DiskWriter, error) {
	f, err := os.OpenFile(c.diskFile(ref, disk.ID), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", disk.Name, err)
	}
	if err := f.Truncate(disk.Size); err != nil {
		return nil, errors.Join(fmt.Errorf("open disk %s: %w", disk.Name, err), f.Close())
	}
	return &diskWriter{File: f, cloud: c, ref: ref, disk: disk.ID}, nil
}

type diskWriter struct {
	*os.File
	cloud *Cloud
	ref   target.Ref
	disk  ident.DiskID
}

// Finish makes the content durable, then says so in the record.
func (w *diskWriter) Finish(context.Context) error {
	if err := w.Sync(); err != nil {
		return err
	}
	return w.cloud.locked(func() error {
		m, err := w.cloud.load(w.ref)
		if err != nil {
			return err
		}
		for i := range m.Disks {
			if m.Disks[i].ID == w.disk {
				m.Disks[i].Filled = true
			}
		}
		return w.cloud.save(m)
	})
}
