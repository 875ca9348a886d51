package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/attest"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

const (
	// maxMoves is how often a point may be thinned away before it is held.
	maxMoves = 5
	// verifyHold is how long the point that is compared with is kept when nobody asks
	// about it any more.
	verifyHold = time.Hour
	// deepBytes are read back at a time.
	deepBytes = 1 << 20
	// codeDifferent marks a machine for resync whose replica cannot be mended; see
	// docs/errors.md.
	codeDifferent = "DRV-3401"
)

// errOtherDepth: one comparison at a time.
var errOtherDepth = errors.New("another comparison of it is running, which is not of the same depth; wait for its end")

// comparison is the server's half of comparing a machine's source with its replica.
// The agent asks, and finds what differs; the server answers as of recovery points,
// which it holds, and signs what came of it.
type comparison struct {
	id      uint64
	order   stream.VerifyOrder
	started time.Time
	done    chan struct{} // closed with what follows it
	signed  stream.SignedRecord
	err     error
	broken  string // why the machine is to be marked for resync

	waiters     int   // calls of Verify; of machine.mu, as what follows
	read, total int64 // bytes of the source
}

// Verify implements stream.Streams. Calls for the same machine share one comparison.
func (s *Server) Verify(ctx context.Context, id ident.MachineID, epoch ident.Epoch, order stream.VerifyOrder) (stream.SignedRecord, error) {
	m, err := s.owned(id, epoch)
	if err != nil {
		return stream.SignedRecord{}, err
	}
	r, err := m.verify(ctx, epoch, order)
	if err != nil {
		return r, fmt.Errorf("compare machine %s with its replica: %w", id, err)
	}
	return r, nil
}

func (m *machine) verify(ctx context.Context, epoch ident.Epoch, order stream.VerifyOrder) (stream.SignedRecord, error) {
	c, err := m.joinComparison(order)
	if err != nil {
		return stream.SignedRecord{}, err
	}
	defer m.leaveComparison(c)
	for {
		m.mu.Lock()
		changed, err := m.changed, m.lost(epoch)
		m.mu.Unlock()
		if err != nil {
			return stream.SignedRecord{}, err
		}
		select {
		case <-c.done:
			if c.broken != "" {
				m.markBroken(codeDifferent, c.broken)
			}
			return c.signed, c.err
		case <-changed:
		case <-m.s.halt.Done():
			return stream.SignedRecord{}, errStopping
		case <-ctx.Done():
			return stream.SignedRecord{}, context.Cause(ctx)
		}
	}
}

// joinComparison gives the comparison that runs, or begins one.
func (m *machine) joinComparison(order stream.VerifyOrder) (*comparison, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writer == nil || !m.writer.State().Complete {
		return nil, errors.New("its replica is not complete; wait until the machine is protected")
	}
	if m.comparison != nil && m.comparison.order.Deep != order.Deep {
		return nil, errOtherDepth
	}
	if m.comparison == nil {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		m.comparison = &comparison{id: binary.LittleEndian.Uint64(b[:]) | 1, order: order, started: time.Now(), done: make(chan struct{})}
		m.notify()
	}
	m.comparison.waiters++
	return m.comparison, nil
}

// leaveComparison ends a comparison that nobody waits for any more.
func (m *machine) leaveComparison(c *comparison) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.waiters--; c.waiters == 0 && m.comparison == c {
		m.comparison = nil
		m.notify()
		m.signal()
	}
}

// finishComparison tells all who wait what came of it, with what is left of c filled in.
func (m *machine) finishComparison(c *comparison, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.comparison != c {
		return
	}
	c.err = err
	m.comparison = nil
	close(c.done)
	m.notify()
	m.signal()
}

// compared gives the comparison that the agent speaks of, or nil when it is over.
func (m *machine) compared(id uint64) *comparison {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.comparison == nil || m.comparison.id != id {
		return nil
	}
	return m.comparison
}

// verifyOrder gives what the agent is to be told of comparisons; mu is held.
func (m *machine) verifyOrder() wire.Verify {
	if m.comparison == nil {
		return wire.Verify{}
	}
	return wire.Verify{ID: m.comparison.id, Rate: m.comparison.order.Rate}
}

// question takes a message of the agent's half; it asks one thing at a time.
func (x *session) question(m wire.Message) error {
	select {
	case x.questions <- m:
		return nil
	default:
		return refuse(wire.CodeBadFrame, 0, "%T before the answer to the one before", m)
	}
}

