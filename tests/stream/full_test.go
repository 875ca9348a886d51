package stream

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/session"
	"drover/datapath/cachestore"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/tests/rig"
)

// awayCache is a cache storage that takes nothing while it is away.
type awayCache struct {
	cachestore.Store
	away atomic.Bool
}

func (c *awayCache) Put(ctx context.Context, n cachestore.Name, content io.ReaderAt, size int64) error {
	if c.away.Load() {
		return errors.New("the cache storage is away")
	}
	return c.Store.Put(ctx, n, content, size)
}

// refusedAsFull counts the sessions that ended because the spool was full, and
// fails on any that ended for something inside the server.
func refusedAsFull(r *rig.Rig) (n int) {
	r.T.Helper()
	for _, err := range r.Ended() {
		var refused *session.Refused
		if !errors.As(err, &refused) {
			continue
		}
		require.NotEqual(r.T, wire.CodeInternal, refused.Code, "%v", err)
		if refused.Code == wire.CodeFull {
			require.Positive(r.T, refused.RetryAfter)
			n++
		}
	}
	return n
}

// fillAndRecover writes until the agent is told that the spool is full, makes room, and sees that replication goes on by itself and has lost nothing.
func fillAndRecover(r *rig.Rig, room func()) {
	r.T.Helper()
	generation := r.Status().Generation
	fill(r)
	room()
	last := r.AfterNow()
	require.Equal(r.T, r.Digest(), r.DigestAt(last))
	st := r.Await("all is applied", func(st pipe.Status) bool { return st.BacklogSets == 0 })
	require.Nil(r.T, st.Broken)
	require.Equal(r.T, generation, st.Generation, "no resync")
}

// fill changes the disk until the spool is full.
func fill(r *rig.Rig) {
	r.T.Helper()
	const some = 16 // blocks
	rnd := rand.NewChaCha8([32]byte{1})
	rnd64, data := rand.New(rnd), make([]byte, some*rig.Block) //nolint:gosec // any bytes
	for begin := time.Now(); refusedAsFull(r) == 0; {
		require.Less(r.T, time.Since(begin), rig.Limit, "the spool is not full")
		_, _ = rnd.Read(data)
		r.Write(0, rnd64.Int64N(r.Disks[0].Size/rig.Block-some), data)
		time.Sleep(20 * time.Millisecond)
	}
}

// TestFullSpoolIsToldAndEndsByItself: the limit is reached while the cache storage
// is away.
func TestFullSpoolIsToldAndEndsByItself(t *testing.T) {
	const size, limit = 2 << 20, 3 << 20
	r := rig.New(t, size)
	var cache *awayCache
	r.Configure = func(c *server.Config) {
		c.SpoolLimit = limit
		cache = &awayCache{Store: c.Cache}
		c.Cache = cache
	}
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	cache.away.Store(true)
	fillAndRecover(r, func() { cache.away.Store(false) })
}

// TestFullFileSystemOfTheSpool: others have filled the spool's file system, long
// before its limit.
func TestFullFileSystemOfTheSpool(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts take root")
	}
	const size = 2 << 20
	r := rig.New(t, size)
	require.NoError(t, os.MkdirAll(r.StateDir(), 0o700))
	run(t, "mount", "-t", "tmpfs", "-o", "size=16m", "none", r.StateDir())
	t.Cleanup(func() { r.StopAgent(); r.StopServer(); run(t, "umount", r.StateDir()) })
	other := filepath.Join(r.StateDir(), "other")
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	require.Error(t, os.WriteFile(other, make([]byte, 16<<20), 0o600), "it fills what there is")
	fillAndRecover(r, func() { require.NoError(t, os.Remove(other)) })
}
