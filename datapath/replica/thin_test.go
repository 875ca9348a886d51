package replica

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

const (
	hour = time.Hour
	day  = 24 * hour
)

// history is one point per interval, the newest at end.
func history(end time.Time, n int, every time.Duration) []Point {
	out := make([]Point, n)
	for i := range out {
		out[i] = Point{ID: ident.Seq(i + 1), Time: end.Add(-time.Duration(n-1-i) * every)}
	}
	return out
}

// TestThinWhenClocksJump is case 33 of the faults: a wrong time may keep points for
// longer, never delete one that the policy keeps.
func TestThinWhenClocksJump(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	// Every two minutes for the hour in which all are kept.
	fresh := func() []Point { return history(now, 30, 2*time.Minute) }
	shift := func(p []Point, from, to int, by time.Duration) []Point {
		for i := from; i < to; i++ {
			p[i].Time = p[i].Time.Add(by)
		}
		return p
	}
	for _, c := range []struct {
		name   string
		points []Point
	}{
		{"all clocks right", fresh()},
		{"the newest point is from tomorrow", shift(fresh(), 29, 30, day)},
		{"the newest point is from next year", shift(fresh(), 29, 30, 365*day)},
		{"some of the newest are from tomorrow", shift(fresh(), 20, 30, day)},
		{"some in the middle are from next year", shift(fresh(), 10, 20, 365*day)},
		{"the newest point is an hour behind", shift(fresh(), 29, 30, -hour)},
		{"the newest point is years behind", shift(fresh(), 29, 30, -3000*day)},
		{"the newest are an hour behind", shift(fresh(), 20, 30, -hour)},
		{"one in the middle is years behind", shift(fresh(), 15, 16, -3000*day)},
		{"some in the middle are a day behind", shift(fresh(), 10, 20, -day)},
		{"behind, then ahead", shift(shift(fresh(), 5, 10, -20*day), 20, 30, 20*day)},
		{"all are from tomorrow: the server's clock was put back", shift(fresh(), 0, 30, day)},
	} {
		t.Run(c.name, func(t *testing.T) { require.Empty(t, Thin(c.points, DefaultRetention(), now)) })
	}
}

// A policy that thins at once does not collapse points whose times are wrong.
func TestThinByIntervalsWhenClocksJump(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	r := Retention{Keep: 15 * day, Steps: []ThinStep{{15 * day, hour}}}
	points := history(now, 48, hour)
	require.Empty(t, Thin(points, r, now))
	points[47].Time = now.Add(-300 * day)
	require.Empty(t, Thin(points, r, now), "the newest is from the past")
	points[47].Time = now.Add(300 * day)
	require.Empty(t, Thin(points, r, now), "the newest is from the future")
}

// What is old stays old: a wrong time of one point does not stop retention for good.
func TestThinGoesOnAfterAJump(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, by := range []time.Duration{day, 365 * day} {
		points := history(now, 1000, hour) // 41 days
		points[998].Time = points[998].Time.Add(by)
		right := Thin(history(now, 1000, hour), DefaultRetention(), now)
		require.Greater(t, len(right), 640)
		require.Equal(t, right, Thin(points, DefaultRetention(), now))
	}
	points := history(now, 1000, hour)
	points[500].Time = points[500].Time.Add(-20 * day)
	require.Greater(t, len(Thin(points, DefaultRetention(), now)), 640)
}

// While no point can be made, old ones are kept however late it is.
func TestThinKeepsWhileNothingIsMade(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	require.Empty(t, Thin(history(now, 30, 2*time.Minute), DefaultRetention(), now.Add(1000*day)))
}
