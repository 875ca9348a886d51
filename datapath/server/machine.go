package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/datapath/waterfall"
	"drover/datapath/wire"
)

// Stable codes of a machine that is marked for resync; see docs/errors.md.
const (
	codeSessionLost = "DRV-3001"
	codeDamaged     = "DRV-3002"
	codeDiffers     = "DRV-3401"
)

// Why a machine is not opened again.
var (
	errRevoked  = errors.New("the grant was revoked")
	errStopping = errors.New("the server is stopping")
)

// machine is what the server has of one machine.
type machine struct {
	s  *Server
	id ident.MachineID

	// op is held by whoever opens, closes or begins a generation; never while
	// mu is held.
	op sync.Mutex

	mu      sync.Mutex
	rec     record
	writer  replica.Writer // nil: not open
	pipe    *pipeline.Pipeline
	fenced  error
	session *session
	late    bool       // it has not answered in its group's last round, and done nothing since
	order   wire.Order // a cut that is asked for and not answered yet; 0 none
	release bool       // the agent must be told to thaw
	asked   uint32     // counts the orders
	// answered is the newest order that a cut was begun after, and the cut's number.
	answered struct {
		order uint32
		seq   ident.Seq
	}
	comparison *comparison   // nil: none is under way
	cutters    int           // calls of Cut that wait for the order's answer
	changed    chan struct{} // closed and replaced at every change
	seen       time.Time     // the agent was heard last, or the machine was taken up
	heard      time.Time     // the agent was heard last; zero: never since the start
	trouble    string        // why it was not opened last time
	gone       error         // why it may not be opened again; of op
	facts      facts
	times      waterfall.Table   // by the disks' order in the replica
	line       *throttle.Limiter // its policy's
}

func newMachine(s *Server, r record) *machine {
	m := &machine{s: s, id: r.Grant.Spec.Machine, rec: r, changed: make(chan struct{}), seen: time.Now()}
	m.line = throttle.NewLimiter(m.schedule(r.Grant))
	m.facts.reset(r.Grant)
	return m
}

// signal wakes waiters; mu is held.
func (m *machine) signal() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// open makes the machine ready to take change sets. op is held.
func (m *machine) open(ctx context.Context) error {
	m.mu.Lock()
	ready, fenced, grant := m.writer != nil && m.pipe != nil, m.fenced, m.rec.Grant
	m.mu.Unlock()
	if fenced != nil {
		return fenced
	}
	if ready {
		return nil
	}
	if err := m.openWriter(ctx, grant); err != nil {
		m.noteFenced(err)
		return err
	}
	if err := m.startPipeline(ctx); err != nil {
		if errors.Is(err, replica.ErrCorrupt) {
			m.markBroken(codeDamaged, err.Error())
		}
		return err
	}
	return nil
}

func (m *machine) noteFenced(err error) {
	if errors.Is(err, replica.ErrFenced) {
		m.mu.Lock()
		m.fenced = err
		m.signal()
		m.mu.Unlock()
	}
}

// openWriter opens the replica. The first generation begins here, but on attached
// disks, which must be read first: there StartBase begins it.
func (m *machine) openWriter(ctx context.Context, grant stream.Grant) error {
	m.mu.Lock()
	w := m.writer
	m.mu.Unlock()
	if w != nil {
		return nil
	}
	if m.gone != nil {
		return m.gone
	}
	spec, err := m.s.specOf(grant)
	if err != nil {
		return err
	}
	if err := m.s.Cache.Fence(ctx, m.id, grant.Epoch); err != nil {
		if errors.Is(err, cachestore.ErrFenced) {
			err = errors.Join(err, replica.ErrFenced)
		}
		return fmt.Errorf("take the cache storage of machine %s: %w", m.id, err)
	}
	if w, err = m.s.Store.OpenWriter(ctx, grant.Epoch, spec); err != nil {
		return err
	}
	if m.wantsGeneration(w, spec.Disks, grant.Attached) {
		if err := w.BeginGeneration(ctx, spec.Disks, false, nil); err != nil {
			return errors.Join(err, w.Close())
		}
	}
	m.mu.Lock()
	m.writer = inTurns(w)
	m.mu.Unlock()
	return nil
}

