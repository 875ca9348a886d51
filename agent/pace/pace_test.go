package pace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// guest is a machine whose pressure the test makes; its clock moves only while we pause.
type guest struct {
	t   *testing.T
	dir string
	*Pacer
	clock time.Time
	// others is the share of a pause that others wait for io, in percent.
	others float64
	total  time.Duration
	slept  time.Duration
}

func newGuest(t *testing.T, l Limits) *guest {
	g := &guest{t: t, dir: t.TempDir(), clock: time.Unix(1e9, 0)}
	g.Pacer = newPacer(l, g.dir)
	g.now = func() time.Time { return g.clock }
	g.sleep = func(_ context.Context, d time.Duration) {
		g.clock, g.slept = g.clock.Add(d), g.slept+d
		g.total += time.Duration(g.others / 100 * float64(d))
		g.set("io", 90)
	}
	return g
}

func (g *guest) set(name string, avg10 float64) {
	text := fmt.Sprintf("some avg10=%.2f avg60=0.00 avg300=0.00 total=%d\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=7\n", avg10, g.total.Microseconds())
	require.NoError(g.t, os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600))
}

func (g *guest) read(n int64) time.Duration {
	g.t.Helper()
	before := g.slept
	require.NoError(g.t, Wait(With(g.t.Context(), g.Pacer), n))
	return g.slept - before
}

func TestNoPressureNoPause(t *testing.T) {
	g := newGuest(t, Default())
	require.Zero(t, g.read(1<<20), "a kernel that does not tell")
	g.set("io", 49)
	g.clock = g.clock.Add(look)
	require.Zero(t, g.read(1<<20))
	require.Empty(t, g.Pressure())
}

func TestPressureOfOthersPausesWithinBounds(t *testing.T) {
	g := newGuest(t, Default())
	g.others = 100
	g.set("io", 90)
	require.Equal(t, steps*step, g.read(1<<20))
	require.Contains(t, g.Pressure(), "the guest waits for io 90 % of the time (limit 50 %)")
	require.Zero(t, g.read(1<<30), "then there is time to work, however much is read")
	g.clock = g.clock.Add(workLeast)
	require.Equal(t, steps*step, g.read(1))
	require.Equal(t, 2*steps*step, g.Paused())
	require.GreaterOrEqual(t, 2*workLeast, steps*step, "a third of the time is ours")
}

func TestOurOwnPressureDoesNotPauseUsForLong(t *testing.T) {
	g := newGuest(t, Default())
	g.others = 10 // what is left when we do not read
	g.set("io", 95)
	require.Equal(t, 2*step, g.read(1<<20))
	require.Empty(t, g.Pressure())
	g.clock = g.clock.Add(calm - time.Millisecond)
	require.Zero(t, g.read(1<<20))
}

func TestTheWorstCounts(t *testing.T) {
	g := newGuest(t, Limits{CPU: 60, Memory: 20})
	g.set("io", 99) // does not matter here
	g.set("cpu", 61)
	g.set("memory", 40)
	require.Equal(t, "memory", g.short().name)
	g.set("memory", 1)
	require.Equal(t, "cpu", g.short().name)
	g.set("cpu", 0)
	require.Nil(t, g.short())
}

func TestAFrozenMachineIsNotKeptWaiting(t *testing.T) {
	g := newGuest(t, Limits{Rate: MinRate, IO: 50})
	g.others = 100
	g.set("io", 100)
	require.NoError(t, Wait(Hurry(With(t.Context(), g.Pacer)), 1<<40))
	require.Zero(t, g.slept)
	require.NoError(t, Wait(t.Context(), 1<<40), "without a pacer")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	why := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	p := newPacer(Limits{Rate: MinRate}, t.TempDir())
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	require.ErrorIs(t, Wait(With(ctx, p), 1<<40), why)
	require.ErrorIs(t, Wait(With(ctx, New(Default())), 1), why)
	require.ErrorIs(t, Wait(ctx, 1), why)
}

func TestTheRateIsHeld(t *testing.T) {
	p := newPacer(Limits{Rate: 16 << 20}, t.TempDir())
	begin := time.Now()
	for range 5 {
		require.NoError(t, Wait(With(t.Context(), p), 1<<20))
	}
	require.GreaterOrEqual(t, time.Since(begin), 4*time.Second/16-10*time.Millisecond, "the first MiB is free")
	require.GreaterOrEqual(t, p.Paused(), 4*time.Second/16-10*time.Millisecond)
}

func TestParse(t *testing.T) {
	require.Equal(t, pressure{1.5, 7 * time.Microsecond}, parse("some avg10=1.50 avg60=x avg300=0 total=7\nfull avg10=9 total=9\n"))
	for _, text := range []string{"", "some", "some avg10=-1 total=1e30", "full avg10=3\n", "some avg10\x00=2"} {
		require.Zero(t, parse(text), text)
	}
}
