package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// drainLimit bounds how long a new generation waits for what was acknowledged
// before; what is left is compared and sent anew.
const drainLimit = 30 * time.Second

// Grant implements stream.Streams.
func (s *Server) Grant(ctx context.Context, g stream.Grant) error {
	m, err := s.lockGranted(g)
	if err != nil {
		return err
	}
	defer m.op.Unlock()
	m.mu.Lock()
	old := m.rec
	m.mu.Unlock()
	if g.Epoch < old.Grant.Epoch {
		return fmt.Errorf("grant machine %s in epoch %d: it has %d here: %w", m.id, g.Epoch, old.Grant.Epoch, replica.ErrFenced)
	}
	if changedDisks(old.Grant, g) {
		// What was spooled before a restart fits only the disks as they were.
		if err := m.open(ctx); err != nil {
			s.Logger.Warn("what is spooled could not be taken up before the disks change", "machine", m.id.String(), "error", err.Error())
		}
	}
	if g.Epoch > old.Grant.Epoch || changedDisks(old.Grant, g) {
		if err := m.retire(ctx, "a newer grant"); err != nil {
			return fmt.Errorf("grant machine %s in epoch %d: %w", m.id, g.Epoch, err)
		}
	}
	if err := m.take(ctx, g); err != nil {
		return fmt.Errorf("grant machine %s in epoch %d: %w", m.id, g.Epoch, err)
	}
	if otherCuts(old.Grant, g) && m.complete() {
		// The agent learns of it with its next welcome; a base copy is not broken off for it.
		m.endSession(&wire.Refuse{Code: wire.CodeStopped, Detail: "the policy has changed", RetryAfter: retryBusy})
	}
	return nil
}

// otherCuts reports whether the agent must be told anew when its cuts are.
func otherCuts(a, b stream.Grant) bool {
	return a.Cut != b.Cut || a.App != b.App || groupWait(a) != groupWait(b)
}

func (m *machine) complete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writer != nil && m.writer.State().Complete
}

// lockGranted gives the machine of a grant with op held.
func (s *Server) lockGranted(g stream.Grant) (*machine, error) {
	for {
		m, err := s.granted(g)
		if err != nil {
			return nil, err
		}
		m.op.Lock()
		if !errors.Is(m.gone, errRevoked) { // else it was revoked meanwhile
			return m, nil
		}
		m.op.Unlock()
	}
}

