package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

const (
	// verifyPatience is how long a comparison may come no further.
	verifyPatience = 30 * time.Minute
	// maxQuestions may wait for their answers: the agent's half asks one at a time, but
	// what an ended comparison asked may still be there.
	maxQuestions = 4
	// maxMoves is how often a point may be thinned away before it is held.
	maxMoves = 5
	// verifyHold is how long the point that is compared with is kept when nobody asks
	// about it any more.
	verifyHold = time.Hour
	// deepBytes are read back at a time.
	deepBytes = 1 << 20
)

// Why there is no comparison.
var (
	errResync = notCompared("a resync began meanwhile; compare again when it is done")
	errClosed = notCompared("its replica was closed here: another server has the machine, or its disks have changed")
)

// failed is a stream.ErrNotCompared with its reason.
type failed struct{ error }

func (failed) Is(target error) bool { return target == stream.ErrNotCompared }

func notCompared(format string, args ...any) error { return failed{fmt.Errorf(format, args...)} }

// comparison is the server's half of comparing a machine's source with its replica.
// The agent asks, and finds what differs; the server answers as of recovery points,
// which it holds, and signs what came of it.
type comparison struct {
	id         uint64
	order      stream.VerifyOrder
	generation uint32 // of the replica
	started    time.Time
	ctx        context.Context // ends with the comparison
	cancel     context.CancelFunc
	done       chan struct{} // closed with what follows it
	signed     stream.SignedRecord
	err        error

	waiters     int       // calls of Verify; of machine.mu, as what follows
	moved       time.Time // the newest answer, or the beginning
	cutting     bool      // the answer waits for a cut
	read, total int64     // bytes of the source
	covered     []int64   // by disk: so many blocks were asked for in order
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
		changed, lost, waits, left := m.changed, m.lostComparison(c, epoch), m.waits(c), m.patience()-time.Since(c.moved)
		m.mu.Unlock()
		select {
		case <-c.done: // also when it is what lost the machine
			return c.signed, c.err
		default:
		}
		switch {
		case lost != nil:
			return stream.SignedRecord{}, lost
		case left <= 0:
			m.finishComparison(c, notCompared("it came no further for %s: it waits for %s", m.patience(), waits))
			continue
		}
		select {
		case <-c.done:
		case <-changed:
		case <-time.After(left):
		case <-m.s.halt.Done():
			return stream.SignedRecord{}, errStopping
		case <-ctx.Done():
			return stream.SignedRecord{}, context.Cause(ctx)
		}
	}
}

// lostComparison says why a comparison can no more be made; mu is held.
func (m *machine) lostComparison(c *comparison, epoch ident.Epoch) error {
	if err := m.lost(epoch); err != nil {
		return err
	}
	if m.writer == nil {
		return errClosed
	}
	if m.writer.State().Generation != c.generation {
		return errResync
	}
	return nil
}

func (m *machine) patience() time.Duration {
	if m.s.VerifyPatience > 0 {
		return m.s.VerifyPatience
	}
	return verifyPatience
}

// waits says what a comparison waits for; mu is held.
func (m *machine) waits(c *comparison) string {
	switch {
	case m.session == nil:
		return "the agent, which is not connected"
	case c.cutting && m.rec.Held:
		return "a recovery point, but the source is frozen after a final one"
	case c.cutting:
		return "a recovery point; if the machine never stops writing, configure quiesce programs"
	}
	return "the agent, which reads its disks"
}

// joinComparison gives the comparison that runs, or begins one.
func (m *machine) joinComparison(order stream.VerifyOrder) (*comparison, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writer == nil || !m.writer.State().Complete {
		return nil, stream.ErrNotComplete
	}
	if order.Rate < 0 || order.Rate > 0 && order.Rate < stream.MinVerifyRate {
		return nil, notCompared("a rate of %d bytes per second: want 0 (no bound) or at least %d", order.Rate, stream.MinVerifyRate)
	}
	if m.comparison != nil && m.comparison.order.Deep != order.Deep {
		return nil, stream.ErrOtherDepth
	}
	if m.comparison == nil {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		st, now := m.writer.State(), time.Now()
		c := &comparison{id: binary.LittleEndian.Uint64(b[:]) | 1, order: order, generation: st.Generation, started: now, moved: now,
			done: make(chan struct{}), covered: make([]int64, len(st.Spec.Disks))}
		c.ctx, c.cancel = context.WithCancel(m.s.halt)
		m.comparison = c
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
		m.endComparison(c)
	}
}

// endComparison: nobody is to go on with it; mu is held.
func (m *machine) endComparison(c *comparison) {
	m.comparison = nil
	c.cancel()
	m.notify()
	m.signal()
}

// finishComparison tells all who wait what came of it: c.signed, or the error.
func (m *machine) finishComparison(c *comparison, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.comparison != c {
		return
	}
	c.err = err
	close(c.done)
	m.endComparison(c)
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
