package pipeline

import "time"

// catchUp is how much faster than time the clock below may go.
const catchUp = 2

// clock is the server's clock as retention sees it. When it is set forward while the
// server runs, nothing expires by that at once: as much time as it jumped passes
// before all of the jump counts, in which it can be set right again.
type clock struct {
	last time.Time // with its monotonic reading
	now  time.Time
}

func newClock() *clock {
	now := time.Now()
	return &clock{now, now.Round(0)}
}

// read gives the time.
func (c *clock) read() time.Time {
	now := time.Now()
	elapsed := now.Sub(c.last)
	c.last = now
	return c.advance(now.Round(0), elapsed)
}

// advance gives the time after so much has elapsed, when the wall clock says wall.
func (c *clock) advance(wall time.Time, elapsed time.Duration) time.Time {
	c.now = c.now.Add(catchUp * elapsed)
	if c.now.After(wall) {
		c.now = wall
	}
	return c.now
}
