package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/ordered"
	"drover/datapath/pipeline"
	"drover/datapath/release"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// hardClose is how long an ended session may take to go before it is cut off.
const hardClose = 5 * time.Second

// session is one agent's session.
type session struct {
	m      *machine
	conn   *wire.Conn
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	key    changeset.Key
	pipe   *pipeline.Pipeline
	writer replica.Writer
	header changeset.Header // what all its change sets have in common
	agent  string           // version
	woken  chan struct{}    // of size 1
	done   chan struct{}

	once    sync.Once
	refusal *wire.Refuse  // set before ended is closed
	ended   chan struct{} // somebody asked for the end

	tail      ident.Position // of the last set that was ended
	whole     bool           // the base is complete with it
	open      *receiving     // the change set that is being received
	commits   chan *commit   // of size 1: ended, being made durable
	durable   sync.WaitGroup // counts them
	chunks    *ordered.Queue[*chunk]
	questions chan wire.Message // of size maxQuestions: of the agent's half of a comparison
	encode    codec.Codec       // what the server encodes with
	wireBytes int64             // counted so far

	// Of the machine's mu: its part in its group's round.
	round    *round       // nil: none
	barrier  wire.Barrier // the newest step, to be told
	together *moment      // its next cut may be of; nil: of none
}

// refused is an error that is told to the agent.
type refused struct{ wire.Refuse }

func (r *refused) Error() string { return fmt.Sprintf("refused (%s): %s", r.Code, r.Detail) }

func refuse(code wire.Code, retry time.Duration, format string, args ...any) error {
	detail := fmt.Sprintf(format, args...)
	if len(detail) > wire.MaxText {
		detail = strings.ToValidUTF8(detail[:wire.MaxText], "")
	}
	return &refused{wire.Refuse{Code: code, Detail: detail, RetryAfter: retry}}
}

// session runs one session to its end; known is called when its hello is accepted.
func (s *Server) session(conn *wire.Conn, known func()) {
	defer func() { _ = conn.Close() }()
	log := s.Logger.With("peer", conn.Peer().String(), "remote", conn.RemoteAddr().String())
	x, err := s.handshake(conn, known, log)
	if err == nil {
		s.metrics.sessions.Inc()
		log.Info("session begins", "machine", x.m.id.String(), "epoch", x.header.Epoch, "agent", x.agent)
		err = x.run()
		s.metrics.sessions.Dec()
	}
	var r *refused
	var p *wire.ProtocolError
	switch {
	case errors.As(err, &p):
		r = &refused{wire.Refuse{Code: p.Code, Detail: p.Detail}}
	case !errors.As(err, &r):
		log.Info("session ended", "error", fmt.Sprint(err))
		return
	}
	s.metrics.refused.WithLabelValues(r.Code.String()).Inc()
	log.Warn("session refused", "code", r.Code.String(), "detail", r.Detail)
	if err := conn.Refuse(&r.Refuse); err != nil {
		return
	}
	for err == nil || !errors.Is(err, wire.ErrRefused) { // a bounded time, for the agent to read it
		if _, err = conn.Receive(); err != nil {
			return
		}
	}
}

// handshake takes the Hello and admits the session or refuses it.
func (s *Server) handshake(conn *wire.Conn, known func(), log *slog.Logger) (*session, error) {
	waiting := context.AfterFunc(s.halt, func() { _ = conn.Close() })
	first, err := conn.Receive()
	waiting()
	if err != nil {
		return nil, err
	}
	hello, ok := first.(*wire.Hello)
	if !ok {
		return nil, refuse(wire.CodeBadFrame, 0, "a session begins with a hello")
	}
	m, err := s.identify(conn.Peer(), hello)
	if err != nil {
		return nil, err
	}
	known() // the rest can take as long as reading disks
	x, welcome, err := m.admit(conn, hello, log)
	if err != nil {
		return nil, err
	}
	if err := conn.Send(welcome); err != nil {
		x.leave()
		return nil, err
	}
	x.pace()
	return x, nil
}

