package replica

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// band is a part of the past with one point per so much; 0: all points.
type band struct{ from, to, every time.Duration }

// defaultBands are features.md row 3 word by word, written again: "all points 2 h, then
// 1 per hour to 1 d, 1 per 2 h to 7 d, 1 per 4 h to 15 d".
var defaultBands = []band{{0, 2 * hour, 0}, {2 * hour, day, hour}, {day, 7 * day, 2 * hour}, {7 * day, 15 * day, 4 * hour}}

const cutEvery = 30 * time.Second // the default of a policy

// walk makes a cut every 30 s from start on for so long, thins after every fourth as a
// pipeline does, and has look called now and then. made says whether a cut succeeds, and
// how consistent it is.
func walk(start time.Time, lasts time.Duration, made func(time.Time) (ident.Consistency, bool), look func(now time.Time, all, kept []Point)) {
	var all, kept []Point
	for n := range int(lasts/cutEvery) + 1 {
		now := start.Add(time.Duration(n) * cutEvery)
		if c, ok := made(now); ok {
			p := Point{ID: ident.Seq(len(all) + 1), Time: now, Consistency: c} //nolint:gosec // few
			all, kept = append(all, p), append(kept, p)
			if p.ID%4 == 0 {
				kept = without(kept, Thin(kept, DefaultRetention(), now))
			}
		}
		if n%997 == 0 || n == int(lasts/cutEvery) { // not a multiple of anything above
			look(now, all, kept)
		}
	}
}

func without(points []Point, plan []ident.Seq) []Point {
	gone := map[ident.Seq]bool{}
	for _, id := range plan {
		gone[id] = true
	}
	out := make([]Point, 0, len(points))
	for _, p := range points {
		if !gone[p.ID] {
			out = append(out, p)
		}
	}
	return out
}

// checkBands compares what is kept with what was made, by the bands, at any moment. An
// interval that is only partly in a band may have a point of either neighbour's kind.
func checkBands(now time.Time, all, kept []Point) error {
	if len(all) == 0 {
		return nil
	}
	const slack = 4 * cutEvery // between two looks at retention
	newest := all[len(all)-1].Time
	type interval struct {
		band  int
		begin int64
	}
	made, has := map[interval]int{}, map[interval]int{}
	count := func(points []Point, into map[interval]int) {
		for _, p := range points {
			age := newest.Sub(p.Time)
			for i, b := range defaultBands {
				switch {
				case b.every == 0 && age <= b.to:
					into[interval{i, p.Time.Unix()}]++
				case b.every == 0:
				case within(p.Time, b, newest, slack):
					into[interval{i, p.Time.Truncate(b.every).Unix()}]++
				}
			}
		}
	}
	count(all, made)
	count(kept, has)
	for key := range made {
		if has[key] != 1 {
			return fmt.Errorf("at %s: the %s from %s on have %d points, %d were made", now, defaultBands[key.band].every, time.Unix(key.begin, 0).UTC(), has[key], made[key])
		}
	}
	for _, p := range kept {
		if age := newest.Sub(p.Time); age > 15*day+slack {
			return fmt.Errorf("at %s: point %d is %s old", now, p.ID, age)
		}
	}
	return nil
}

// within reports whether all of the point's interval lies in the band.
func within(t time.Time, b band, newest time.Time, slack time.Duration) bool {
	begin := t.Truncate(b.every)
	return newest.Sub(begin.Add(b.every)) > b.from+slack && newest.Sub(begin) <= b.to
}

// TestThinOver15Days walks over 17 days with a cut every 30 s.
func TestThinOver15Days(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	crash := func(time.Time) (ident.Consistency, bool) { return ident.CrashConsistent, true }
	away := func(from, to time.Duration) func(time.Time) (ident.Consistency, bool) {
		return func(now time.Time) (ident.Consistency, bool) {
			since := now.Sub(start)
			return ident.CrashConsistent, since < from || since >= to
		}
	}
	for _, c := range []struct {
		name  string
		made  func(time.Time) (ident.Consistency, bool)
		lasts time.Duration
		end   [4]int // points in each band at the end
	}{
		{"a cut every 30 s", crash, 17 * day, [4]int{241, 22, 72, 48}},
		{"the first day", crash, day, [4]int{241, 22, 0, 0}},
		{"the first week", crash, 7 * day, [4]int{241, 22, 72, 0}},
		{"no points for six hours of the 15th day", away(14*day+6*hour, 14*day+12*hour), 17 * day, [4]int{241, 22, 69, 48}},
		{"no points for six hours until an hour ago", away(17*day-7*hour, 17*day-hour), 17 * day, [4]int{121, 17, 72, 48}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var last []Point
			walk(start, c.lasts, c.made, func(now time.Time, all, kept []Point) {
				require.NoError(t, checkBands(now, all, kept))
				last = kept
			})
			// The end is a multiple of four hours after the start, and every fourth cut but
			// one is thinned after: once more for that one.
			last = without(last, Thin(last, DefaultRetention(), start.Add(c.lasts)))
			var got [4]int
			for _, p := range last {
				age := start.Add(c.lasts).Sub(p.Time)
				for i, b := range defaultBands {
					if age <= b.to {
						got[i]++
						break
					}
				}
			}
			require.Equal(t, c.end, got)
		})
	}
}

