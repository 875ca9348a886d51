package waterfall

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The numbers are part of the wire format: names may be added, never moved.
func TestNames(t *testing.T) {
	want := []string{"read", "hash", "compress", "net", "encrypt", "spool", "fsync", "upload", "apply"}
	require.Len(t, want, Stages)
	for i, name := range want {
		require.Equal(t, name, Stage(i).String())
	}
	require.Equal(t, "stage(200)", Stage(200).String())
}

func TestWorst(t *testing.T) {
	var times Times
	worst, percent := times.Worst()
	require.Equal(t, Read, worst)
	require.Zero(t, percent, "nothing was spent")
	times.Spent[Net], times.Spent[Apply], times.Spent[Hash] = 3*time.Second, 6*time.Second, time.Second
	worst, percent = times.Worst()
	require.Equal(t, Apply, worst)
	require.Equal(t, 60, percent)

	earlier := times
	times.Add(Times{Chunks: 2, Spent: [Stages]time.Duration{Net: time.Minute}})
	since := times.Sub(earlier)
	require.Equal(t, Times{Chunks: 2, Spent: [Stages]time.Duration{Net: time.Minute}}, since)
	worst, percent = since.Worst()
	require.Equal(t, Net, worst)
	require.Equal(t, 100, percent)
}

// A chunk has one stage at any time: the stages' times add up to the time that passed.
func TestLapsAddUp(t *testing.T) {
	begin := time.Now()
	lap := Start()
	time.Sleep(time.Millisecond)
	lap.Done(Read)
	lap.Move(Read, Hash, time.Millisecond/2)
	time.Sleep(time.Millisecond)
	lap.Done(Net)
	lap.Move(Net, Fsync, time.Hour) // no more than there is
	var all time.Duration
	for _, d := range lap.Times().Spent {
		require.GreaterOrEqual(t, d, time.Duration(0))
		all += d
	}
	require.Equal(t, time.Millisecond/2, lap.Spent[Hash])
	require.Zero(t, lap.Spent[Net])
	require.GreaterOrEqual(t, lap.Spent[Fsync], time.Millisecond)
	require.GreaterOrEqual(t, lap.Since(begin), all)
	require.LessOrEqual(t, all, time.Since(begin))
	require.Equal(t, int64(1), lap.Times().Chunks)
}

func TestTable(t *testing.T) {
	var table Table
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				table.Add(2, Times{Chunks: 1, Spent: [Stages]time.Duration{Read: time.Millisecond}})
				table.Spend(0, Apply, 3, time.Second)
			}
		})
	}
	wg.Wait()
	got := table.Read()
	require.Len(t, got, 3)
	require.Equal(t, Times{Chunks: 800, Spent: [Stages]time.Duration{Read: 800 * time.Millisecond}}, got[2])
	require.Equal(t, Times{Spent: [Stages]time.Duration{Apply: 2400 * time.Second}}, got[0], "spent by chunks that are counted elsewhere")
	require.Zero(t, got[1])
	got[0].Chunks = 7
	require.Zero(t, table.Read()[0].Chunks, "a copy")
	require.Len(t, table.Take(), 3)
	require.Empty(t, table.Take(), "taken once")
}