// granted finds or makes the machine of a grant.
func (s *Server) granted(g stream.Grant) (*machine, error) {
	id := g.Spec.Machine
	if err := checkGrant(g); err != nil {
		return nil, fmt.Errorf("grant machine %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m := s.machines[id]; {
	case s.stopping:
		return nil, errStopping
	case m != nil:
		return m, nil
	case len(s.machines) >= maxMachines:
		return nil, fmt.Errorf("grant machine %s: %s has %d machines, it takes no more", id, s.Name, maxMachines)
	}
	m := newMachine(s, record{Grant: g})
	s.machines[id] = m
	return m, nil
}

func checkGrant(g stream.Grant) error {
	if g.Spec.Machine.IsZero() || g.Epoch == 0 || g.Instance == "" || len(g.Spec.Disks) == 0 || g.Cut <= 0 {
		return errors.New("machine, epoch, instance, disks and cadence are needed")
	}
	if g.Group != nil {
		return g.Group.Validate()
	}
	return nil
}

func changedDisks(a, b stream.Grant) bool {
	return a.Attached != b.Attached || !slices.EqualFunc(a.Spec.Disks, b.Spec.Disks, func(x, y replica.Disk) bool {
		return x.ID == y.ID && x.Size == y.Size && x.BackingUUID == y.BackingUUID
	})
}

// retire ends the session, finishes what was acknowledged if that can be, and
// closes the replica; op is held.
func (m *machine) retire(ctx context.Context, why string) error {
	m.endSession(&wire.Refuse{Code: wire.CodeStopped, Detail: why, RetryAfter: retryBusy})
	m.mu.Lock()
	p := m.pipe
	m.mu.Unlock()
	if p != nil {
		err := p.Drain(ctx)
		if err != nil && !errors.Is(err, pipeline.ErrStopped) { // stopped: broken or fenced
			return err
		}
	}
	return m.close()
}

// take puts a grant into force; op is held.
func (m *machine) take(ctx context.Context, g stream.Grant) error {
	m.mu.Lock()
	rec := m.rec
	newer := g.Epoch > rec.Grant.Epoch
	rec.Grant = g
	rec.Held = rec.Held && !newer
	if err := m.s.saveGrant(rec); err != nil {
		m.mu.Unlock()
		return err
	}
	m.rec = rec
	m.line.Set(m.schedule(g))
	m.seen = time.Now()
	if newer {
		m.fenced, m.order = nil, 0
		m.facts.reset(g)
		m.times.Take()
	}
	w := m.writer
	m.signal()
	m.mu.Unlock()
	if w != nil && g.Spec.Documents != nil {
		if err := w.SetDocuments(ctx, g.Spec.Documents); err != nil {
			m.noteFenced(err)
			return err
		}
	}
	err := m.open(ctx)
	if errors.Is(err, replica.ErrCorrupt) {
		return nil // granted, and marked for resync
	}
	return err
}

// Revoke implements stream.Streams.
func (s *Server) Revoke(ctx context.Context, id ident.MachineID, epoch ident.Epoch) error {
	m, err := s.machine(id)
	if err != nil {
		return nil // there is no grant: that is what was asked for
	}
	m.op.Lock()
	defer m.op.Unlock()
	m.mu.Lock()
	own := m.rec.Grant.Epoch
	m.mu.Unlock()
	if own > epoch || errors.Is(m.gone, errRevoked) {
		return nil
	}
	err = m.open(ctx) // what was spooled before a restart is finished too
	if err != nil && !errors.Is(err, replica.ErrFenced) && !errors.Is(err, replica.ErrCorrupt) {
		return fmt.Errorf("revoke machine %s: %w", id, err)
	}
	if err := m.retire(ctx, "the grant was revoked"); err != nil {
		return fmt.Errorf("revoke machine %s: %w", id, err)
	}
	if err := s.removeGrant(id); err != nil {
		return err
	}
	m.gone = errRevoked
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.machines, id)
	return nil
}

// owned finds a machine whose grant is of the epoch.
func (s *Server) owned(id ident.MachineID, epoch ident.Epoch) (*machine, error) {
	m, err := s.machine(id)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Grant.Epoch != epoch {
		return nil, fmt.Errorf("machine %s: epoch %d, the grant is of %d: %w", id, epoch, m.rec.Grant.Epoch, replica.ErrFenced)
	}
	return m, nil
}

// StartBase implements stream.Streams.
func (s *Server) StartBase(ctx context.Context, id ident.MachineID, epoch ident.Epoch, cause string, rescan bool) error {
	m, err := s.owned(id, epoch)
	if err != nil {
		return err
	}
	m.op.Lock()
	defer m.op.Unlock()
	if err := m.startBase(ctx, cause, rescan); err != nil {
		m.noteFenced(err)
		return fmt.Errorf("begin a base pass of machine %s: %w", id, err)
	}
	return nil
}

func (m *machine) startBase(ctx context.Context, cause string, rescan bool) error {
	m.mu.Lock()
	grant, broken := m.rec.Grant, m.rec.Broken
	m.mu.Unlock()
	if err := m.openWriter(ctx, grant); err != nil {
		return err
	}
	if st := m.writer.State(); st.Generation > 0 && !st.Complete && broken == nil {
		return m.open(ctx) // one is under way
	}
	m.endSession(&wire.Refuse{Code: wire.CodeStopped, Detail: "a base pass begins", RetryAfter: retryBusy})
	m.finish(ctx)
	spec, err := m.s.specOf(grant)
	if err != nil {
		return err
	}
	if err := pipeline.Discard(ctx, m.pipelineConfig(ctx)); err != nil {
		return err
	}
	m.s.Logger.Info("a base pass begins", "machine", m.id.String(), "cause", cause, "rescan", rescan)
	if err := m.writer.BeginGeneration(ctx, spec.Disks, rescan, nil); err != nil {
		return err
	}
	m.mu.Lock()
	rec := m.rec
	rec.Broken = nil
	if err := m.s.saveGrant(rec); err != nil {
		m.mu.Unlock()
		return err
	}
	m.rec, m.seen = rec, time.Now()
	m.facts.begin(m.writer.State().Spec.Disks)
	m.mu.Unlock()
	return m.open(ctx)
}

