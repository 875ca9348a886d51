package pipeline

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Case 33 of the faults, on the server's side: its own clock jumps.
func TestClockThatJumps(t *testing.T) {
	wall := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c := &clock{now: wall}
	step := func(jump, elapsed time.Duration) time.Duration {
		wall = wall.Add(jump + elapsed)
		return wall.Sub(c.advance(wall, elapsed))
	}
	require.Zero(t, step(0, time.Minute))
	require.Equal(t, 24*time.Hour-time.Minute, step(24*time.Hour, time.Minute), "a jump does not count at once")
	require.Equal(t, 12*time.Hour-time.Minute, step(0, 12*time.Hour))
	require.Zero(t, step(0, 12*time.Hour), "it counts after as much time")
	require.Zero(t, step(-time.Hour, time.Minute), "a clock that is set back is followed at once")
	require.Equal(t, time.Hour-time.Second, step(time.Hour, time.Second))
	require.Zero(t, step(-time.Hour, time.Second), "set right again")
}

func TestClockFollowsTime(t *testing.T) {
	c := newClock()
	time.Sleep(time.Millisecond)
	require.WithinDuration(t, time.Now(), c.read(), time.Second)
	require.False(t, c.now.After(time.Now()))
}
