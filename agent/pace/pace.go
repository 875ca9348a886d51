// Package pace keeps the agent out of the guest's way: whoever reads disks calls [Wait]
// before each read, which holds a rate limit, and pauses while the guest's own programs
// wait for processors, memory or disks (the kernel's pressure stall information).
//
// Our own reads are pressure too. So while we pause we look at what is left of it: only
// what others suffer without us makes the pause longer. Pauses are bounded, so that
// under pressure that never ends a third of the time is ours and the RPO does not starve.
package pace

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of pauses.
const (
	step      = 100 * time.Millisecond // of a pause; after each we look again
	steps     = 4                      // of one pause, at most
	workLeast = 200 * time.Millisecond // between two pauses; half of the longest pause
	calm      = 2 * time.Second        // between two looks while there is no pressure but ours
	look      = time.Second            // between two looks while there is none
	burst     = 1 << 20                // bytes that a rate limit lets through at once
)

// MinRate is the lowest rate limit, in bytes per second: less would never come to an end.
const MinRate = 1 << 20

// Limits says when reads wait.
type Limits struct {
	Rate int64 // bytes per second; 0: none
	// CPU, IO and Memory are the shares of time, in percent of the last ten seconds, that
	// some program waited for it; above it reads pause. 0: it does not matter.
	CPU, IO, Memory float64
}

// Default limits: no rate, and pauses when the guest is clearly short of something.
func Default() Limits { return Limits{CPU: 60, IO: 50, Memory: 20} }

// Pacer holds the limits of one agent. It is safe for concurrent use.
type Pacer struct {
	rate      *rate.Limiter // nil: none
	resources []resource
	now       func() time.Time
	sleep     func(context.Context, time.Duration)

	mu     sync.Mutex // held while pausing: all who read pause
	next   time.Time  // when to look again
	paused atomic.Int64
	why    atomic.Pointer[string]
}

// New makes a pacer.
func New(l Limits) *Pacer { return newPacer(l, "/proc/pressure") }

func newPacer(l Limits, dir string) *Pacer {
	p := &Pacer{now: time.Now, sleep: func(ctx context.Context, d time.Duration) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}}
	if l.Rate > 0 {
		p.rate = rate.NewLimiter(rate.Limit(l.Rate), burst)
	}
	for _, r := range []resource{{dir, "cpu", l.CPU}, {dir, "io", l.IO}, {dir, "memory", l.Memory}} {
		if r.limit > 0 {
			p.resources = append(p.resources, r)
		}
	}
	return p
}

type (
	pacerKey struct{}
	hurryKey struct{}
)

// With gives a context under which [Wait] waits for the pacer.
func With(ctx context.Context, p *Pacer) context.Context {
	return context.WithValue(ctx, pacerKey{}, p)
}

// Hurry gives a context under which [Wait] does not wait: the machine is frozen, and
// nothing is kinder to it than an end of that.
func Hurry(ctx context.Context) context.Context { return context.WithValue(ctx, hurryKey{}, true) }

// Hurried reports whether reads under this context are not to wait.
func Hurried(ctx context.Context) bool { return ctx.Value(hurryKey{}) != nil }

// Wait waits until n bytes may be read. Without a pacer in the context it does not wait.
// The error is the context's.
func Wait(ctx context.Context, n int64) error {
	p, _ := ctx.Value(pacerKey{}).(*Pacer)
	if p == nil || Hurried(ctx) {
		return context.Cause(ctx)
	}
	return p.wait(ctx, n)
}

func (p *Pacer) wait(ctx context.Context, n int64) error {
	begin := p.now()
	for n > 0 && p.rate != nil {
		piece := min(n, burst)
		if err := p.rate.WaitN(ctx, int(piece)); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("wait for the rate limit: %w", err)
		}
		n -= piece
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.now().Before(p.next) {
		p.yield(ctx)
	}
	p.paused.Add(int64(p.now().Sub(begin)))
	return context.Cause(ctx)
}

// yield pauses while the guest is short of something, within bounds.
func (p *Pacer) yield(ctx context.Context) {
	short := p.short()
	if short == nil {
		p.why.Store(nil)
		p.next = p.now().Add(look)
		return
	}
	why := fmt.Sprintf("the guest waits for %s %.0f %% of the time (limit %.0f %%)", short.name, short.read().avg10, short.limit)
	p.why.Store(&why)
	p.sleep(ctx, step) // what was under way comes to its end
	for range steps - 1 {
		before, at := short.read(), p.now()
		p.sleep(ctx, step)
		if ctx.Err() != nil {
			return
		}
		if passed := p.now().Sub(at); short.read().since(before, passed) <= short.limit {
			p.why.Store(nil)
			p.next = p.now().Add(calm) // it was us
			return
		}
	}
	p.next = p.now().Add(workLeast)
}

// short is the resource that is over its limit by most, nil when none is.
func (p *Pacer) short() *resource {
	var worst *resource
	most := 1.0
	for i := range p.resources {
		r := &p.resources[i]
		if over := r.read().avg10 / r.limit; over > most {
			worst, most = r, over
		}
	}
	return worst
}

// Paused is how long reads have waited altogether, those of several readers added up.
func (p *Pacer) Paused() time.Duration { return time.Duration(p.paused.Load()) }

// Pressure says why reads pause now; empty when they do not.
func (p *Pacer) Pressure() string {
	if why := p.why.Load(); why != nil {
		return *why
	}
	return ""
}
