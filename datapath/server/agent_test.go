package server_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

const (
	patience = 10 * time.Second // for what must happen
	often    = 2 * time.Millisecond
)

// agent is a fake of the program in a protected machine: it speaks the protocol
// with right checksums and collects what it is told.
type agent struct {
	t       *testing.T
	conn    *wire.Conn
	welcome *wire.Welcome
	tail    ident.Position // what it saw acknowledged last
	sums    chan *wire.Sums
	done    chan struct{} // the session has ended

	compared chan *wire.VerifySums

	mu       sync.Mutex
	verifies uint64 // the newest comparison
	acks     []wire.Ack
	orders   []wire.Order
	obeyed   uint32 // the newest order's number
	refusal  *wire.Refuse
	barriers chan wire.Barrier
}

// tryConnect says hello. One of agent and refusal is given.
func (r *running) tryConnect(peer ident.Peer, hello *wire.Hello) (*agent, *wire.Refuse) {
	r.t.Helper()
	conn, err := wire.Dial(r.t.Context(), nil, r.addr, r.ca.Client(peer, serverPeer))
	require.NoError(r.t, err)
	require.NoError(r.t, conn.Send(hello))
	first, err := conn.Receive()
	require.NoError(r.t, err)
	if refusal, ok := first.(*wire.Refuse); ok {
		require.NoError(r.t, conn.Close())
		return nil, refusal
	}
	w, ok := first.(*wire.Welcome)
	require.True(r.t, ok, "a welcome, not %T", first)
	a := &agent{t: r.t, conn: conn, welcome: w, tail: w.Position, sums: make(chan *wire.Sums, 1), compared: make(chan *wire.VerifySums, 1), barriers: make(chan wire.Barrier, 64), done: make(chan struct{})}
	go a.listen()
	r.t.Cleanup(a.close)
	return a, nil
}

// hello is refused with CodeBusy while the server looks after the machine; an
// agent comes back then.
func (r *running) hello(peer ident.Peer, hello *wire.Hello) (a *agent, refusal *wire.Refuse) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		a, refusal = r.tryConnect(peer, hello)
		return refusal == nil || refusal.Code != wire.CodeBusy
	}, patience, 20*time.Millisecond)
	return a, refusal
}

// connect begins a session that must be accepted.
func (r *running) connect() *agent {
	r.t.Helper()
	a, refusal := r.hello(agentPeer, r.greeting())
	require.Nil(r.t, refusal, "%+v", refusal)
	return a
}

func (a *agent) close() { _ = a.conn.Close(); <-a.done }

func (a *agent) listen() {
	defer close(a.done)
	defer func() { _ = a.conn.Close() }()
	for {
		m, err := a.conn.Receive()
		if err != nil {
			return
		}
		a.mu.Lock()
		switch m := m.(type) {
		case *wire.Ack:
			a.acks = append(a.acks, *m)
		case *wire.Command:
			a.orders = append(a.orders, m.Order)
			a.obeyed = max(a.obeyed, m.ID)
		case *wire.Refuse:
			a.refusal = m
		case *wire.Sums:
			a.sums <- m
		case *wire.Verify:
			a.verifies = m.ID
		case *wire.VerifySums:
			a.compared <- m
		case *wire.Barrier:
			a.barriers <- *m
		}
		ended := a.refusal != nil
		a.mu.Unlock()
		if ended {
			return
		}
	}
}

// ended reports how the session was ended, waiting for it.
func (a *agent) ended() *wire.Refuse {
	a.t.Helper()
	select {
	case <-a.done:
	case <-time.After(patience):
		require.FailNow(a.t, "the session goes on")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	require.NotNil(a.t, a.refusal, "the session ended without a reason")
	return a.refusal
}

// acked gives the position acknowledged for a set, at least at the level.
func (a *agent) acked(level wire.Level, seq ident.Seq) (ident.Position, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.acks {
		if k.Level == level && k.Position.Seq >= seq {
			return k.Position, true
		}
	}
	return ident.Position{}, false
}

func (a *agent) await(level wire.Level, seq ident.Seq) {
	a.t.Helper()
	require.Eventually(a.t, func() bool { _, ok := a.acked(level, seq); return ok }, patience, often, "ack %d of set %d", level, seq)
}

// ordered counts how often the order was given.
func (a *agent) ordered(o wire.Order) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, have := range a.orders {
		if have == o {
			n++
		}
	}
	return n
}

func (a *agent) awaitOrder(o wire.Order, times int) {
	a.t.Helper()
	require.Eventually(a.t, func() bool { return a.ordered(o) >= times }, patience, often, "order %d", o)
}

// say sends messages; it is no error when the session ends meanwhile.
func (a *agent) say(messages ...wire.Message) {
	for _, m := range messages {
		if a.conn.Send(m) != nil {
			return
		}
	}
}

