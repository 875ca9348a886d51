// Package pipeline carries one machine's change sets on from the spool: into the
// cache storage, then into the replica, in their order. Two goroutines work at
// once, so that one set is uploaded while the one before it is applied.
//
// A set leaves the spool and the cache once it is applied. Everything before that
// can be done twice: after a restart the pipeline begins with what the replica
// does not have yet, wherever it lies.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/spool"
	"drover/datapath/waterfall"
)

// Pauses between tries of a step that failed and may succeed later.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 15 * time.Second
	// thinEvery is how many applied sets go by between two looks at retention.
	thinEvery = 4
	// keepBytes of a set are decoded once, to be checked, and kept to be written.
	keepBytes = 40 << 20
)

// ErrStopped: the pipeline was stopped, or has failed, before the work was done.
var ErrStopped = errors.New("pipeline has stopped")

// Events are told to the pipeline's owner, each kind in order, by two goroutines.
// They must not wait for the pipeline.
type Events struct {
	Stored func(changeset.Summary)
	// Applied comes after the position is durable; the point is zero when none was made.
	Applied func(changeset.Summary, replica.Point)
	// Broken: a set that was acknowledged cannot be applied, now or ever. Fenced:
	// another owner has the replica. The pipeline has ended in both cases.
	Broken func(cause string)
	Fenced func(error)
}

// Config of a machine's pipeline.
type Config struct {
	Machine   ident.MachineID
	Spool     *spool.Spool
	Cache     cachestore.Store
	Writer    replica.Writer
	Keys      changeset.Keys
	Retention func() replica.Retention
	Events    Events
	Logger    *slog.Logger
	Times     *waterfall.Table // is told what chunks wait for here; may be nil
	Slots     *Slots           // shared by all pipelines of a server; nil: no bound
}

// item is a change set on its way.
type item struct {
	entry   spool.Entry
	cached  bool // is read from the cache storage
	both    bool // lies in the spool and in the cache storage
	stored  bool
	summary changeset.Summary
	chunks  []int64 // by disk; none for a set from before the start
	held    *changeset.Held
	since   time.Time // of the stage it is in
}

// done ends a stage of all its chunks.
func (i *item) done(t *waterfall.Table, s waterfall.Stage) {
	now := time.Now()
	for disk, n := range i.chunks {
		t.Spend(disk, s, n, now.Sub(i.since))
	}
	i.since = now
}

func (i *item) name() cachestore.Name {
	return cachestore.Name{Machine: i.entry.Machine, Seq: i.entry.Seq, Epoch: i.entry.Epoch}
}

// Pipeline is a running pipeline.
type Pipeline struct {
	Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	clock  *clock // of the goroutine that applies

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change of what follows
	items   []*item       // oldest first
	tail    ident.Position
	whole   bool // the newest generation's base is complete once all items are applied
	failed  error
}

// Start begins with what the replica does not have yet. An error that wraps
// replica.ErrCorrupt says that acknowledged change sets are damaged or missing.
func Start(ctx context.Context, c Config) (*Pipeline, error) {
	if c.Times == nil {
		c.Times = new(waterfall.Table)
	}
	p := &Pipeline{Config: c, clock: newClock(), changed: make(chan struct{})}
	if err := p.recover(ctx); err != nil {
		return nil, fmt.Errorf("take up the change sets of machine %s: %w", c.Machine, err)
	}
	// The pipeline lives until Stop, not until ctx ends.
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.wg.Add(2)
	go p.run(p.storeNext)
	go p.run(p.applyNext)
	return p, nil
}

// Stop ends the work at the next safe place and waits for it.
func (p *Pipeline) Stop() {
	p.cancel()
	p.wg.Wait()
	for _, i := range p.items {
		i.held.Free()
	}
}

// Tail is where the next change set must follow, and whether the replica's base is
// complete by then.
func (p *Pipeline) Tail() (ident.Position, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tail, p.whole
}

// Backlog is what is not applied yet: change sets and their bytes.
func (p *Pipeline) Backlog() (sets int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.items {
		bytes += i.entry.Size
	}
	return len(p.items), bytes
}

// Add takes a change set that was committed to the spool and follows the tail, with
// the number of its chunks by disk. held, which may be nil, saves reading it again.
func (p *Pipeline) Add(e spool.Entry, s changeset.Summary, chunks []int64, held *changeset.Held) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.append(&item{entry: e, summary: s, chunks: chunks, held: held, since: time.Now()})
	p.signal()
}

func (p *Pipeline) append(i *item) {
	p.items = append(p.items, i)
	p.tail = i.summary.Position()
	p.whole = p.whole || i.summary.Header.Kind == changeset.Base && i.summary.Cut.Complete
}

// signal wakes all waiters; mu is held.
func (p *Pipeline) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// await waits until ready, called with mu held, says so.
func (p *Pipeline) await(ctx context.Context, ready func() bool) error {
	for {
		p.mu.Lock()
		ok, changed, failed := ready(), p.changed, p.failed
		p.mu.Unlock()
		switch {
		case ok:
			return nil
		case failed != nil:
			return failed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.ctx.Done():
			return ErrStopped
		}
	}
}

// Drain waits until all that was added is applied.
func (p *Pipeline) Drain(ctx context.Context) error {
	err := p.await(ctx, func() bool { return len(p.items) == 0 })
	if err != nil {
		return fmt.Errorf("wait for the change sets of machine %s: %w", p.Machine, err)
	}
	return nil
}

// run calls next until the pipeline ends; what may succeed later is repeated.
func (p *Pipeline) run(next func() error) {
	defer p.wg.Done()
	pause := retryFirst
	for {
		err := next()
		switch {
		case err == nil:
			pause = retryFirst
			continue
		case p.ctx.Err() != nil:
			return
		case p.final(err):
			return
		}
		p.Logger.Warn("a change set cannot be carried on yet; it is tried again", "machine", p.Machine.String(), "error", err.Error(), "pause", pause.String())
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
}

// final ends the pipeline on errors that no repetition mends.
func (p *Pipeline) final(err error) bool {
	fenced := errors.Is(err, replica.ErrFenced) || errors.Is(err, cachestore.ErrFenced)
	broken := errors.Is(err, replica.ErrGap) || errors.Is(err, replica.ErrCorrupt) ||
		errors.Is(err, changeset.ErrCorrupt) || errors.Is(err, spool.ErrNotFound) || errors.Is(err, cachestore.ErrNotFound) || errors.Is(err, cachestore.ErrExists)
	if !fenced && !broken {
		return false
	}
	p.mu.Lock()
	first := p.failed == nil
	if first {
		p.failed = errors.Join(ErrStopped, err)
	}
	p.signal()
	p.mu.Unlock()
	p.cancel()
	switch {
	case !first:
	case fenced:
		p.Events.Fenced(err)
	default:
		p.Events.Broken(err.Error())
	}
	return true
}
