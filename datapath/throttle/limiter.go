package throttle

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// quantum is what a reader takes at its turn, whatever the size of its reads:
	// equal turns of equal size are equal shares.
	quantum = 16 << 10
	// burstTime is how much unused bandwidth is kept, beyond the quantum.
	burstTime = 100 * time.Millisecond
	// lookEvery bounds how late a window's border is noticed. The schedule is asked
	// for the time of day, so a clock that is set, and daylight saving, need no care.
	lookEvery = time.Second
)

// Limiter is a schedule that several readers share. They take turns in the order
// in which they ask, so that no one is passed over.
type Limiter struct {
	turn *semaphore.Weighted // of weight 1; first come, first served
	now  func() time.Time

	mu       sync.Mutex
	schedule Schedule
	looked   time.Time // when limit was read from the schedule; zero: not yet
	limit    Rate
	bucket   *rate.Limiter
}

// NewLimiter makes a limiter.
func NewLimiter(s Schedule) *Limiter { return newLimiter(s, time.Now) }

func newLimiter(s Schedule, now func() time.Time) *Limiter {
	return &Limiter{turn: semaphore.NewWeighted(1), now: now, schedule: s, bucket: rate.NewLimiter(rate.Inf, quantum)}
}

// Set puts another schedule into force for all readers.
func (l *Limiter) Set(s Schedule) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.schedule, l.looked = s, time.Time{}
}

// Limit is the limit now.
func (l *Limiter) Limit() Rate {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if since := now.Sub(l.looked); since >= 0 && since < lookEvery {
		return l.limit
	}
	l.looked = now
	limit := l.schedule.At(now)
	if limit == l.limit {
		return limit
	}
	l.limit = limit
	if limit == Unlimited {
		l.bucket.SetLimit(rate.Inf)
		return limit
	}
	burst := max(quantum, int(limit/Rate(time.Second/burstTime)))
	l.bucket.SetLimit(rate.Limit(limit))
	l.bucket.SetBurst(burst)
	return limit
}

// take waits for one quantum. Only the reader whose turn it is waits for the
// bucket, a quarter of a second at most, so that a new limit holds at once for all.
func (l *Limiter) take(ctx context.Context) error {
	if l.Limit() == Unlimited {
		return nil
	}
	if err := l.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer l.turn.Release(1)
	l.Limit() // it may have changed meanwhile
	return l.bucket.WaitN(ctx, quantum)
}

// Pacer holds one reader to several limiters. Not safe for concurrent use.
type Pacer struct {
	limiters []*Limiter
	credit   int
}

// NewPacer makes a reader's pacer; the limiter that most readers share comes last.
func NewPacer(limiters ...*Limiter) *Pacer { return &Pacer{limiters: limiters} }

// Wait waits until n more bytes may have been read; before each turn it calls
// waiting, if there is one. When ctx ends it stops waiting.
func (p *Pacer) Wait(ctx context.Context, n int, waiting func()) {
	p.credit -= n
	for p.credit < 0 {
		if waiting != nil {
			waiting()
		}
		for _, l := range p.limiters {
			if l.take(ctx) != nil {
				p.credit = 0
				return
			}
		}
		p.credit += quantum
	}
}
