package pageblob

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// BeginGeneration starts a base copy on the same blobs. Beside what the caller asks
// for, disks are read again whose content is unknown, and all when a change set was
// written in part.
func (w *Writer) BeginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, progress func(done, total int64)) error {
	err := checkSpec(w.epoch, disks)
	if err == nil {
		err = w.changing(ctx, func() error { return w.beginGeneration(ctx, disks, rescan, progress) })
	}
	if err != nil {
		return fmt.Errorf("begin a generation of machine %s: %w", w.m.id, err)
	}
	return nil
}

func (w *Writer) beginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, progress func(done, total int64)) error {
	mf := w.mf.clone()
	if err := w.takeDisks(ctx, mf, disks); err != nil {
		return err
	}
	mf.State.Generation++
	mf.State.Complete = false
	mf.State.Empty = mf.State.Empty && mf.Pending == nil
	if rescan || mf.Pending != nil {
		mf.Unknown = nil
		for _, d := range mf.State.Spec.Disks {
			mf.Unknown = append(mf.Unknown, d.ID)
		}
	}
	mf.Pending = nil // whatever was written in part, its disks are unknown now
	if err := w.commit(ctx, mf); err != nil {
		return err
	}
	if err := w.collect(ctx); err != nil {
		return err
	}
	if err := w.fitAll(ctx); err != nil {
		return err
	}
	return w.rescan(ctx, progress)
}

// rescan reads the disks of unknown content and makes their sums anew. Points are not
// touched: their sums have snapshots of their own.
func (w *Writer) rescan(ctx context.Context, progress func(done, total int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var todo []replica.Disk
	var total, done int64
	for _, d := range w.mf.State.Spec.Disks {
		if slices.Contains(w.mf.Unknown, d.ID) {
			todo, total = append(todo, d), total+d.Size
		}
	}
	if len(todo) == 0 {
		return nil
	}
	mf := w.mf.clone()
	mf.Unknown = nil
	for _, d := range todo {
		data, err := w.rescanDisk(ctx, d.ID, func(n int64) { progress(done+n, total) })
		if err != nil {
			return fmt.Errorf("read disk %s again: %w", d.ID, err)
		}
		mf.Data[d.ID] = data
		done += d.Size
	}
	return w.commit(ctx, mf)
}

// rescanDisk gives how many bytes are in blocks that are not zeros.
func (w *Writer) rescanDisk(ctx context.Context, id ident.DiskID, progress func(int64)) (data int64, err error) {
	o := w.open[id]
	for seg := int64(0); seg*segment < o.sums.blocks; seg++ {
		sums, err := w.readSegment(ctx, o, seg)
		if err != nil {
			return 0, err
		}
		any := false
		for _, s := range sums {
			if s != 0 {
				any = true
				data += checksum.BlockSize
			}
		}
		if any {
			err = o.sums.store(ctx, w.mf.word(), seg, sums, 0, int64(len(sums)))
		} else {
			err = o.sums.zero(ctx, w.mf.word(), seg, seg+1)
		}
		if err != nil {
			return 0, err
		}
		progress(min(o.disk.Size, (seg+1)*segmentDisk))
	}
	return data, nil
}

// readSegment computes the sums of 128 MiB from what is stored. Pages that were never
// written are not read.
func (w *Writer) readSegment(ctx context.Context, o *openDisk, seg int64) ([]uint64, error) {
	sums := make([]uint64, o.sums.length(seg))
	first := seg * segmentDisk
	size := min(segmentDisk, o.disk.Size-first)
	windows := map[int64]bool{}
	err := o.vhd.written(ctx, first, size, func(from, to int64) error {
		for i := (from - first) / maxPut; i*maxPut < to-first; i++ {
			windows[i] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.m.store.parallel)
	for i := range windows {
		g.Go(func() error {
			b := make([]byte, min(maxPut, size-i*maxPut))
			if err := o.vhd.read(gctx, first+i*maxPut, b); err != nil {
				return err
			}
			checksum.SumAll(sums[i*maxPut/checksum.BlockSize:][:0], o.disk.Seed, first+i*maxPut, b)
			return nil
		})
	}
	return sums, g.Wait()
}
