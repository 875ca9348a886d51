package throttle

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func always(t *testing.T, limit Rate) Schedule {
	t.Helper()
	s, err := Compile([]Rule{{Limit: limit}})
	require.NoError(t, err)
	return s
}

// readers read as fast as they may, until they are stopped.
type readers struct {
	read []atomic.Int64
	stop func()
}

// greedy starts one reader per chunk size; limiters are those of reader i.
func greedy(t *testing.T, chunks []int, limiters func(i int) []*Limiter) *readers {
	t.Helper()
	r := &readers{read: make([]atomic.Int64, len(chunks))}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, chunk := range chunks {
		wg.Go(func() {
			p := NewPacer(limiters(i)...)
			for ctx.Err() == nil {
				p.Wait(ctx, chunk, nil)
				r.read[i].Add(int64(chunk))
			}
		})
	}
	r.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(r.stop)
	return r
}

func (r *readers) now() []int64 {
	out := make([]int64, len(r.read))
	for i := range r.read {
		out[i] = r.read[i].Load()
	}
	return out
}

// over gives what each reader read in a while, per second.
func (r *readers) over(d time.Duration) (each []float64, all float64) {
	before, begin := r.now(), time.Now()
	time.Sleep(d)
	after, took := r.now(), time.Since(begin).Seconds()
	each = make([]float64, len(after))
	for i := range after {
		each[i] = float64(after[i]-before[i]) / took
		all += each[i]
	}
	return each, all
}

// TestEqualShares: eight greedy readers of very different chunk sizes.
func TestEqualShares(t *testing.T) {
	const limit = 8 << 20
	shared := NewLimiter(always(t, limit))
	chunks := []int{512, 4 << 10, 5000, 16 << 10, 16 << 10, 60_000, 64 << 10, 256 << 10}
	r := greedy(t, chunks, func(int) []*Limiter { return []*Limiter{shared} })
	time.Sleep(300 * time.Millisecond) // the burst is spent
	each, all := r.over(2 * time.Second)
	require.InEpsilon(t, limit, all, 0.15, "together they have the limit")
	for i := range each {
		// One chunk more or less may be under way at the ends.
		require.InDelta(t, all/float64(len(each)), each[i], 0.1*all/float64(len(each))+float64(chunks[i])/2, "reader %d of %v", i, each)
	}
}

// TestWhatOneDoesNotUseOthersHave: one is held lower by its own limit.
func TestWhatOneDoesNotUseOthersHave(t *testing.T) {
	const limit, own = 8 << 20, 1 << 20
	shared, slow := NewLimiter(always(t, limit)), NewLimiter(always(t, own))
	free := NewLimiter(Schedule{})
	r := greedy(t, []int{16 << 10, 16 << 10, 16 << 10}, func(i int) []*Limiter {
		if i == 0 {
			return []*Limiter{slow, shared}
		}
		return []*Limiter{free, shared}
	})
	time.Sleep(300 * time.Millisecond)
	each, all := r.over(2 * time.Second)
	require.InEpsilon(t, limit, all, 0.15)
	require.InEpsilon(t, own, each[0], 0.15)
	require.InEpsilon(t, each[1], each[2], 0.15)
}

func TestLimitChangesAtTheBorderOfAWindow(t *testing.T) {
	begin := time.Date(2026, 3, 2, 7, 59, 59, 0, time.UTC)
	var clock atomic.Int64 // seconds since begin
	now := func() time.Time { return begin.Add(time.Duration(clock.Load()) * time.Second) }
	s, err := Compile([]Rule{{Limit: 16 << 20}, rule(2<<20, "UTC", "08:00", "18:00")})
	require.NoError(t, err)
	l := newLimiter(s, now)
	r := greedy(t, []int{16 << 10, 16 << 10}, func(int) []*Limiter { return []*Limiter{l} })
	time.Sleep(200 * time.Millisecond)
	_, all := r.over(time.Second)
	require.InEpsilon(t, 16<<20, all, 0.15)

	clock.Store(1)
	time.Sleep(200 * time.Millisecond)
	_, all = r.over(time.Second)
	require.InEpsilon(t, 2<<20, all, 0.15)

	clock.Store(11 * 3600)
	time.Sleep(200 * time.Millisecond)
	_, all = r.over(time.Second)
	require.InEpsilon(t, 16<<20, all, 0.15)

	l.Set(Schedule{})
	time.Sleep(100 * time.Millisecond)
	_, all = r.over(200 * time.Millisecond)
	require.Greater(t, all, 64.0*(1<<20), "no limit any more")
}

// A clock that is set back is not trusted to be the last look's.
func TestClockSetBack(t *testing.T) {
	s, err := Compile([]Rule{rule(MinRate, "UTC", "08:00", "18:00")})
	require.NoError(t, err)
	at := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	l := newLimiter(s, func() time.Time { return at })
	require.Equal(t, MinRate, l.Limit())
	at = at.Add(-6 * time.Hour)
	require.Equal(t, Unlimited, l.Limit())
}

func TestPacerIsToldThatItWaitsAndEndsWithItsContext(t *testing.T) {
	l := NewLimiter(always(t, MinRate))
	p := NewPacer(l)
	told := 0
	p.Wait(t.Context(), quantum, func() { told++ })
	require.Equal(t, 1, told)
	p.Wait(t.Context(), 2*quantum, func() { told++ })
	require.Equal(t, 3, told)

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	begin := time.Now()
	p.Wait(ctx, 100<<20, nil) // half an hour
	require.Less(t, time.Since(begin), 5*time.Second)
	p.Wait(ctx, 100<<20, nil)
	require.Less(t, time.Since(begin), 5*time.Second)
}

// Those who wait their turn are let go when the limit ends.
func TestManyWaitersFollowANewLimitAtOnce(t *testing.T) {
	const readers, bytes = 64, 16 * quantum
	l := NewLimiter(always(t, MinRate))
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() { NewPacer(l).Wait(t.Context(), bytes, nil) })
	}
	time.Sleep(300 * time.Millisecond) // all wait
	begin := time.Now()
	l.Set(Schedule{})
	wg.Wait()
	require.Less(t, time.Since(begin), 5*time.Second, "at the old limit it takes four minutes")
}