// answers answers the agent's half of comparisons until there are no more questions.
func (x *session) answers(ctx context.Context) {
	a := &answering{session: x}
	defer a.replica.close(context.WithoutCancel(ctx))
	for {
		x.m.mu.Lock()
		changed := x.m.changed
		x.m.mu.Unlock()
		if a.id != 0 && x.m.compared(a.id) == nil { // it is over: hold nothing for it
			a.replica.close(ctx)
			a.id = 0
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

func (a *answering) answer(ctx context.Context, message wire.Message) error {
	switch m := message.(type) {
	case *wire.VerifyQuery:
		c := a.m.compared(m.ID)
		if c == nil {
			return nil // it is over; the agent is told
		}
		sums, err := a.sums(ctx, c, m)
		if err == nil {
			return a.conn.Send(&wire.VerifySums{ID: m.ID, Sums: wire.Sums{Disk: m.Disk, Level: m.Level, First: m.First, Sums: sums}})
		}
		if ctx.Err() == nil { // else the agent asks in the next session
			a.m.finishComparison(c, err)
		}
	case *wire.VerifyResult:
		c := a.m.compared(m.ID)
		if c == nil {
			return nil
		}
		err := a.conclude(ctx, c, m)
		if ctx.Err() == nil {
			a.m.finishComparison(c, err)
		}
	}
	return nil
}

// sums answers a query as of the point that it asks for.
func (a *answering) sums(ctx context.Context, c *comparison, q *wire.VerifyQuery) ([]uint64, error) {
	if q.Disk >= len(a.header.Disks) {
		return nil, fmt.Errorf("the agent asked for disk %d of %d", q.Disk, len(a.header.Disks))
	}
	a.m.mu.Lock()
	c.read, c.total = q.Done, q.Total
	a.m.mu.Unlock()
	if q.Settle {
		if _, err := a.m.cut(ctx, a.header.Epoch, false); err != nil {
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
	leaves := checksum.Leaves(pointLeaves{d})
	if c.order.Deep {
		leaves = storedLeaves{pointLeaves{d}, a.header.Disks[q.Disk].Seed}
	}
	sums := make([]uint64, q.Count)
	return sums, checksum.Level(leaves, q.Level, q.First, sums)
}

// toNewest makes the comparison look at the newest recovery point.
func (a *answering) toNewest(ctx context.Context, c *comparison) (replica.Point, error) {
	a.id = c.id
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

// conclude makes the record of a comparison that the agent has ended, and signs it.
func (a *answering) conclude(ctx context.Context, c *comparison, result *wire.VerifyResult) error {
	if result.Failed != "" {
		return fmt.Errorf("the agent could not compare: %s", result.Failed)
	}
	if len(result.Disks) != len(a.header.Disks) {
		return fmt.Errorf("the agent compared %d disks of %d", len(result.Disks), len(a.header.Disks))
	}
	if _, err := a.m.cut(ctx, a.header.Epoch, false); err != nil {
		return err
	}
	point, err := a.toNewest(ctx, c)
	if err != nil {
		return err
	}
	r, err := a.record(ctx, c, result, point)
	if err != nil {
		return err
	}
	if c.signed, err = a.m.s.sign(ctx, r); err != nil {
		return err
	}
	a.log.Info("source and replica were compared", "machine", a.m.id.String(), "verdict", string(r.Verdict), "deep", r.Deep,
		"point", uint64(r.Point), "differed", r.Differed())
	if r.Verdict == stream.VerdictDifferent {
		c.broken = fmt.Sprintf("a comparison found %d bytes that differ and could not all be mended", r.Differed())
	}
	return nil
}

// record puts the record together, as of the point.
func (a *answering) record(ctx context.Context, c *comparison, result *wire.VerifyResult, point replica.Point) (stream.Record, error) {
	store, err := a.m.s.Store.ID(ctx)
	if err != nil {
		return stream.Record{}, err
	}
	a.m.mu.Lock()
	name := a.m.rec.Grant.Spec.Name
	a.m.mu.Unlock()
	r := stream.Record{
		Version: stream.RecordVersion, Machine: a.m.id, Name: name, Server: a.m.s.Name, Store: store,
		Generation: point.Generation, Point: point.ID, Position: point.Position, PointTime: point.Time.UTC(), Consistency: point.Consistency,
		Deep: c.order.Deep, Started: c.started.UTC(), Finished: time.Now().UTC(),
	}
	for i, found := range result.Disks {
		d := stream.VerifiedDisk{ID: a.header.Disks[i].ID, Size: a.header.Disks[i].Size, Seed: a.header.Disks[i].Seed,
			Differed: found.Differed, Mended: found.Mended, Busy: found.Busy, First: found.First}
		if j := slices.IndexFunc(point.Disks, func(p replica.Disk) bool { return p.ID == d.ID }); j >= 0 {
			d.Name = point.Disks[j].Name
		}
		open, err := a.replica.disk(ctx, d.ID)
		if err != nil {
			return r, err
		}
		if d.Digest, err = attest.Digest(open); err != nil {
			return r, err
		}
		r.Disks = append(r.Disks, d)
	}
	r.Verdict = verdictOf(r, result.TooMuch)
	return r, nil
}

func verdictOf(r stream.Record, tooMuch bool) stream.Verdict {
	verdict := stream.VerdictEqual
	for _, d := range r.Disks {
		switch {
		case tooMuch || d.Differed > d.Mended:
			return stream.VerdictDifferent
		case d.Differed > 0:
			verdict = stream.VerdictMended
		case d.Busy > 0 && verdict == stream.VerdictEqual:
			verdict = stream.VerdictUnsettled
		}
	}
	return verdict
}

// RecordDocument is the name of the store's document that has the newest signed record
// of a machine.
func RecordDocument(id ident.MachineID) string { return "verified-" + id.String() }

// sign signs the record and keeps it in the store.
func (s *Server) sign(ctx context.Context, r stream.Record) (stream.SignedRecord, error) {
	cert, err := s.certificate()
	if err != nil {
		return stream.SignedRecord{}, fmt.Errorf("sign the record: %w", err)
	}
	signed, err := attest.Sign(r, cert)
	if err != nil {
		return signed, err
	}
	text, err := json.MarshalIndent(signed, "", "  ")
	if err != nil {
		return signed, fmt.Errorf("keep the record: %w", err)
	}
	return signed, s.Store.PutDocument(ctx, RecordDocument(r.Machine), text)
}

// certificate gives the server's own, as it is now.
func (s *Server) certificate() (*tls.Certificate, error) {
	if s.TLS.GetCertificate != nil {
		return s.TLS.GetCertificate(&tls.ClientHelloInfo{})
	}
	if len(s.TLS.Certificates) == 0 {
		return nil, errors.New("the server has no certificate")
	}
	return &s.TLS.Certificates[0], nil
}
