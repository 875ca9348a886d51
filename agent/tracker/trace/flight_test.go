package trace

import (
	"testing"

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

func TestTrimmedBlocksStayForAWhile(t *testing.T) {
	d := trimmed{young: make(changes.Bitmap, 1), old: make(changes.Bitmap, 1)}
	limit := int64(changes.PendingLimit)
	reported := func(now int64) uint64 {
		b := make(changes.Bitmap, 1)
		d.report(now, b)
		return b[0]
	}
	d.young.Set(3, 4)
	require.EqualValues(t, 8, reported(limit))
	require.EqualValues(t, 8, reported(limit+1))
	d.young.Set(0, 1)
	require.EqualValues(t, 9, reported(2*limit))
	require.EqualValues(t, 9, reported(2*limit+2), "the first for the last time")
	require.EqualValues(t, 1, reported(2*limit+3))
	require.EqualValues(t, 1, reported(3*limit+3))
	require.Zero(t, reported(3*limit+4))
}
