package server

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/spool"
	"drover/datapath/waterfall"
	"drover/datapath/wire"
)

// spoolBuffer is how much is gathered before it is written to the spool.
const spoolBuffer = 256 << 10

// receiving is a change set between its Begin and its End. It does not exist
// before it is committed. While chunks of it are in the session's queue, the queue's
// goroutine alone writes to it.
type receiving struct {
	header  changeset.Header
	file    *spool.File
	buffer  *bufio.Writer
	w       *changeset.Writer
	extents int64
	begun   time.Time
	chunks  []int64         // by disk
	waiting []time.Duration // by disk: the sum of when its chunks came to the spool, from begun on
	held    *changeset.Held // nil once there was no room for a chunk
}

func (r *receiving) abort(log *slog.Logger) {
	r.held.Free()
	if err := r.file.Abort(); err != nil {
		log.Warn("an unfinished change set could not be removed from the spool", "error", err.Error())
	}
}

// receive handles messages until the session ends.
func (x *session) receive() error {
	for {
		message, err := x.conn.Receive()
		if err != nil {
			return err
		}
		x.alive()
		if err := x.handle(message); err != nil {
			return err
		}
	}
}

func (x *session) handle(message wire.Message) error {
	switch m := message.(type) {
	case *wire.Data:
		return x.data(m)
	case *wire.Begin:
		return x.begin(m)
	case *wire.End:
		return x.finish(m)
	case *wire.SumsQuery:
		return x.answer(m)
	case *wire.Progress:
		return x.progress(m)
	case *wire.Reached:
		x.reached(m)
		return nil
	case *wire.VerifyQuery, *wire.VerifyResult:
		return x.question(m)
	case *wire.Pong:
		return nil
	case *wire.Refuse:
		return fmt.Errorf("the agent ended it (%s): %s", m.Code, m.Detail)
	}
	return refuse(wire.CodeBadFrame, 0, "unexpected message %T", message)
}

// begin begins a change set that must follow the one before.
func (x *session) begin(b *wire.Begin) error {
	h := x.header
	h.Seq, h.Prev, h.Kind = b.Seq, b.Prev, b.Kind
	if b.Prev == (ident.Digest{}) { // the one before, in this session, is not acknowledged yet
		h.Prev = x.tail.Digest
	}
	switch {
	case x.open != nil:
		return refuse(wire.CodeBadFrame, 0, "change set %d begins inside %d", b.Seq, x.open.header.Seq)
	case !h.Follows(x.tail):
		return refuse(wire.CodeGap, 0, "change set %d after %s does not follow %s", b.Seq, b.Prev.String()[:8], x.tail)
	case x.whole != (b.Kind == changeset.Delta):
		return refuse(wire.CodeGap, 0, "change set %d: kind %d, the base copy being complete is %t", b.Seq, b.Kind, x.whole)
	}
	file, err := x.m.s.spool.Create(x.m.id, h.Epoch, h.Seq)
	if err != nil {
		return x.spoolError(err)
	}
	r := &receiving{header: h, file: file, buffer: bufio.NewWriterSize(file, spoolBuffer), begun: time.Now(),
		chunks: make([]int64, len(h.Disks)), waiting: make([]time.Duration, len(h.Disks)), held: new(changeset.Held)}
	if r.w, err = changeset.NewWriter(r.buffer, h, x.key); err != nil {
		r.abort(x.log)
		return x.spoolError(err)
	}
	x.open = r
	return nil
}

// spoolError tells the agent what it can do about an error.
func (x *session) spoolError(err error) error {
	if errors.Is(err, spool.ErrFull) {
		return refuse(wire.CodeFull, retryFull, "%s: %v; it goes on by itself when there is room", x.m.s.Name, err)
	}
	x.log.Error("the spool failed", "machine", x.m.id.String(), "error", err.Error())
	return refuse(wire.CodeInternal, retryFull, "%s cannot spool: see its log", x.m.s.Name)
}

// count adds to what was moved.
func (x *session) count(disk int, data int64) {
	now := x.conn.BytesRead() + x.conn.BytesWritten()
	wireBytes := now - x.wireBytes
	x.wireBytes = now
	x.m.s.metrics.received.Add(float64(data))
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	f := &x.m.facts
	f.dataBytes += data
	f.wireBytes += wireBytes
	if x.whole {
		return
	}
	f.baseDataBytes += data
	f.baseWireBytes += wireBytes
	if d := f.disk(x.header.Disks[disk].ID); d != nil {
		d.Bytes += data
	}
}

// finish ends the change set; another goroutine makes it durable and acknowledges
// it, so that the next one is received meanwhile.
func (x *session) finish(end *wire.End) error {
	r := x.open
	switch {
	case r == nil || end.Seq != r.header.Seq:
		return refuse(wire.CodeBadFrame, 0, "end of change set %d, which is not under way", end.Seq)
	case end.Extents != r.extents:
		return refuse(wire.CodeBadFrame, 0, "change set %d has %d extents, %d came", end.Seq, end.Extents, r.extents)
	case end.Cut.Complete && r.header.Kind != changeset.Base:
		return refuse(wire.CodeBadFrame, 0, "a delta cannot complete a base copy")
	}
	if err := x.chunks.Drain(); err != nil {
		return alreadyTold(err)
	}
	end.Cut = x.grouped(x.dated(end.Cut))
	summary, err := r.w.Finish(end.Cut)
	if err == nil {
		err = r.buffer.Flush()
	}
	if err != nil {
		return x.spoolError(err)
	}
	x.count(0, 0)
	x.open, x.tail, x.whole = nil, summary.Position(), x.whole || end.Cut.Complete
	x.durable.Add(1)
	x.commits <- &commit{r, summary, end, time.Now()}
	return nil
}

