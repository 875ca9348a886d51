package session

import (
	"context"
	"fmt"
	"slices"
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
		x.beginFree()
		x.Tracker.Begin(x.welcome.Disks)
		x.learned(x.welcome)
		return x.base(x.Tracker.Pass)
	case wire.ModeCompare:
		differ, err := x.compare(causeBase)
		if err != nil {
			return err
		}
		if !differ {
			return x.completeBase()
		}
		x.show(StateCopying, "what differs")
		return x.base(x.Tracker.Resend)
	}
	if x.resume(x.welcome) {
		return nil
	}
	_, err := x.compare(x.unknown)
	return err
}

// base sends what the replica lacks while the machine runs, with one way of going over
// a disk, then makes the first recovery point.
func (x *session) base(send over) error {
	if err := x.each(x.ctx, send, true); err != nil {
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
func (x *session) compare(cause string) (differ bool, err error) {
	x.show(StateComparing, causes[cause])
	x.Logger.Info("the disks are compared with the replica", "cause", cause, "because", causes[cause])
	x.Metrics.compared(cause)
	x.forgetAll(cause)
	x.beginFree()
	x.Tracker.Begin(x.welcome.Disks)
	for i, d := range x.welcome.Disks {
		c := x.beginComparing(i, d.Size)
		err := x.Tracker.Learn(x.ctx, i, c.add, x.progress(i, d.Size))
		bytes, compared := c.end()
		if compared != nil { // it has ended Learn too
			err = compared
		}
		if err != nil {
			return false, err
		}
		differ = differ || bytes > 0
		x.Logger.Info("disk compared", "disk", d.ID.String(), "bytes", d.Size, "differ", bytes)
	}
	x.learned(x.welcome)
	x.passed = !differ && x.whole()
	return differ, nil
}

// comparison compares the windows of a disk with the replica while the disk is being
// read on.
type comparison struct {
	windows chan checksum.Window
	done    chan struct{} // closed with what follows it
	bytes   int64         // that differ
	err     error
}

func (x *session) beginComparing(disk int, size int64) *comparison {
	c := &comparison{windows: make(chan checksum.Window, 1), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		query := x.query(disk)
		for w := range c.windows {
			ranges, err := checksum.Diff(x.ctx, w, size, query)
			if err != nil {
				c.err = err
				return
			}
			for _, r := range ranges {
				c.bytes += r.Length
				x.Tracker.Forget(disk, r)
			}
		}
	}()
	return c
}

// add takes a window, whose memory is the caller's again afterwards.
func (c *comparison) add(w checksum.Window) error {
	w.Sums = slices.Clone(w.Sums)
	select {
	case c.windows <- w:
		return nil
	case <-c.done:
		return c.err
	}
}

// end waits until all windows are compared.
func (c *comparison) end() (differ int64, err error) {
	close(c.windows)
	<-c.done
	return c.bytes, c.err
}

// maxQueries bounds the questions for checksums that wait for their answers.
const maxQueries = 32

// query asks the server for checksums of a disk, many questions at once: a round trip
// for each would take longer than all else.
func (x *session) query(disk int) checksum.Query {
	return func(ctx context.Context, level int, runs []checksum.Run) ([]uint64, error) {
		var sums []uint64
		for asked, answered := 0, 0; answered < len(runs); answered++ {
			for ; asked < min(len(runs), answered+maxQueries); asked++ {
				q := &wire.SumsQuery{Disk: disk, Level: level, First: runs[asked].From, Count: int(runs[asked].Len())}
				if err := x.conn.Send(q); err != nil {
					return nil, err
				}
			}
			select {
			case m := <-x.sums:
				want := runs[answered]
				if m.Disk != disk || m.Level != level || m.First != want.From || int64(len(m.Sums)) != want.Len() {
					return nil, fmt.Errorf("compare disk %d: the server gave %d checksums of disk %d level %d from %d, asked were %d of level %d from %d",
						disk, len(m.Sums), m.Disk, m.Level, m.First, want.Len(), level, want.From)
				}
				sums = append(sums, m.Sums...)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return sums, nil
	}
}

// pass sends what may differ from the replica on all disks.
func (x *session) pass(ctx context.Context) error { return x.each(ctx, x.Tracker.Pass, false) }

// over is a way of a tracker to go over a disk.
type over func(ctx context.Context, disk int, emit tracker.Emit, p tracker.Progress) error

// each goes over all disks and sends what comes of it. After it the disks have been
// read as a whole since the replica was all zeros or has been compared.
// A disk that is another one by then, or is gone, ends the session.
func (x *session) each(ctx context.Context, send over, progress bool) error {
	for i, d := range x.welcome.Disks {
		var p tracker.Progress
		if progress {
			p = x.progress(i, d.Size)
		}
		if err := send(ctx, i, x.emit, p); err != nil {
			return err
		}
		if err := x.open[i].Check(); err != nil { // what was read may not be the machine's
			return err
		}
	}
	x.passed = x.whole()
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