// identify checks who the agent is and whose disks it brings.
func (s *Server) identify(peer ident.Peer, hello *wire.Hello) (*machine, error) {
	id, err := peer.Machine()
	if err != nil || id != hello.Machine {
		return nil, refuse(wire.CodeIdentity, 0, "the certificate is %s, it cannot stream for machine %s; enrol with a token of that machine", peer, hello.Machine)
	}
	if s.Denied(peer) {
		return nil, refuse(wire.CodeIdentity, 0, "the certificate of %s was revoked; enrol again with a new token", peer)
	}
	if err := release.Takes(s.Version, hello.AgentVersion); err != nil {
		return nil, refuse(wire.CodeVersion, retryVersion, "%s: %v", release.Code, err)
	}
	m, err := s.machine(id)
	if err != nil {
		return nil, refuse(wire.CodeUnknownMachine, retryBusy, "machine %s is not granted on %s", id, s.Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.rec.Grant
	switch {
	case hello.Epoch != g.Epoch:
		return nil, refuse(wire.CodeEpoch, retryBusy, "epoch %d of machine %s: the grant is of epoch %d", hello.Epoch, id, g.Epoch)
	case !strings.EqualFold(hello.Instance, g.Instance):
		return nil, refuse(wire.CodeIdentity, 0, "machine %s runs on hardware %s, the grant is for %s", id, hello.Instance, g.Instance)
	case m.fenced != nil:
		return nil, refuse(wire.CodeEpoch, retryBroken, "another server has taken machine %s over", id)
	case m.rec.Broken != nil:
		return nil, refuse(wire.CodeResyncRequired, retryBroken, "machine %s is marked for resync (%s): %s", id, m.rec.Broken.Code, m.rec.Broken.Cause)
	}
	return m, sameAsGranted(hello.Disks, g.Spec.Disks)
}

// sameAsGranted checks the agent's disks against the granted ones, in any order.
func sameAsGranted(have []changeset.Disk, granted []replica.Disk) error {
	for n, d := range have {
		i := slices.IndexFunc(granted, func(g replica.Disk) bool { return g.ID == d.ID })
		switch {
		case slices.ContainsFunc(have[:n], func(h changeset.Disk) bool { return h.ID == d.ID }):
			return refuse(wire.CodeDisks, 0, "disk %s is named twice", d.ID)
		case i < 0:
			return refuse(wire.CodeDisks, 0, "disk %s is not one of the machine's protected disks", d.ID)
		case granted[i].Size != d.Size:
			return refuse(wire.CodeDisks, retryBroken, "disk %s has %d bytes, %d are protected; a resync with the new size is needed", d.ID, d.Size, granted[i].Size)
		}
	}
	if len(have) != len(granted) {
		return refuse(wire.CodeDisks, 0, "%d disks, %d are protected", len(have), len(granted))
	}
	return nil
}

// admit makes the session the machine's only one.
func (m *machine) admit(conn *wire.Conn, hello *wire.Hello, log *slog.Logger) (*session, *wire.Welcome, error) {
	ctx, cancel := context.WithCancel(context.Background())
	x := &session{m: m, conn: conn, log: log, ctx: ctx, cancel: cancel, agent: hello.AgentVersion,
		woken: make(chan struct{}, 1), done: make(chan struct{}), ended: make(chan struct{})}
	welcome, err := x.enter(hello)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return x, welcome, nil
}

func (x *session) enter(hello *wire.Hello) (*wire.Welcome, error) {
	m := x.m
	if !m.op.TryLock() {
		return nil, refuse(wire.CodeBusy, retryBusy, "machine %s is being prepared", m.id)
	}
	defer m.op.Unlock()
	if err := m.open(x.ctx); err != nil {
		if errors.Is(err, replica.ErrFenced) {
			return nil, refuse(wire.CodeEpoch, retryBroken, "another server has taken machine %s over", m.id)
		}
		x.log.Warn("machine cannot be opened", "machine", m.id.String(), "error", err.Error())
		return nil, refuse(wire.CodeBusy, retryBusy, "machine %s is not ready here yet", m.id)
	}
	m.endSession(&wire.Refuse{Code: wire.CodeStopped, Detail: "a newer session of this agent began", RetryAfter: retryBusy})
	m.mu.Lock()
	g := m.rec.Grant
	m.mu.Unlock()
	var err error
	if x.key, err = (keys{x.ctx, m.s}).Key(m.id, g.Spec.KeyID); err != nil {
		x.log.Warn("no data key", "machine", m.id.String(), "error", err.Error())
		return nil, refuse(wire.CodeBusy, retryBusy, "the data key of machine %s cannot be had now", m.id)
	}
	return x.register(g, hello)
}

// register makes the session the machine's; op is held.
func (x *session) register(g stream.Grant, hello *wire.Hello) (*wire.Welcome, error) {
	m := x.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.s.halt.Err() != nil { // nobody would end this session
		return nil, refuse(wire.CodeStopped, retryBusy, "the server is stopping")
	}
	if m.writer == nil || m.pipe == nil || m.session != nil || g.Epoch != hello.Epoch {
		return nil, refuse(wire.CodeBusy, retryBusy, "machine %s is being prepared", m.id)
	}
	st := m.writer.State()
	if st.Generation == 0 {
		return nil, refuse(wire.CodeBusy, retryBusy, "the disks of machine %s are not compared yet", m.id)
	}
	x.pipe, x.writer, x.encode = m.pipe, m.writer, g.Compression.Server()
	x.header = changeset.Header{Machine: m.id, Generation: st.Generation, Epoch: g.Epoch, KeyID: x.key.ID}
	for _, d := range st.Spec.Disks {
		x.header.Disks = append(x.header.Disks, d.Disk)
	}
	tail, whole := x.pipe.Tail()
	x.tail, x.whole = tail, whole
	w := &wire.Welcome{
		Nonce: newNonce(), Generation: st.Generation, Mode: modeOf(st, tail, whole), Position: tail, KeyID: x.key.ID,
		Disks: x.header.Disks, ServerTime: time.Now(), CutInterval: g.Cut, AppInterval: g.App, GroupWait: groupWait(g), BaseSetBytes: baseSetBytes,
	}
	w.Codec, w.Adapt = g.Compression.Agent()
	if w.Mode != wire.ModeDelta && m.facts.baseStarted.IsZero() {
		m.facts.begin(st.Spec.Disks)
	}
	m.session, m.seen, m.heard = x, time.Now(), time.Now()
	m.signal()
	return w, nil
}

// modeOf says what the replica needs. A copy without comparing is right only
// while nothing at all was written or is on its way.
func modeOf(st replica.State, tail ident.Position, whole bool) wire.Mode {
	switch {
	case whole:
		return wire.ModeDelta
	case st.Empty && tail == st.Position:
		return wire.ModeCopy
	}
	return wire.ModeCompare
}

func newNonce() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// run receives until the session ends.
func (x *session) run() error {
	var others sync.WaitGroup
	x.chunks, x.commits, x.questions = x.newChunks(), make(chan *commit, 1), make(chan wire.Message, maxQuestions)
	asking, stopAsking := context.WithCancel(x.ctx)
	others.Go(x.send)
	others.Go(x.makeDurable)
	others.Go(func() { x.answers(asking) })
	x.wake() // acknowledgements and orders from before
	err := x.receive()
	_ = x.chunks.Close() // receive has given its error
	close(x.commits)
	stopAsking()
	close(x.questions)
	if x.open != nil {
		x.open.abort(x.log)
	}
	x.once.Do(func() { close(x.ended) })
	sent := make(chan struct{})
	go func() { defer close(sent); others.Wait() }()
	select {
	case <-sent:
	case <-time.After(hardClose): // the agent takes nothing any more
		_ = x.conn.Close()
		<-sent
	}
	x.count(0, 0)
	x.leave()
	return err
}

// fail refuses the session from another goroutine than the receiving one.
func (x *session) fail(err error) {
	var r *refused
	if errors.As(err, &r) {
		x.once.Do(func() { x.refusal = &r.Refuse; close(x.ended) })
		return
	}
	_ = x.conn.Close() // the receiver notices
}

// leave makes room for the next session.
func (x *session) leave() {
	x.cancel()
	x.m.mu.Lock()
	if x.m.session == x {
		x.m.session = nil
		x.m.seen = time.Now()
	}
	x.m.signal()
	round := x.round
	x.m.mu.Unlock()
	if round != nil {
		round.reached(x.m.id, 0, "its session ended in the middle")
	}
	close(x.done)
}

// end asks for the session's end with a reason and waits for it.
func (x *session) end(r *wire.Refuse) {
	x.once.Do(func() { x.refusal = r; close(x.ended) })
	x.cancel()
	select {
	case <-x.done:
		return
	case <-time.After(hardClose):
	}
	_ = x.conn.Close()
	<-x.done
}

func (x *session) wake() {
	select {
	case x.woken <- struct{}{}:
	default:
	}
}

// told is what the sender has told the agent.
type told struct {
	stored, applied ident.Seq
	asked           uint32 // the newest order
	verify          uint64 // the comparison
	barrier         wire.Barrier
	greeted         bool
}

// send tells the agent of progress and of orders, and keeps the line alive.
func (x *session) send() {
	ticker := time.NewTicker(x.conn.PingInterval())
	defer ticker.Stop()
	var t told
	for {
		var err error
		select {
		case <-x.ended:
			if x.refusal != nil {
				x.m.s.metrics.refused.WithLabelValues(x.refusal.Code.String()).Inc()
				_ = x.conn.Refuse(x.refusal) // the receiver ends by it, or by the line's end
			}
			return
		case <-x.woken:
			err = x.tell(&t)
		case <-ticker.C:
			err = x.conn.Send(&wire.Ping{Time: time.Now()})
		}
		if err != nil {
			_ = x.conn.Close() // the receiver notices
			return
		}
	}
}

func (x *session) tell(t *told) error {
	x.m.mu.Lock()
	stored, applied, order, asked := x.m.facts.stored, x.m.facts.applied, x.m.order, x.m.asked
	// A source thaws that a broken-off final cut froze; a release never waits for a cut.
	release := x.m.release || order == 0 && !x.m.rec.Held && !t.greeted
	x.m.release = false
	verify, barrier := x.m.verifyOrder(), x.barrier
	x.m.mu.Unlock()
	if barrier != t.barrier { // first: the others of its group may be waiting, frozen
		t.barrier = barrier
		if err := x.conn.Send(&barrier); err != nil {
			return err
		}
	}
	t.greeted = true
	if applied.IsZero() {
		applied = x.writer.State().Position
	}
	if stored.Seq < applied.Seq {
		stored = applied
	}
	if stored.Seq > t.stored {
		t.stored = stored.Seq
		if err := x.conn.Send(&wire.Ack{Level: wire.Stored, Position: stored}); err != nil {
			return err
		}
	}
	if applied.Seq > t.applied {
		t.applied = applied.Seq
		if err := x.conn.Send(&wire.Ack{Level: wire.Applied, Position: applied}); err != nil {
			return err
		}
	}
	if release {
		if err := x.conn.Send(&wire.Command{Order: wire.OrderRelease}); err != nil {
			return err
		}
	}
	if verify.ID != t.verify {
		t.verify = verify.ID
		if err := x.conn.Send(&verify); err != nil {
			return err
		}
	}
	if order == 0 || asked == t.asked {
		return nil
	}
	t.asked = asked
	return x.conn.Send(&wire.Command{Order: order, ID: asked})
}
