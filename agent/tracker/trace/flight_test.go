package trace

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"drover/agent/tracker/changes"
)

// under gives the sectors that are reported.
func (f *flights) under(now int64) map[uint64]bool {
	out := map[uint64]bool{}
	f.report(now, func(s span) {
		for x := s.first; x < s.end; x++ {
			out[x] = true
		}
	})
	return out
}

// TestFlights plays random lives of requests that overlap, are done in parts and go
// back into the queue: what is under way is always reported, and nothing is left over
// once all is done.
func TestFlights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFlights()
		var truly []span
		exact := true // no two began at one sector, so there is nothing to mistake
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(truly) == 0 || rapid.Bool().Draw(t, "issue") {
				first := rapid.Uint64Range(0, 12).Draw(t, "first")
				s := span{first, first + rapid.Uint64Range(1, 6).Draw(t, "sectors")}
				for _, o := range truly {
					exact = exact && (o.first >= s.end || s.first >= o.end)
				}
				require.True(t, f.add(s, 0))
				truly = append(truly, s)
			} else {
				i := rapid.IntRange(0, len(truly)-1).Draw(t, "which")
				s := &truly[i]
				part := span{s.first, s.first + rapid.Uint64Range(1, s.end-s.first).Draw(t, "done")}
				found := f.done(part)
				require.True(t, found || !exact)
				if s.first = part.end; s.first == s.end {
					truly = append(truly[:i], truly[i+1:]...)
				}
			}
			got := f.under(0)
			n := 0
			for _, s := range truly {
				for x := s.first; x < s.end; x++ {
					require.True(t, got[x], "sector %d of %v is under way", x, truly)
					n++
				}
			}
			if exact {
				require.Len(t, got, n)
				require.Equal(t, len(truly), f.count)
			}
		}
	})
}

func TestFlightsEnd(t *testing.T) {
	f := newFlights()
	limit := int64(changes.PendingLimit)
	require.True(t, f.add(span{0, 8}, 0))
	require.True(t, f.add(span{0, 8}, 10))
	require.Len(t, f.under(limit), 8)
	require.Len(t, f.under(limit+1), 8, "the last time")
	require.Equal(t, 1, f.count)
	require.True(t, f.done(span{0, 8}))
	require.False(t, f.done(span{0, 8}))
	require.Empty(t, f.under(limit))
	require.Empty(t, f.all)
	require.Empty(t, f.heads)
}

func TestFlightsAreBounded(t *testing.T) {
	f := newFlights()
	for i := range uint64(maxFlights) {
		require.True(t, f.add(span{i * 8, i*8 + 8}, 0))
	}
	require.False(t, f.add(span{0, 8}, 0))
	require.True(t, f.done(span{80, 88}))
	require.True(t, f.add(span{0, 8}, 0))
	require.Equal(t, maxFlights, f.count)
}

func TestDiscards(t *testing.T) {
	var d discards
	reported := func(now time.Duration) (all []span) {
		d.report(int64(now), func(s span) { all = append(all, s) })
		return all
	}
	require.True(t, d.add(span{0, 100}, 0))
	require.True(t, d.add(span{50, 100}, 0))
	require.True(t, d.add(span{40, 60}, 0))
	_, ok := d.done(60)
	require.False(t, ok, "it may be a part of the first that is done")
	s, ok := d.done(100)
	require.True(t, ok)
	require.Equal(t, span{50, 100}, s, "the longer one covers it")
	s, ok = d.done(100)
	require.True(t, ok)
	require.Equal(t, span{0, 100}, s)
	_, ok = d.done(100)
	require.False(t, ok)
	s, ok = d.done(60)
	require.True(t, ok)
	require.Equal(t, span{40, 60}, s)
	require.Empty(t, reported(0))

	require.True(t, d.add(span{1, 2}, 0))
	require.Len(t, reported(changes.PendingLimit), 1)
	require.Len(t, reported(changes.PendingLimit+1), 1, "the last time")
	require.Empty(t, reported(changes.PendingLimit+1))
	for range maxDiscards {
		require.True(t, d.add(span{1, 2}, 0))
	}
	require.False(t, d.add(span{1, 2}, 0))
}