func (a *agent) begin(kind changeset.Kind) *wire.Begin {
	return &wire.Begin{Seq: a.tail.Seq + 1, Prev: a.tail.Digest, Kind: kind}
}

// data makes the message of an extent.
func (a *agent) data(w write) wire.Message {
	at := w.block * checksum.BlockSize
	if w.content == nil {
		e := changeset.Extent{Disk: w.disk, Offset: at, Length: w.zeros, Zero: true}
		return &wire.Data{Chunk: changeset.Chunk{Disk: w.disk, Extents: []changeset.Extent{e}}}
	}
	e := changeset.Extent{Disk: w.disk, Offset: at, Length: int64(len(w.content))}
	e.Sums = checksum.SumAll(nil, a.welcome.Disks[w.disk].Seed, at, w.content)
	return &wire.Data{Chunk: changeset.Chunk{Disk: w.disk, Extents: []changeset.Extent{e}, Data: w.content}}
}

// set sends a change set and gives its position, or how the session was ended.
func (a *agent) set(kind changeset.Kind, cut changeset.Cut, writes ...write) *wire.Refuse {
	a.t.Helper()
	seq := a.tail.Seq + 1
	a.say(a.begin(kind))
	for _, w := range writes {
		a.say(a.data(w))
	}
	a.mu.Lock()
	obeyed := a.obeyed
	a.mu.Unlock()
	a.say(&wire.End{Seq: seq, Extents: int64(len(writes)), Cut: cut, Answers: obeyed})
	require.Eventually(a.t, func() bool {
		p, ok := a.acked(wire.Spooled, seq)
		if ok {
			a.tail = p
			return true
		}
		select {
		case <-a.done:
			return true
		default:
			return false
		}
	}, patience, often)
	if a.tail.Seq != seq {
		return a.ended()
	}
	return nil
}

// delta sends a change set that must be taken.
func (a *agent) delta(writes ...write) {
	a.t.Helper()
	refusal := a.set(changeset.Delta, crash(), writes...)
	require.Nil(a.t, refusal, "%+v", refusal)
}

// base sends all disks as a base copy in two sets and waits until it is applied.
func (a *agent) base(src *source) {
	a.t.Helper()
	refusal := a.set(changeset.Base, changeset.Cut{SourceTime: time.Now()}, src.whole(0)...)
	require.Nil(a.t, refusal, "%+v", refusal)
	cut := crash()
	cut.Complete = true
	refusal = a.set(changeset.Base, cut, src.whole(1)...)
	require.Nil(a.t, refusal, "%+v", refusal)
	a.await(wire.Applied, a.tail.Seq)
}

func crash() changeset.Cut {
	return changeset.Cut{SourceTime: time.Now(), Consistency: ident.CrashConsistent, Freeze: 3 * time.Millisecond}
}

// write is a change of a disk: content, or so many bytes of zeros.
type write struct {
	disk    int
	block   int64
	content []byte
	zeros   int64
}

// source is what is on the machine's disks.
type source struct{ disks [][]byte }

// change writes to the source and says what the agent must send.
func (s *source) change(disk int, block int64, content []byte) write {
	copy(s.disks[disk][block*checksum.BlockSize:], content)
	return write{disk: disk, block: block, content: content}
}

func (s *source) zero(disk int, block, length int64) write {
	clear(s.disks[disk][block*checksum.BlockSize:][:length])
	return write{disk: disk, block: block, zeros: length}
}

// whole gives all of a disk but its zeros.
func (s *source) whole(disk int) []write {
	var out []write
	const chunk = 16 * checksum.BlockSize
	for at := 0; at < len(s.disks[disk]); at += chunk {
		part := s.disks[disk][at:min(at+chunk, len(s.disks[disk]))]
		if !checksum.IsZero(part) {
			out = append(out, write{disk: disk, block: int64(at / checksum.BlockSize), content: bytes.Clone(part)})
		}
	}
	return out
}

// clone keeps what is on the disks now.
func (s *source) clone() *source {
	out := &source{}
	for _, d := range s.disks {
		out.disks = append(out.disks, bytes.Clone(d))
	}
	return out
}

// query asks for checksums.
func (a *agent) query(q *wire.SumsQuery) []uint64 {
	a.t.Helper()
	a.say(q)
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	select {
	case s := <-a.sums:
		return s.Sums
	case <-a.done:
		require.FailNow(a.t, "the session ended", "%+v", a.ended())
	case <-ctx.Done():
		require.FailNow(a.t, "no answer")
	}
	return nil
}

func sumsOf(seed uint64, content []byte) []uint64 { return checksum.SumAll(nil, seed, 0, content) }
