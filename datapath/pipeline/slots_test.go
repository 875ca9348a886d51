package pipeline_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/cachestore"
	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
)

// turns notes whose work is done, in order, and how much of it at once.
type turns struct {
	mu       sync.Mutex
	order    []int
	now, max int
	gate     chan struct{} // work waits until it is closed
}

func (g *turns) work(machine int, do func() error) error {
	g.mu.Lock()
	g.order = append(g.order, machine)
	g.now++
	g.max = max(g.max, g.now)
	g.mu.Unlock()
	<-g.gate
	time.Sleep(time.Millisecond) // long enough for all others to ask
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.now--
	}()
	return do()
}

type gatedCache struct {
	cachestore.Store
	machine int
	*turns
}

func (c gatedCache) Put(ctx context.Context, n cachestore.Name, content io.ReaderAt, size int64) error {
	return c.work(c.machine, func() error { return c.Store.Put(ctx, n, content, size) })
}

type gatedWriter struct {
	replica.Writer
	machine int
	*turns
}

func (w gatedWriter) Apply(ctx context.Context, cs replica.ChangeSet) (p replica.Point, err error) {
	err = w.work(w.machine, func() error { p, err = w.Writer.Apply(ctx, cs); return err })
	return p, err
}

// TestEveryMachineProceedsInTurn: 16 machines share two slots; the first has a long
// backlog, and the others wait for one set of it at a time.
func TestEveryMachineProceedsInTurn(t *testing.T) {
	const machines, slots, backlog, few = 16, 2, 24, 3
	stores := &turns{gate: make(chan struct{})}
	applies := &turns{gate: make(chan struct{})}
	shared := pipeline.SomeSlots(slots, slots)
	rigs := make([]*rig, machines)
	for i := range rigs {
		r := newRig(t)
		rigs[i] = r
		c := r.config()
		c.Slots, c.Cache, c.Writer = shared, gatedCache{r.cache, i, stores}, gatedWriter{r.writer, i, applies}
		var err error
		r.pipe, err = pipeline.Start(t.Context(), c)
		require.NoError(t, err)
	}
	for i, r := range rigs {
		if i == 0 {
			r.add(backlog)
			continue
		}
		r.add(few)
	}
	close(stores.gate)
	close(applies.gate)
	for i, r := range rigs {
		r.drain()
		n := ident.Seq(few)
		if i == 0 {
			n = backlog
		}
		require.Equal(t, n, r.writer.State().Position.Seq)
	}
	for name, g := range map[string]*turns{"stored": stores, "applied": applies} {
		require.LessOrEqual(t, g.max, slots, name)
		// Until the last of the others is done, the first may have had a turn for
		// each of theirs, and those that were on at the ends.
		had := map[int]int{}
		for _, m := range g.order {
			had[m]++
			if m != 0 {
				require.LessOrEqual(t, had[0], had[m]+few+slots, "%s: %v", name, g.order)
			}
		}
		last := 0
		for i, m := range g.order {
			if m != 0 {
				last = i
			}
		}
		require.LessOrEqual(t, last, machines*(few+slots), "%s: the backlog came in between: %v", name, g.order)
	}
}

// A pipeline that is stopped while it waits for a slot ends.
func TestStopWhileWaitingForASlot(t *testing.T) {
	held, free := newRig(t), newRig(t)
	gate := &turns{gate: make(chan struct{})}
	shared := pipeline.SomeSlots(1, 1)
	c := held.config()
	c.Slots, c.Cache = shared, gatedCache{held.cache, 0, gate}
	var err error
	held.pipe, err = pipeline.Start(t.Context(), c)
	require.NoError(t, err)
	held.add(1)
	require.Eventually(t, func() bool { gate.mu.Lock(); defer gate.mu.Unlock(); return gate.now == 1 }, patience, often)
	c = free.config()
	c.Slots = shared
	free.pipe, err = pipeline.Start(t.Context(), c)
	require.NoError(t, err)
	free.add(1)
	time.Sleep(20 * time.Millisecond) // it asks for the slot
	require.Zero(t, free.faults.count("before put"))
	free.pipe.Stop()
	close(gate.gate)
	held.drain()
}
