package ordered

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOrderAndBounds(t *testing.T) {
	const workers, depth, n = 4, 6, 2000
	var running, inside, most atomic.Int64
	var got []int
	q := New(workers, depth, func(int) error {
		most.Store(max(most.Load(), running.Add(1)))
		if rand.IntN(10) == 0 {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
		running.Add(-1)
		return nil
	}, func(i int, err error) error {
		got = append(got, i)
		inside.Add(-1)
		return err
	})
	for i := range n {
		require.NoError(t, q.Put(i))
		require.LessOrEqual(t, inside.Add(1), int64(depth+2), "one more is handed out, and one being put")
		if i%500 == 0 {
			require.NoError(t, q.Drain())
			require.Len(t, got, i+1)
		}
	}
	require.NoError(t, q.Close())
	require.Len(t, got, n)
	for i, v := range got {
		require.Equal(t, i, v)
	}
	require.LessOrEqual(t, most.Load(), int64(workers))
}

func TestErrors(t *testing.T) {
	bad := errors.New("bad")
	for name, at := range map[string]struct{ work, out int }{"of work": {7, -1}, "of out": {-1, 7}} {
		var fine, freed int
		var worked atomic.Int64
		q := New(2, 3, func(i int) error {
			worked.Add(1)
			if i == at.work {
				return bad
			}
			return nil
		}, func(i int, err error) error {
			if err != nil {
				require.ErrorIs(t, err, bad)
				freed++
				return err
			}
			if i == at.out {
				freed++
				return bad
			}
			fine++
			return nil
		})
		var err error
		n := 0
		for ; n < 1000 && err == nil; n++ {
			err = q.Put(n)
		}
		require.ErrorIs(t, err, bad, name)
		require.ErrorIs(t, q.Drain(), bad, name)
		require.ErrorIs(t, q.Put(n), bad, name)
		require.ErrorIs(t, q.Close(), bad, name)
		require.Equal(t, 7, fine, name)
		require.Equal(t, n+1-7, freed, "every item is given back: "+name)
		require.Less(t, worked.Load(), int64(20), "no work is done after the error: "+name)
	}
}
