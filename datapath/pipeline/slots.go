package pipeline

import (
	"context"
	"runtime"

	"golang.org/x/sync/semaphore"
)

const (
	// storesPerCPU: storing waits for a network most of the time.
	storesPerCPU = 2
	minApplies   = 2 // or one per CPU
)

// Slots bound how many change sets all of a server's pipelines store at once, and
// how many they apply at once. A pipeline asks for one slot of a kind at a time and
// is served in the order of asking: however long one machine's backlog is, another
// one's set waits for at most one set of each machine before it.
type Slots struct{ store, apply *semaphore.Weighted }

// NewSlots makes the slots of a server.
func NewSlots() *Slots {
	cpus := runtime.GOMAXPROCS(0)
	return SomeSlots(storesPerCPU*cpus, max(minApplies, cpus))
}

// SomeSlots makes so many slots.
func SomeSlots(store, apply int) *Slots {
	return &Slots{store: semaphore.NewWeighted(int64(store)), apply: semaphore.NewWeighted(int64(apply))}
}

// storing does the work in a slot for storing.
func (s *Slots) storing(ctx context.Context, work func() error) error {
	if s == nil {
		return work()
	}
	return in(ctx, s.store, work)
}

// applying does the work in a slot for applying.
func (s *Slots) applying(ctx context.Context, work func() error) error {
	if s == nil {
		return work()
	}
	return in(ctx, s.apply, work)
}

func in(ctx context.Context, slots *semaphore.Weighted, work func() error) error {
	if err := slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer slots.Release(1)
	return work()
}
