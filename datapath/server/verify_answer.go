package server

import (
	"context"
	"errors"
	"time"

	"drover/datapath/checksum"
	"drover/datapath/replica"
	"drover/datapath/wire"
)

// question takes a message of the agent's half, for answers.
func (x *session) question(m wire.Message) error {
	select {
	case x.questions <- m:
		return nil
	default:
		return refuse(wire.CodeBadFrame, 0, "%T before the answers to those before", m)
	}
}

// answers answers the agent's half of comparisons until there are no more questions.
// After ctx has ended it only takes what is left of them.
func (x *session) answers(ctx context.Context) {
	a := &answering{session: x}
	defer func() { a.replica.close(context.WithoutCancel(ctx)) }()
	for {
		x.m.mu.Lock()
		changed := x.m.changed
		x.m.mu.Unlock()
		if a.id != 0 && x.m.compared(a.id) == nil { // it is over: hold nothing for it
			a.drop(ctx)
		}
		select {
		case m, more := <-x.questions:
			if !more {
				return
			}
			if err := a.answer(ctx, m); err != nil && ctx.Err() == nil {
				x.fail(err)
			}
		case <-changed:
		}
	}
}

// answering is a session's part in a comparison.
type answering struct {
	*session
	id      uint64    // of the comparison that replica is held for; 0 none
	replica replicaAt // what the agent's disks are compared with
}

func (a *answering) drop(ctx context.Context) {
	a.replica.close(context.WithoutCancel(ctx))
	a.id = 0
}

// answer answers one question. An error ends the session; one that ends the comparison
// only goes to those who wait for it.
func (a *answering) answer(ctx context.Context, message wire.Message) error {
	var id uint64
	switch m := message.(type) {
	case *wire.VerifyQuery:
		id = m.ID
	case *wire.VerifyResult:
		id = m.ID
	}
	c := a.m.compared(id)
	if c == nil || ctx.Err() != nil {
		return nil // it is over, and the agent is told so; or the next session goes on with it
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	if c.generation != a.header.Generation {
		a.m.finishComparison(c, errResync)
		return nil
	}
	if q, ok := message.(*wire.VerifyQuery); ok {
		return a.tell(ctx, c, q)
	}
	result, _ := message.(*wire.VerifyResult)
	return a.conclude(ctx, c, result)
}

// tell answers a query.
func (a *answering) tell(ctx context.Context, c *comparison, q *wire.VerifyQuery) error {
	sums, err := a.sums(ctx, c, q)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the agent asks again in the next session, or it is over
	}
	if err != nil {
		a.m.finishComparison(c, err)
		return nil
	}
	a.m.mu.Lock()
	c.moved = time.Now()
	a.m.mu.Unlock()
	return a.conn.Send(&wire.VerifySums{ID: q.ID, Sums: wire.Sums{Disk: q.Disk, Level: q.Level, First: q.First, Sums: sums}})
}

// sums gives checksums as of the point that is asked for.
func (a *answering) sums(ctx context.Context, c *comparison, q *wire.VerifyQuery) ([]uint64, error) {
	if err := a.heed(c, q); err != nil {
		return nil, err
	}
	if q.Settle {
		if err := a.cut(ctx, c); err != nil {
			return nil, err
		}
	}
	if q.Settle || q.Level > 0 || a.id != c.id {
		if _, err := a.toNewest(ctx, c); err != nil {
			return nil, err
		}
	}
	d, err := a.replica.disk(ctx, a.header.Disks[q.Disk].ID)
	if err != nil {
		return nil, err
	}
	leaves := checksum.Leaves(pointLeaves{d, ctx})
	if c.order.Deep {
		leaves = storedLeaves{pointLeaves{d, ctx}, a.header.Disks[q.Disk].Seed}
	}
	sums := make([]uint64, q.Count)
	return sums, checksum.Level(leaves, q.Level, q.First, sums)
}

// heed notes how far the agent is. A source that leaves a part of a disk out is not
// compared.
func (a *answering) heed(c *comparison, q *wire.VerifyQuery) error {
	if q.Disk >= len(a.header.Disks) {
		return notCompared("the agent asked for disk %d of %d", q.Disk, len(a.header.Disks))
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	c.read, c.total = q.Done, q.Total
	if q.Level == 0 {
		return nil
	}
	span := checksum.Span(q.Level)
	from, end := q.First*span, (q.First+int64(q.Count))*span
	if from > c.covered[q.Disk] {
		return notCompared("the agent left out blocks %d to %d of disk %d", c.covered[q.Disk], from, q.Disk)
	}
	c.covered[q.Disk] = min(max(c.covered[q.Disk], end), checksum.Blocks(a.header.Disks[q.Disk].Size))
	return nil
}

// cut waits for a recovery point that is cut from now on.
func (a *answering) cut(ctx context.Context, c *comparison) error {
	note := func(cutting bool) {
		a.m.mu.Lock()
		defer a.m.mu.Unlock()
		c.cutting = cutting
	}
	note(true)
	defer note(false)
	_, err := a.m.cut(ctx, a.header.Epoch, false)
	return err
}

// toNewest makes the comparison look at the newest recovery point.
func (a *answering) toNewest(ctx context.Context, c *comparison) (replica.Point, error) {
	if a.id != c.id {
		a.drop(ctx)
		a.id = c.id
	}
	var err error
	for range maxMoves {
		point, ok := newestPoint(a.writer.State())
		if !ok {
			return point, errors.New("there is no recovery point to compare with")
		}
		err = a.replica.moveTo(ctx, a.m.s.Store, a.m.id, c.id, point.ID)
		if !errors.Is(err, replica.ErrNotFound) {
			return point, err
		}
	}
	return replica.Point{}, err
}