// wantsGeneration reports whether a generation must begin by itself: the first one,
// unless the disks are attached and must be read for it, which StartBase asks for;
// and another one where the disks are not those it was begun with, or where it broke
// off while they were read.
func (m *machine) wantsGeneration(w replica.Writer, disks []replica.Disk, attached bool) bool {
	st := w.State()
	if st.Generation == 0 {
		return !attached
	}
	if !sameDisks(st.Spec.Disks, disks) {
		return true
	}
	return !st.Complete && slices.ContainsFunc(disks, func(d replica.Disk) bool {
		_, err := w.Leaves(d.ID)
		return err != nil
	})
}

// specOf says where attached disks are.
func (s *Server) specOf(g stream.Grant) (replica.Spec, error) {
	spec := g.Spec
	if !g.Attached {
		return spec, nil
	}
	if s.DiskByID == "" {
		return spec, fmt.Errorf("machine %s: %s has no attached disks: it is not a master target (diskById is not set)", spec.Machine, s.Name)
	}
	spec.Disks = slices.Clone(spec.Disks)
	for i := range spec.Disks {
		d := &spec.Disks[i]
		if d.BackingUUID == "" || strings.ContainsAny(d.BackingUUID, "/\x00") || d.BackingUUID == "." || d.BackingUUID == ".." {
			return spec, fmt.Errorf("disk %s of machine %s: backing uuid %q", d.ID, spec.Machine, d.BackingUUID)
		}
		// The link is what the disk is known by: the device has another name after a reboot.
		d.Path = filepath.Join(s.DiskByID, d.BackingUUID)
		if _, err := os.Stat(d.Path); err != nil {
			return spec, fmt.Errorf("disk %s of machine %s is not attached to %s: %w", d.ID, spec.Machine, s.Name, err)
		}
	}
	return spec, nil
}

// sameDisks reports whether the replica has exactly these disks.
func sameDisks(have, want []replica.Disk) bool {
	return slices.EqualFunc(have, want, func(a, b replica.Disk) bool {
		return a.ID == b.ID && a.Size == b.Size && a.Path == b.Path
	})
}

func (m *machine) startPipeline(ctx context.Context) error {
	p, err := pipeline.Start(ctx, m.pipelineConfig(ctx))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pipe = p
	m.signal()
	return nil
}

func (m *machine) pipelineConfig(ctx context.Context) pipeline.Config {
	return pipeline.Config{
		Machine: m.id, Spool: m.s.spool, Cache: m.s.Cache, Writer: m.writer, Logger: m.s.Logger, Times: &m.times, Slots: m.s.slots,
		Keys: keys{context.WithoutCancel(ctx), m.s},
		Retention: func() replica.Retention {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.rec.Grant.Retention
		},
		Events: pipeline.Events{
			Stored: m.onStored, Applied: m.onApplied, Fenced: m.onFenced,
			Broken: func(cause string) { m.markBroken(codeDamaged, cause) },
		},
	}
}

// keys gives the machine's data keys to readers and writers of change sets.
type keys struct {
	ctx context.Context
	s   *Server
}

// keyTimeout bounds how long the configuration server is asked for a key.
const keyTimeout = 10 * time.Second

// Key implements changeset.Keys.
func (k keys) Key(machine ident.MachineID, id string) (changeset.Key, error) {
	ctx, cancel := context.WithTimeout(k.ctx, keyTimeout)
	defer cancel()
	return k.s.Keys(ctx, machine, id)
}

func (m *machine) onStored(s changeset.Summary) {
	m.s.metrics.sets.WithLabelValues("stored").Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts.stored = s.Position()
	if s.Cut.Consistency != ident.NoConsistency { // else it is no point to go back to
		m.facts.storedTime = sourceTime(s)
	}
	m.facts.cacheBytes += s.StoredBytes
	m.notify()
	m.signal()
}

