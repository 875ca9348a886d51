package server_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const instance = "4210A1B2-0000-0000-0000-000000000001"

var (
	machineID  = ident.NewMachineID("vc", "vm")
	serverPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps1"}
	agentPeer  = wiretest.Agent(machineID)
	disks      = []replica.Disk{
		{Disk: changeset.Disk{ID: ident.NewDiskID(machineID, "a"), Size: 1 << 20}, Name: "Hard disk 1"},
		{Disk: changeset.Disk{ID: ident.NewDiskID(machineID, "b"), Size: 40*4096 + 512}, Name: "Hard disk 2"}, // its last block is short
	}
)

// cache is the cache storage, which can be away for a while.
type cache struct {
	cachestore.Store
	away atomic.Bool
}

func (c *cache) Put(ctx context.Context, n cachestore.Name, content io.ReaderAt, size int64) error {
	if c.away.Load() {
		return errors.New("the cache storage is away")
	}
	return c.Store.Put(ctx, n, content, size)
}

// rig is what outlives a server: its directories, the store, the cache, the CA.
type rig struct {
	t     *testing.T
	ca    *wiretest.CA
	dir   string
	store *file.Store
	cache *cache
	src   *source
	rand  *rand.ChaCha8
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	store, err := file.Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	d, err := cachestore.NewDirectory(filepath.Join(dir, "cache"))
	require.NoError(t, err)
	r := &rig{t: t, ca: wiretest.NewCA(t), dir: dir, store: store, cache: &cache{Store: d}, src: &source{}}
	r.rand = rand.NewChaCha8(sha256.Sum256([]byte(t.Name())))
	for _, d := range disks {
		content := make([]byte, d.Size)
		copy(content[len(content)/2:], r.noise(len(content)/2+1)) // the first half is zeros
		r.src.disks = append(r.src.disks, content)
	}
	return r
}

// noise gives bytes that cannot be compressed, the same at every run.
func (r *rig) noise(n int) []byte {
	b := make([]byte, n)
	_, _ = r.rand.Read(b)
	return b
}

// running is a server between start and stop.
type running struct {
	*server.Server
	*rig
	addr   string
	cancel context.CancelFunc
	served chan error
}

func dataKey(_ context.Context, m ident.MachineID, id string) (changeset.Key, error) {
	return changeset.Key{ID: id, Secret: sha256.Sum256([]byte(m.String() + id))}, nil
}

// start runs a server on the rig's directories.
func (r *rig) start(change ...func(*server.Config)) *running {
	r.t.Helper()
	c := server.Config{
		Name: "ps1", StateDir: filepath.Join(r.dir, "state"), TLS: r.ca.Server(serverPeer), Store: r.store, Cache: r.cache,
		SpoolLimit: 64 << 20, Keys: dataKey, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	}
	for _, f := range change {
		f(&c)
	}
	s, err := server.New(c)
	require.NoError(r.t, err)
	l, err := new(net.ListenConfig).Listen(r.t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	out := &running{Server: s, rig: r, addr: l.Addr().String(), cancel: cancel, served: make(chan error, 1)}
	go func() { out.served <- s.Serve(ctx, l) }()
	r.t.Cleanup(out.stop)
	return out
}

// granted starts a server that has granted the machine.
func (r *rig) granted(change ...func(*server.Config)) *running {
	r.t.Helper()
	s := r.start(change...)
	require.NoError(r.t, s.Grant(r.t.Context(), grant(1)))
	return s
}

// stop ends the server cleanly, once.
func (r *running) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.served:
		require.NoError(r.t, err)
	case <-time.After(patience):
		require.FailNow(r.t, "the server does not stop")
	}
}

func grant(epoch ident.Epoch) stream.Grant {
	return stream.Grant{Epoch: epoch, Instance: instance, Cut: time.Minute, Retention: replica.DefaultRetention(),
		Spec: replica.Spec{Machine: machineID, Name: "web-1", Disks: disks, KeyID: "key-1"}}
}

// greeting is the hello of the machine's agent, freshly started.
func (r *rig) greeting() *wire.Hello {
	h := &wire.Hello{Machine: machineID, Epoch: 1, AgentVersion: "test", Instance: instance, SourceTime: time.Now()}
	for _, d := range disks {
		h.Disks = append(h.Disks, changeset.Disk{ID: d.ID, Size: d.Size})
	}
	return h
}

// state reads the replica as anybody may.
func (r *rig) state() replica.State {
	r.t.Helper()
	reader, err := r.store.OpenReader(r.t.Context(), machineID)
	require.NoError(r.t, err)
	st, err := reader.State(r.t.Context())
	require.NoError(r.t, err)
	require.NoError(r.t, reader.Close())
	return st
}

// holds checks that the point has exactly what the source had.
func (r *rig) holds(point ident.Seq, want *source) {
	r.t.Helper()
	reader, err := r.store.OpenReader(r.t.Context(), machineID)
	require.NoError(r.t, err)
	for i, d := range disks {
		disk, err := reader.OpenDisk(r.t.Context(), point, d.ID)
		require.NoError(r.t, err)
		got := make([]byte, disk.Size())
		_, err = disk.ReadAt(got, 0)
		require.NoError(r.t, err)
		require.Equal(r.t, sha256.Sum256(want.disks[i]), sha256.Sum256(got), "disk %d at point %d", i, point)
		require.NoError(r.t, disk.Close())
	}
	require.NoError(r.t, reader.Close())
}

// status gives the machine's status, which must be there.
func (r *running) status() stream.Status {
	r.t.Helper()
	st, err := r.Status(machineID)
	require.NoError(r.t, err)
	return st
}

func limitSpool(bytes int64) func(*server.Config) {
	return func(c *server.Config) { c.SpoolLimit = bytes }
}