// clockSlack is by how much a cut may seem to be from the future for no other reason
// than how clocks are compared.
const clockSlack = time.Second

// dated corrects the time of a cut that would be in the future: all other points
// would be old beside it. A source's clock that jumps is known only with the next Ping.
func (x *session) dated(c changeset.Cut) changeset.Cut {
	now := time.Now()
	ahead := c.SourceTime.Add(c.ClockOffset).Sub(now)
	if ahead <= 0 {
		return c
	}
	c.ClockOffset = now.Sub(c.SourceTime)
	if ahead > clockSlack {
		x.log.Warn("the source's clock is ahead; the cut has the server's time", "machine", x.m.id.String(), "by", ahead.String())
		if c.Note == "" {
			c.Note = "the source's clock was ahead by " + ahead.Round(time.Second).String()
		}
	}
	return c
}

// commit is a change set that was ended and is not durable yet.
type commit struct {
	*receiving
	summary  changeset.Summary
	end      *wire.End
	finished time.Time
}

// makeDurable commits ended change sets, in order, until the session ends. After an
// error the session ends, and with it all sets that were not committed.
func (x *session) makeDurable() {
	var failed error
	for c := range x.commits {
		if failed == nil {
			if failed = x.commit(c); failed != nil {
				x.fail(failed)
			}
		} else {
			c.abort(x.log)
		}
		x.durable.Done()
	}
}

// commit makes a change set durable and acknowledges it.
func (x *session) commit(c *commit) error {
	entry, err := c.file.Commit()
	if err != nil {
		return x.spoolError(err)
	}
	x.spent(c.receiving, c.end.Times, c.finished)
	// Before this it holds nothing: a final cut that is lost is asked for again.
	if err := x.hold(c.end); err != nil {
		return x.spoolError(err)
	}
	x.answered(c.end)
	if c.held != nil {
		c.held.Finish(c.summary)
	}
	x.pipe.Add(entry, c.summary, c.chunks, c.held)
	x.m.s.metrics.sets.WithLabelValues("spooled").Inc()
	failpoint.Hit(failpoint.Ack)
	return x.conn.Send(&wire.Ack{Level: wire.Spooled, Position: c.summary.Position()})
}

// spent adds up where the time of the set's chunks went until it was durable.
func (x *session) spent(r *receiving, agent []waterfall.Times, finished time.Time) {
	for i, t := range agent[:min(len(agent), len(r.chunks))] {
		t.Chunks = 0 // they are counted here
		x.m.times.Add(i, t)
	}
	for i, n := range r.chunks {
		t := waterfall.Times{Chunks: n}
		t.Spent[waterfall.Spool] = time.Duration(n)*finished.Sub(r.begun) - r.waiting[i]
		t.Spent[waterfall.Fsync] = time.Duration(n) * time.Since(finished)
		x.m.times.Add(i, t)
	}
}

// answered takes the order away that a set answers.
func (x *session) answered(end *wire.End) {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.m.facts.freeze = end.Cut.Freeze
	if end.Answers > x.m.answered.order && end.Cut.Consistency > 0 {
		x.m.answered.order, x.m.answered.seq = end.Answers, end.Seq
	}
	if end.Answers != x.m.asked {
		return
	}
	if x.m.order == wire.OrderCut && end.Cut.Consistency > 0 || x.m.order == wire.OrderFinalCut && end.Cut.Final {
		x.m.order = 0
	}
}

// hold notes durably that the source stays frozen, before anybody is told.
func (x *session) hold(end *wire.End) error {
	if !end.Cut.Final {
		return nil
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	rec := x.m.rec
	rec.Held = true
	if err := x.m.s.saveGrant(rec); err != nil {
		return err
	}
	x.m.rec.Held = true
	return nil
}

// answer answers a query for checksums, as of all change sets so far.
func (x *session) answer(q *wire.SumsQuery) error {
	if x.open != nil || q.Disk >= len(x.header.Disks) {
		return refuse(wire.CodeBadFrame, 0, "query for checksums of disk %d", q.Disk)
	}
	x.durable.Wait()
	if err := x.pipe.Drain(x.ctx); err != nil {
		return refuse(wire.CodeBusy, retryBusy, "the change sets before are not applied: %v", err)
	}
	leaves, err := x.writer.Leaves(x.header.Disks[q.Disk].ID)
	if err != nil {
		x.log.Warn("no checksums", "disk", q.Disk, "error", err.Error())
		return refuse(wire.CodeBusy, retryBroken, "disk %d must be read first", q.Disk)
	}
	sums := make([]uint64, q.Count)
	if err := checksum.Level(leaves, q.Level, q.First, sums); err != nil {
		return refuse(wire.CodeBadFrame, 0, "%v", err)
	}
	return x.conn.Send(&wire.Sums{Disk: q.Disk, Level: q.Level, First: q.First, Sums: sums})
}

// progress notes how far the agent is with a disk.
func (x *session) progress(p *wire.Progress) error {
	if p.Disk >= len(x.header.Disks) {
		return refuse(wire.CodeBadFrame, 0, "progress of disk %d", p.Disk)
	}
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	if d := x.m.facts.disk(x.header.Disks[p.Disk].ID); d != nil {
		d.Done = p.Done
	}
	return nil
}