// finish applies what was acknowledged, within bounds, and stops the pipeline; op
// is held.
func (m *machine) finish(ctx context.Context) {
	m.mu.Lock()
	p := m.pipe
	m.pipe = nil
	m.mu.Unlock()
	if p == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := p.Drain(limited); err != nil {
		sets, bytes := p.Backlog()
		m.s.Logger.Warn("change sets are dropped for a new generation", "machine", m.id.String(), "sets", sets, "bytes", bytes, "error", err.Error())
	}
	p.Stop()
}

// MarkBroken implements stream.Streams.
func (s *Server) MarkBroken(_ context.Context, id ident.MachineID, epoch ident.Epoch, b stream.Broken) error {
	m, err := s.owned(id, epoch)
	if err != nil {
		return err
	}
	m.markBroken(b.Code, b.Cause)
	return nil
}

// Status implements stream.Streams.
func (s *Server) Status(id ident.MachineID) (stream.Status, error) {
	m, err := s.machine(id)
	if err != nil {
		return stream.Status{}, err
	}
	return m.status(), nil
}

// Cut implements stream.Streams.
func (s *Server) Cut(ctx context.Context, id ident.MachineID, epoch ident.Epoch, final bool) (replica.Point, error) {
	m, err := s.owned(id, epoch)
	if err != nil {
		return replica.Point{}, err
	}
	p, err := m.cut(ctx, epoch, final)
	if err != nil {
		return p, fmt.Errorf("cut of machine %s: %w", id, err)
	}
	return p, nil
}

func (m *machine) cut(ctx context.Context, epoch ident.Epoch, final bool) (replica.Point, error) {
	m.mu.Lock()
	order := wire.OrderCut
	if final {
		order = wire.OrderFinalCut
	}
	held := final && m.rec.Held // an earlier try got it
	var asked uint32
	if !held {
		asked = m.ask(order)
		m.cutters++
		defer m.withdraw()
	}
	m.mu.Unlock()
	for {
		m.mu.Lock()
		changed, w, answered := m.changed, m.writer, m.answered
		err := m.lost(epoch)
		m.mu.Unlock()
		if err != nil {
			return replica.Point{}, err
		}
		if w != nil {
			if p, ok := newestPoint(w.State()); ok && p.Final == final && (held || answered.order >= asked && p.ID >= answered.seq) {
				return p, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return replica.Point{}, context.Cause(ctx)
		}
	}
}

// lost says why a cut can no more be made; mu is held.
func (m *machine) lost(epoch ident.Epoch) error {
	switch {
	case m.rec.Grant.Epoch != epoch:
		return fmt.Errorf("the grant is of epoch %d now: %w", m.rec.Grant.Epoch, replica.ErrFenced)
	case m.fenced != nil:
		return m.fenced
	case m.rec.Broken != nil:
		return fmt.Errorf("it is marked for resync (%s): %s: %w", m.rec.Broken.Code, m.rec.Broken.Cause, replica.ErrGap)
	}
	return nil
}

// ask gives the agent an order and gives its number: only a cut that is begun after
// the agent has it answers it. mu is held.
//
// A final cut that is asked for is not asked for again, nor is anything else: the
// agent would thaw what it has frozen for it.
func (m *machine) ask(order wire.Order) uint32 {
	if m.order != wire.OrderFinalCut {
		m.order = order
		m.asked++
	}
	m.notify()
	return m.asked
}

// withdraw takes back the order for a cut when nobody waits for it any more.
func (m *machine) withdraw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cutters--
	if m.cutters == 0 {
		m.order = 0
	}
}

func newestPoint(st replica.State) (replica.Point, bool) {
	if len(st.Points) == 0 {
		return replica.Point{}, false
	}
	return st.Points[len(st.Points)-1], true
}

// Release implements stream.Streams.
func (s *Server) Release(_ context.Context, id ident.MachineID, epoch ident.Epoch) error {
	m, err := s.owned(id, epoch)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	rec := m.rec
	rec.Held = false
	if err := s.saveGrant(rec); err != nil {
		return err
	}
	m.rec.Held, m.seen = false, time.Now()
	m.release, m.order = true, 0
	m.notify()
	return nil
}
