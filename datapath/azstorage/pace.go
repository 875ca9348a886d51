package azstorage

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

// Limits are what one blob takes.
type Limits struct {
	Bytes    float64 // a second
	Requests float64 // a second
}

// StandardBlob is what Azure says a standard page blob takes.
func StandardBlob() Limits { return Limits{Bytes: 60 << 20, Requests: 500} }

const (
	burstBytes    = 8 << 20 // more than one request has
	burstRequests = 16
	leastShare    = 0.02            // of the limits, however busy the account says it is
	cutTo         = 0.65            // of the share, when the account is busy
	cutEvery      = time.Second     // at most: the requests under way tell of the same moment
	growEvery     = time.Second     // without a busy answer
	growBy        = 0.1             // of what is missing to the whole
	mostPause     = 2 * time.Minute // that an answer can ask for
)

// Pacer spaces the requests to one blob: never more than the limits, less as long as
// the account says that it is busy, none while it asks for a pause.
type Pacer struct {
	limits   Limits
	slots    *Slots // of all blobs together; nil: unbounded
	bytes    *rate.Limiter
	requests *rate.Limiter

	mu      sync.Mutex
	share   float64   // of the limits
	changed time.Time // share was
	until   time.Time // the pause that was asked for

	sent, unanswered, busy atomic.Int64
}

// Slots bound how many paced requests are under way at once, over many blobs. They are
// given in the order of asking, and who is paced asks only when its time has come: a
// blob that is slow takes no turn of another's.
type Slots struct{ s *semaphore.Weighted }

// NewSlots gives so many.
func NewSlots(n int) *Slots { return &Slots{semaphore.NewWeighted(int64(n))} }

// NewPacer begins at the limits. Its requests take slots, unless they are nil.
func NewPacer(l Limits, slots *Slots) *Pacer {
	return &Pacer{
		limits: l, slots: slots, share: 1,
		bytes: rate.NewLimiter(rate.Limit(l.Bytes), burstBytes), requests: rate.NewLimiter(rate.Limit(l.Requests), burstRequests),
	}
}

// Requests is how many were sent, repetitions included.
func (p *Pacer) Requests() int64 { return p.sent.Load() }

// Unanswered counts the tries that had no answer, or none that says whether they were
// done: each may be done still, after the requests that came later.
func (p *Pacer) Unanswered() int64 { return p.unanswered.Load() }

type paceKey struct{}

// pacing is one request's business with the pacer of its blob.
type pacing struct {
	pacer *Pacer
	bytes int
}

// With has the requests of the context paced, each taken for so many bytes.
func (p *Pacer) With(ctx context.Context, bytes int) context.Context {
	return context.WithValue(ctx, paceKey{}, &pacing{pacer: p, bytes: bytes})
}

// pacePolicy asks the pacer before every try and tells it what came of it.
type pacePolicy struct{}

func (pacePolicy) Do(req *policy.Request) (*http.Response, error) {
	ctx := req.Raw().Context()
	x, ok := ctx.Value(paceKey{}).(*pacing)
	if !ok {
		return req.Next()
	}
	if err := x.pacer.wait(ctx, x.bytes); err != nil {
		return nil, err
	}
	if s := x.pacer.slots; s != nil {
		if err := s.s.Acquire(ctx, 1); err != nil {
			return nil, err
		}
		defer s.s.Release(1) // with the answer's beginning
	}
	x.pacer.sent.Add(1)
	resp, err := req.Next()
	if err != nil || resp.StatusCode == http.StatusInternalServerError || resp.StatusCode == http.StatusGatewayTimeout {
		x.pacer.unanswered.Add(1)
	}
	if err == nil {
		x.pacer.told(resp.StatusCode, resp.Header.Get("Retry-After"), time.Now())
	}
	return resp, err
}

func (p *Pacer) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	pause := time.Until(p.until)
	p.mu.Unlock()
	if pause > 0 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := p.requests.Wait(ctx); err != nil {
		return err
	}
	return p.bytes.WaitN(ctx, min(n, burstBytes))
}

// told takes what an answer says of the blob's load.
func (p *Pacer) told(status int, retryAfter string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests {
		if p.share < 1 && now.Sub(p.changed) >= growEvery {
			p.set(min(1, p.share+max(growBy*(1-p.share), 0.005)), now)
		}
		return
	}
	p.busy.Add(1)
	if s, err := strconv.Atoi(retryAfter); err == nil && s > 0 {
		if until := now.Add(min(time.Duration(s)*time.Second, mostPause)); until.After(p.until) {
			p.until = until
		}
	}
	if now.Sub(p.changed) >= cutEvery {
		p.set(max(leastShare, p.share*cutTo), now)
	}
}

func (p *Pacer) set(share float64, now time.Time) {
	p.share, p.changed = share, now
	p.bytes.SetLimitAt(now, rate.Limit(share*p.limits.Bytes))
	p.requests.SetLimitAt(now, rate.Limit(share*p.limits.Requests))
}