// Of each interval the point stays that is good for most: an application-consistent one
// a day keeps its place among the crash-consistent ones until it is too old.
func TestThinKeepsTheStrongestConsistency(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	daily := func(now time.Time) (ident.Consistency, bool) {
		if now.Sub(start)%day == 10*time.Minute {
			return ident.ApplicationConsistent, true
		}
		return ident.CrashConsistent, true
	}
	looks := 0
	walk(start, 17*day, daily, func(now time.Time, all, kept []Point) {
		have := map[ident.Seq]bool{}
		for _, p := range kept {
			have[p.ID] = true
		}
		for _, p := range all {
			if p.Consistency == ident.ApplicationConsistent && now.Sub(p.Time) <= 15*day {
				require.True(t, have[p.ID], "at %s: point of %s", now, p.Time)
				looks++
			}
		}
	})
	require.Greater(t, looks, 300)
}

// "Old points kept past retention while no new one can be made": they stay for weeks, as
// dense as they were, and go when there is a new one.
func TestThinKeepsOldPointsUntilThereIsANewOne(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	made := func(now time.Time) (ident.Consistency, bool) {
		since := now.Sub(start)
		return ident.CrashConsistent, since <= 16*day || since >= 60*day
	}
	var before []Point
	walk(start, 60*day+time.Minute, made, func(now time.Time, _, kept []Point) {
		switch since := now.Sub(start); {
		case since <= 16*day:
		case since < 60*day:
			kept = without(kept, Thin(kept, DefaultRetention(), now))
			if before == nil {
				before = kept
			}
			require.Equal(t, before, kept, "at %s", now)
		default:
			require.Len(t, without(kept, Thin(kept, DefaultRetention(), now)), 3, "the new ones")
		}
	})
	require.Len(t, before, 241+22+72+48)
}

// Machines of a group keep the points that they have in common, and none of them another
// one, whatever each has made besides for itself.
func TestThinKeepsGroupsInStep(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	member := func(n int) (kept []Point) {
		var points []Point
		for i := range 2 * int(day/cutEvery) {
			now := start.Add(time.Duration(i) * cutEvery)
			p := Point{ID: ident.Seq(len(points) + 1), Time: now, Consistency: ident.FileSystemConsistent}
			switch {
			case i%20 == 7: // the round came to nothing
				p.Time = p.Time.Add(time.Duration(n) * time.Second)
			case i%480 == 11: // every four hours; only some have scripts at all
				p.Group = &changeset.Group{Name: "g", Round: ident.Round(i + 1), Members: 3, Scripts: true}
				p.Consistency += ident.Consistency(n % 2)
			default:
				p.Group = &changeset.Group{Name: "g", Round: ident.Round(i + 1), Members: 3}
			}
			points = append(points, p)
			if i%60 == 31 && n > 0 { // made by order, for itself
				points = append(points, Point{ID: ident.Seq(len(points) + 1), Time: now.Add(time.Duration(n) * time.Second), Consistency: ident.ApplicationConsistent})
			}
		}
		return without(points, Thin(points, DefaultRetention(), points[len(points)-1].Time))
	}
	common := func(points []Point) (out []ident.Round) {
		for _, p := range points {
			if p.Group != nil {
				out = append(out, p.Group.Round)
			} else {
				require.Less(t, start.Add(2*day).Sub(p.Time), 2*hour+time.Minute, "where not all are kept, those in common are")
			}
		}
		return out
	}
	first := common(member(0))
	require.Equal(t, first, common(member(1)))
	require.Equal(t, first, common(member(2)))
	require.Contains(t, first, ident.Round(480*5+11+1), "of the interval, the one for which the scripts were run")
}
