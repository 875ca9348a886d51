package session

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	"drover/agent/disk"
	"drover/agent/freespace"
	"drover/agent/verify"
	"drover/datapath/checksum"
	"drover/datapath/wire"
)

// rateBurst is what a comparison may read at once, in bytes.
const rateBurst = 1 << 20

// forget is what a comparison found to differ, to be sent again.
type forget struct {
	disk   int
	ranges []checksum.Range
	done   chan struct{} // closed when the tracker knows
}

// comparing is the session's part in comparisons: one at a time, beside the stream.
type comparing struct {
	orders chan wire.Verify      // of size 1: the newest
	sums   chan *wire.VerifySums // of size 1
	forget chan forget           // to the loop
}

func newComparing() comparing {
	return comparing{orders: make(chan wire.Verify, 1), sums: make(chan *wire.VerifySums, 1), forget: make(chan forget)}
}

// ordered keeps the newest order.
func (c comparing) ordered(m wire.Verify) {
	select {
	case <-c.orders:
	default:
	}
	c.orders <- m // there is room: nobody else puts any
}

// verifies carries out orders for comparisons until the session ends. A newer order
// ends what the one before began.
func (x *session) verifies() {
	for {
		var order wire.Verify
		select {
		case order = <-x.comparing.orders:
		case <-x.ctx.Done():
			return
		}
		for order.ID != 0 {
			order = x.obeyVerify(order)
		}
	}
}

// obeyVerify carries out one order and gives the one that came instead, if any.
func (x *session) obeyVerify(order wire.Verify) (next wire.Verify) {
	ctx, cancel := context.WithCancel(x.ctx)
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { defer close(done); x.verify(ctx, order) })
	select {
	case next = <-x.comparing.orders:
	case <-done:
	}
	cancel()
	running.Wait()
	return next
}

// verify compares and tells the server what came of it.
func (x *session) verify(ctx context.Context, order wire.Verify) {
	x.Logger.Info("source and replica are compared", "id", order.ID, "rate", order.Rate)
	result, err := x.compareAll(ctx, order)
	if ctx.Err() != nil {
		return // another order, or another session, goes on with it
	}
	if err != nil {
		x.Logger.Warn("source and replica could not be compared", "id", order.ID, "error", err.Error())
		result.Failed = strings.ToValidUTF8(err.Error()[:min(len(err.Error()), wire.MaxText)], "")
	}
	result.ID = order.ID
	if err := x.conn.Send(result); err != nil {
		x.cancel(err)
	}
}

// compareAll runs the comparison, or goes on with it, with handles of its own.
func (x *session) compareAll(ctx context.Context, order wire.Verify) (*wire.VerifyResult, error) {
	result := &wire.VerifyResult{Disks: make([]wire.Compared, len(x.welcome.Disks))}
	sizes := make([]int64, len(x.welcome.Disks))
	disks := make([]verify.Disk, len(x.welcome.Disks))
	for i, d := range x.welcome.Disks {
		open, err := disk.Open(x.open[i].Path())
		if err != nil {
			return result, err
		}
		defer func() { _ = open.Close() }() // it was only read
		if open.Size() != d.Size {
			return result, fmt.Errorf("disk %s has %d bytes, the replica %d", d.ID, open.Size(), d.Size)
		}
		sizes[i], disks[i] = d.Size, verify.Disk{Size: d.Size, Seed: d.Seed, Open: open}
		if x.SkipFree {
			seen := freespace.NewDisk(open, i, &x.free.cut)
			disks[i].Open, disks[i].Free = seen, seen.Free
		}
	}
	if !x.comparison.Fits(order.ID, sizes) {
		x.comparison = verify.New(order.ID, sizes)
	}
	limit := rate.NewLimiter(rate.Inf, rateBurst)
	if order.Rate > 0 {
		limit.SetLimit(rate.Limit(order.Rate))
	}
	found, tooMuch, err := x.comparison.Run(ctx, disks, replicaOf{x, order.ID}, limit)
	if err != nil {
		return result, err
	}
	result.TooMuch = tooMuch
	for i, d := range found {
		result.Disks[i] = wire.Compared{Differed: d.Differed, Mended: d.Mended, Busy: d.Busy, Free: d.Free, First: d.First}
	}
	return result, nil
}

// replicaOf is the replica as a comparison sees it through the session.
type replicaOf struct {
	x  *session
	id uint64
}

func (r replicaOf) Sums(ctx context.Context, q verify.Query) ([]uint64, error) {
	m := &wire.VerifyQuery{ID: r.id, Settle: q.Settle, Disk: q.Disk, Level: q.Level, First: q.First, Count: q.Count, Done: q.Done, Total: q.Total}
	if err := r.x.conn.Send(m); err != nil {
		return nil, err
	}
	for {
		select {
		case a := <-r.x.comparing.sums:
			if a.ID != r.id || a.Disk != q.Disk || a.Level != q.Level || a.First != q.First {
				continue // the answer to what another order asked
			}
			return a.Sums.Sums, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Mend has the tracker forget what differs, before the next cut.
func (r replicaOf) Mend(ctx context.Context, disk int, ranges []checksum.Range) error {
	f := forget{disk, ranges, make(chan struct{})}
	select {
	case r.x.comparing.forget <- f:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mend has what differs sent with the next cut; of the loop.
func (x *session) mend(f forget) {
	var bytes int64
	for _, r := range f.ranges {
		bytes += r.Length
		x.Tracker.Forget(f.disk, r)
	}
	x.Logger.Warn("the replica differs where nothing was under way; it is sent again", "disk", x.welcome.Disks[f.disk].ID.String(),
		"bytes", bytes, "ranges", len(f.ranges), "first", f.ranges[0].Offset)
	close(f.done)
}

// answered hands an answer to the comparison; one that nobody waited for is replaced.
func (c comparing) answered(m *wire.VerifySums) {
	select {
	case <-c.sums:
	default:
	}
	c.sums <- m // there is room: nobody else puts any
}