func (m *machine) onApplied(s changeset.Summary, _ replica.Point) {
	m.s.metrics.sets.WithLabelValues("applied").Inc()
	m.s.drained.Add(s.StoredBytes)
	if s.Cut.Group != nil {
		m.s.appliedGroup(m.id, *s.Cut.Group)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts.applied = s.Position()
	if s.Header.Kind == changeset.Base && s.Cut.Complete {
		m.facts.baseFinished = time.Now()
	}
	m.notify()
	m.signal()
}

func (m *machine) onFenced(err error) {
	m.s.Logger.Warn("another owner has the replica; the machine streams here no more", "machine", m.id.String(), "error", err.Error())
	m.noteFenced(errors.Join(replica.ErrFenced, err))
	m.endSession(&wire.Refuse{Code: wire.CodeEpoch, Detail: "another server has taken the machine over"})
}

// notify wakes the session's sender; mu is held.
func (m *machine) notify() {
	if m.session != nil {
		m.session.wake()
	}
}

func sourceTime(s changeset.Summary) time.Time { return s.Cut.SourceTime.Add(s.Cut.ClockOffset) }

// markBroken marks the machine for resync, once, and ends its session.
func (m *machine) markBroken(code, cause string) {
	if m.noteBroken(code, cause) {
		m.endSession(&wire.Refuse{Code: wire.CodeResyncRequired, Detail: cause, RetryAfter: retryBroken})
	}
}

// noteBroken marks the machine for resync, once; its session is to be ended then.
func (m *machine) noteBroken(code, cause string) (first bool) {
	m.mu.Lock()
	if m.rec.Broken != nil {
		m.mu.Unlock()
		return false
	}
	m.rec.Broken = &stream.Broken{Code: code, Cause: cause, Since: time.Now().UTC()}
	err := m.s.saveGrant(m.rec)
	m.signal()
	m.mu.Unlock()
	m.s.metrics.broken.Inc()
	m.s.Logger.Warn("machine is marked for resync", "machine", m.id.String(), "code", code, "cause", cause)
	if err != nil {
		m.s.Logger.Error("the mark could not be kept; a restart forgets it", "machine", m.id.String(), "error", err.Error())
	}
	return true
}

// endSession refuses the session there is, if any, and waits for its end.
func (m *machine) endSession(r *wire.Refuse) {
	m.mu.Lock()
	ses := m.session
	m.mu.Unlock()
	if ses != nil {
		ses.end(r)
	}
}

// close stops the pipeline and closes the replica; op is held.
func (m *machine) close() error {
	m.mu.Lock()
	p, w := m.pipe, m.writer
	m.pipe, m.writer = nil, nil
	m.signal()
	m.mu.Unlock()
	if p != nil {
		p.Stop()
	}
	if w == nil {
		return nil
	}
	return w.Close()
}

// ready reports whether the machine takes change sets, or never will again.
func (m *machine) ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writer != nil && m.pipe != nil || m.fenced != nil
}

// tryOpen opens the machine unless somebody is at it; it can take as long as reading
// the disks.
func (m *machine) tryOpen(ctx context.Context) {
	if !m.op.TryLock() {
		return
	}
	defer m.op.Unlock()
	err := m.open(ctx)
	if err != nil && ctx.Err() == nil && err.Error() != m.trouble {
		m.s.Logger.Warn("machine cannot be opened; it is tried again", "machine", m.id.String(), "error", err.Error())
	}
	m.trouble = fmt.Sprint(err)
}

// watch marks the machine when its agent stays away for longer than the policy
// allows, and ends the session of an agent whose certificate was revoked.
func (m *machine) watch() {
	m.mu.Lock()
	limit, w, ses := m.rec.Grant.LossLimit, m.writer, m.session
	away, allowed := time.Since(m.seen), limit
	if ses != nil {
		allowed += 2 * wire.PingInterval // a line that is up may be silent so long
	}
	lost := limit > 0 && w != nil && m.rec.Broken == nil && m.fenced == nil && !m.rec.Held && away > allowed
	m.mu.Unlock()
	if ses != nil && m.s.Denied(ses.conn.Peer()) {
		m.endSession(&wire.Refuse{Code: wire.CodeIdentity, Detail: "the certificate was revoked; enrol again with a new token"})
	}
	if lost && w.State().Complete {
		m.markBroken(codeSessionLost, fmt.Sprintf("no session with its agent for %s, the policy allows %s", away.Round(time.Second), limit))
	}
}
