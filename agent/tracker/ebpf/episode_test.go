package ebpf

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker/changes"
)

// flight is a write on its way: issued, then on the disk, then done.
type flight struct {
	block uint64
	turn  int // in which it was issued
	on    bool
}

// episode is a short life of a few blocks, one step after the other in random order.
type episode struct {
	rnd     *rand.Rand
	disk    *disk
	turn    int
	flights []flight
	content []int
	copy    []int
}

// step does one thing that may happen next.
func (e *episode) step() {
	if e.rnd.IntN(4) == 0 {
		e.pass(e.rnd.IntN(2) == 0)
		return
	}
	if e.rnd.IntN(3) == 0 && len(e.flights) < 4 {
		f := flight{block: e.rnd.Uint64N(uint64(len(e.content))), turn: e.turn}
		e.flights = append(e.flights, f)
		e.mark(f, issued)
		return
	}
	if len(e.flights) == 0 {
		return
	}
	i := e.rnd.IntN(len(e.flights))
	f := &e.flights[i]
	if !f.on {
		f.on = true
		e.content[f.block]++
		return
	}
	if what := e.rnd.IntN(4); what > 0 { // else nobody sees its end
		e.mark(*f, uint64([]int{0, seen, done, done}[what])) //nolint:gosec // small
	}
	e.flights = append(e.flights[:i], e.flights[i+1:]...)
}

func (e *episode) mark(f flight, what uint64) {
	e.disk.apply(span{first: f.block, end: f.block + 1, what: what})
}

// pass drains and copies. A turn takes longer than a write may take: it does not end
// while one is under way that was issued before it began.
func (e *episode) pass(over bool) {
	for _, f := range e.flights {
		over = over && f.turn >= e.turn
	}
	into := make(changes.Bitmap, len(e.disk.words))
	e.disk.drain(into, over)
	if over {
		e.turn++
	}
	for b := range e.content {
		if into.Has(int64(b)) {
			e.copy[b] = e.content[b]
		}
	}
}

// TestEpisodes plays very many short lives. Whenever one ends, one more Drain gives
// all that the copy lacks.
func TestEpisodes(t *testing.T) {
	for i := range uint64(100_000) {
		e := &episode{rnd: rand.New(rand.NewPCG(7, i)), disk: plainDisk(2), content: make([]int, 2), copy: make([]int, 2)}
		for range e.rnd.IntN(25) {
			e.step()
		}
		e.pass(false)
		require.Equal(t, e.content, e.copy, "episode %d", i)
	}
}
