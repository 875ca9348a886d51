package session

import (
	"context"
	"fmt"
	"time"

	"drover/agent/tracker"
	"drover/datapath/checksum"
	"drover/datapath/wire"
)

// progressEvery is how often the server is told how far a pass is.
const progressEvery = 250 * time.Millisecond

// prepare brings tracker and replica together as the welcome wants it, up to the
// cut that completes a base copy.
func (x *session) prepare() error {
	switch x.welcome.Mode {
	case wire.ModeCopy:
		x.show(StateCopying, "")
		x.Tracker.Begin(x.welcome.Disks)
		x.learned(x.welcome)
		return x.base(true)
	case wire.ModeCompare:
		differ, err := x.compare()
		if err != nil {
			return err
		}
		if !differ {
			return x.completeBase()
		}
		x.show(StateCopying, "what differs")
		return x.base(false)
	}
	if x.resume(x.welcome) {
		return nil
	}
	_, err := x.compare()
	return err
}

// base sends what the replica lacks while the machine runs, then makes the first
// recovery point.
func (x *session) base(progress bool) error {
	if err := x.pass(x.ctx, progress); err != nil {
		return err
	}
	return x.completeBase()
}

func (x *session) completeBase() error {
	if _, err := x.cut(true); err != nil {
		return err
	}
	// From here on the server takes deltas.
	x.welcome.Mode = wire.ModeDelta
	return nil
}

// compare finds by checksums alone where the replica differs. When it does not
// differ, reading the disks for it was a pass that found nothing to send.
func (x *session) compare() (differ bool, err error) {
	x.show(StateComparing, "")
	x.forgetAll()
	x.Tracker.Begin(x.welcome.Disks)
	for i, d := range x.welcome.Disks {
		leaves, err := x.Tracker.Learn(x.ctx, i, x.progress(i, d.Size))
		if err != nil {
			return false, err
		}
		ranges, err := checksum.Diff(x.ctx, leaves, d.Size, x.query(i))
		if err != nil {
			return false, fmt.Errorf("compare disk %s: %w", d.ID, err)
		}
		var bytes int64
		for _, r := range ranges {
			bytes += r.Length
			x.Tracker.Forget(i, r)
		}
		differ = differ || bytes > 0
		x.Logger.Info("disk compared", "disk", d.ID.String(), "bytes", d.Size, "differ", bytes)
	}
	x.learned(x.welcome)
	x.passed = !differ
	return differ, nil
}

// query asks the server for checksums of a disk.
func (x *session) query(disk int) checksum.Query {
	return func(ctx context.Context, level int, first int64, n int) ([]uint64, error) {
		if err := x.conn.Send(&wire.SumsQuery{Disk: disk, Level: level, First: first, Count: n}); err != nil {
			return nil, err
		}
		select {
		case m := <-x.sums:
			if m.Disk != disk || m.Level != level || m.First != first {
				return nil, fmt.Errorf("checksums of disk %d level %d from %d, asked were disk %d level %d from %d", m.Disk, m.Level, m.First, disk, level, first)
			}
			return m.Sums, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pass sends what may differ from the replica on all disks.
func (x *session) pass(ctx context.Context, progress bool) error {
	for i, d := range x.welcome.Disks {
		var p tracker.Progress
		if progress {
			p = x.progress(i, d.Size)
		}
		if err := x.Tracker.Pass(ctx, i, x.emit, p); err != nil {
			return err
		}
	}
	x.passed = true
	x.Metrics.pass()
	return nil
}

// progress tells the server now and then; that a message is lost does not matter.
func (x *session) progress(disk int, size int64) tracker.Progress {
	var last time.Time
	return func(done int64) {
		if done < size && time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		if err := x.conn.Send(&wire.Progress{Disk: disk, Done: done, Total: size}); err != nil {
			x.cancel(err)
		}
	}
}
