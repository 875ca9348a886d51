package fault

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

// busyStore is a replica store that applies nothing while it is busy.
type busyStore struct {
	replica.Store
	busy *atomic.Bool
}

type busyWriter struct {
	replica.Writer
	busy *atomic.Bool
}

func (s busyStore) OpenWriter(ctx context.Context, epoch ident.Epoch, spec replica.Spec) (replica.Writer, error) {
	w, err := s.Store.OpenWriter(ctx, epoch, spec)
	if err != nil {
		return nil, err
	}
	return busyWriter{w, s.busy}, nil
}

func (w busyWriter) Apply(ctx context.Context, cs replica.ChangeSet) (replica.Point, error) {
	if w.busy.Load() {
		return replica.Point{}, errors.New("the store is busy")
	}
	return w.Writer.Apply(ctx, cs)
}

// TestCase22AnotherCacheIsNoticed: sets were stored in the cache, so that the agent has
// forgotten what was in them; then the process server is lost, and the new one has another
// directory where the cache was. What is missing is found by comparing, never skipped.
func TestCase22AnotherCacheIsNoticed(t *testing.T) {
	r := rig.New(t, 200*rig.Block)
	var busy atomic.Bool
	r.Configure = func(c *server.Config) { c.Store = busyStore{c.Store, &busy} }
	r.Write(0, 3, text("a"))
	r.StartServer()
	r.Grant(1, cut)
	r.StartAgent(1)
	r.AfterNow()
	before := keep(r)
	busy.Store(true)
	for at := range int64(3) {
		was := r.Status().Stored
		r.Write(0, 20+at, text("b"))
		r.Await("two sets are stored", func(st pipe.Status) bool { return st.Stored.Seq >= was.Seq+2 })
	}
	r.StopServer()
	require.NoError(t, os.RemoveAll(filepath.Join(r.StateDir(), "spool", r.Machine.String())))
	require.NoError(t, os.Rename(filepath.Join(r.Dir, "cache"), filepath.Join(r.Dir, "cache.away")))
	busy.Store(false)
	r.StartServer()
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Nil(t, r.Status().Broken)
	kept(r, before)
}
