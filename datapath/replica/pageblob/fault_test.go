package pageblob

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/tests/azurite"
)

// newFaultLab is a lab whose writer works through a proxy; what is checked is read
// past it.
func newFaultLab(t *testing.T) (*lab, *azurite.Proxy) {
	p := azurite.NewProxy(t, azurite.Shared(t))
	l := newLabAt(t, func(l *lab) *Store {
		azurite.Shared(t).Account(t, l.dir) // makes the container
		s, err := Open(t.Context(), Config{Account: azurite.AccountAt(p.Endpoint(), l.dir), Limits: azurite.Unlimited()})
		require.NoError(t, err)
		return s
	})
	return l, p
}

func isPagePut(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Query().Get("comp") == "page"
}

// TestFaultsOnTheWay has requests of every kind fail in every way that passes: a busy
// account, errors, broken connections, and replies that are lost after the work was done.
func TestFaultsOnTheWay(t *testing.T) {
	faults := map[string]azurite.Fault{
		"busy":       {Status: http.StatusServiceUnavailable, Code: "ServerBusy"},
		"too many":   {Status: http.StatusTooManyRequests, Code: "TooManyRequests", RetryAfter: "1"},
		"error":      {Status: http.StatusInternalServerError, Code: "InternalError"},
		"lost reply": {LoseReply: true},
		"slow":       {Delay: 30 * time.Millisecond},
	}
	l, p := newFaultLab(t)
	for name, f := range faults {
		var n, fired atomic.Int64
		every := int64(3)
		if f.RetryAfter != "" {
			every = 40 // each costs a second
		}
		p.Set(func(*http.Request) azurite.Fault {
			if n.Add(1)%every == 0 && (f.RetryAfter == "" || fired.Load() < 3) {
				fired.Add(1)
				return f
			}
			return azurite.Fault{}
		})
		for i := range uint64(3) {
			l.must(l.set(changeset.Delta, 30+i).Cut(rt.Crash()))
		}
		points := l.w.State().Points
		_, err := l.w.Delete(t.Context(), []ident.Seq{points[0].ID})
		require.NoError(t, err, name)
		delete(l.images, points[0].ID)
		l.openWriter(1)
		p.Set(nil)
		require.GreaterOrEqual(t, fired.Load(), int64(2), name)
		l.checkNewest(3)
		l.noLitter()
	}
	l.check()
}

// TestEveryReplyIsLostOnce breaks the connection of each request of a change set in
// turn, after it was done, and never repeats it: the change set fails, and is applied
// again.
func TestEveryReplyIsLostOnce(t *testing.T) {
	l, p := newFaultLab(t)
	for at := int64(1); ; at++ {
		require.Less(t, at, int64(60))
		cs := l.set(changeset.Delta, 9+uint64(at)).Cut(rt.Crash()) //nolint:gosec // small
		var n atomic.Int64
		p.Set(func(*http.Request) azurite.Fault {
			if n.Add(1) == at {
				return azurite.Fault{LoseReply: true}
			}
			return azurite.Fault{}
		})
		_, err := l.w.Apply(t.Context(), cs)
		p.Set(nil)
		require.NoError(t, err, "request %d", at)
		l.must(cs)
		if n.Load() < at {
			break
		}
	}
	l.checkNewest(10)
}

// TestLateWriteIsRefused: a write whose connection broke is done by the service much
// later, after the same place was written again. The fence word has risen by then.
func TestLateWriteIsRefused(t *testing.T) {
	l, p := newFaultLab(t)
	late := make(chan struct{})
	var caught atomic.Bool
	p.Set(func(r *http.Request) azurite.Fault {
		if isPagePut(r) && strings.HasSuffix(r.URL.Path, diskSuffix) && !caught.Swap(true) {
			return azurite.Fault{Late: late}
		}
		return azurite.Fault{}
	})
	l.must(rt.After(l.w.State(), changeset.Delta).Write(0, 8*block, rt.Pattern(200, block)).Cut(rt.Crash()))
	require.True(t, caught.Load())
	l.must(rt.After(l.w.State(), changeset.Delta).Write(0, 8*block, rt.Pattern(201, block)).Cut(rt.Crash()))
	close(late)
	p.Late()
	l.must(rt.After(l.w.State(), changeset.Delta).Cut(rt.Crash()))
	points := l.w.State().Points
	got := rt.ReadPoint(l.t, l.reader(), points[len(points)-1])
	require.Equal(t, rt.Pattern(201, block), got[0][8*block:9*block], "the late write came through")
	l.check()
}

// TestFencedInTheMiddle: another owner raises the epoch while a change set is written.
// The account refuses the rest of it, and all the old owner tries afterwards.
func TestFencedInTheMiddle(t *testing.T) {
	l, p := newFaultLab(t)
	other := openStore(t, l.dir)
	var puts atomic.Int64
	p.Set(func(r *http.Request) azurite.Fault {
		if isPagePut(r) && puts.Add(1) == 2 {
			require.NoError(t, other.Fence(t.Context(), l.spec.Machine, 5))
		}
		return azurite.Fault{}
	})
	_, err := l.w.Apply(t.Context(), l.set(changeset.Delta, 50).Cut(rt.Crash()))
	require.ErrorIs(t, err, replica.ErrFenced)
	cs := l.set(changeset.Delta, 51).Cut(rt.Crash())
	n := p.Requests.Load()
	for range 3 {
		_, err = l.w.Apply(t.Context(), cs)
		require.ErrorIs(t, err, replica.ErrFenced)
	}
	require.LessOrEqual(t, p.Requests.Load()-n, int64(3), "it stops: one look each")
	p.Set(nil)
	l.check()
	l.store = other
	l.openWriter(5)
	_, err = l.w.Apply(t.Context(), l.set(changeset.Delta, 52).Cut(rt.Crash()))
	require.ErrorIs(t, err, replica.ErrGap, "a part of the old owner's set may be there")
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
	l.must(l.set(changeset.Base, 53).Cut(rt.Complete()))
	l.check()
}

// TestTwoWritersOfOneEpoch: the newer one has it; the older stops at its next write,
// though nobody raised the epoch.
func TestTwoWritersOfOneEpoch(t *testing.T) {
	l := newLab(t)
	old, _ := l.w.(*Writer)
	w, err := l.store.OpenWriter(t.Context(), 1, l.spec)
	require.NoError(t, err)
	_, err = old.open[l.spec.Disks[0].ID].vhd.put(t.Context(), old.mf.word(), 0, make([]byte, block))
	require.ErrorIs(t, err, replica.ErrFenced, "refused by the account, not by us")
	_, err = old.Apply(t.Context(), l.set(changeset.Delta, 50).Cut(rt.Crash()))
	require.ErrorIs(t, err, replica.ErrFenced)
	require.NoError(t, old.Close())
	l.w = w
	l.must(l.set(changeset.Delta, 51).Cut(rt.Crash()))
	l.check()
}

// TestRefusedForGood: what no repetition mends is told at once, with what the account
// says and without what it must not say.
func TestRefusedForGood(t *testing.T) {
	l, p := newFaultLab(t)
	p.Set(func(*http.Request) azurite.Fault {
		return azurite.Fault{Status: http.StatusForbidden, Code: "AuthorizationPermissionMismatch"}
	})
	cs := l.set(changeset.Delta, 50).Cut(rt.Crash())
	n := p.Requests.Load()
	_, err := l.w.Apply(t.Context(), cs)
	require.ErrorContains(t, err, "AuthorizationPermissionMismatch")
	require.False(t, errors.Is(err, replica.ErrFenced))
	require.Equal(t, n+1, p.Requests.Load())
}
