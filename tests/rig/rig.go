// Package rig joins the two ends of the data path in one process: a machine with its
// disks and an agent's source of sessions, and a server with its store, over real TLS
// on loopback. Tests of faults between the two build on it.
package rig

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/quiesce"
	"drover/agent/session"
	"drover/agent/tracker"
	"drover/agent/tracker/scan"
	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/datapath/vfs"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
	"drover/tests/ports"
)

// What the rig is like.
const (
	Block    = 4096 // bytes
	Instance = "4c4c4544-0042-3510-8054-b7c04f4e4d31"
	Limit    = 30 * time.Second // of any wait; everything here takes far less
	look     = 5 * time.Millisecond
)

// Rig is a machine with its disks, and a server. Its fields may be set while what
// they are for does not run.
type Rig struct {
	T       *testing.T
	Dir     string
	Machine ident.MachineID
	Name    string // of the machine, for people
	Disks   []controlapi.Disk
	CA      *wiretest.CA
	Dial    wire.DialFunc     // the agent's; nil: directly
	Via     string            // where the agent dials, instead of the server's address
	Device  string            // of the first disk, instead of its image file
	Devices map[string]string // of disks by their backing's uuid, instead of their image files
	Hooks   *quiesce.Hooks
	// Version of the agents that start; New says "test".
	Version string
	// SkipFree has the agent leave out what file systems have free.
	SkipFree bool
	// OpenCopy opens a shadow copy for the agent; nil: there are none.
	OpenCopy func(device string) (*disk.Disk, error)
	// Track wraps the agent's tracker; nil: as it is.
	Track func(tracker.Tracker) tracker.Tracker
	// Compression and Throttle of the grants that follow.
	Compression codec.Choice
	Throttle    []throttle.Rule
	// Metrics of the agent; nil: none.
	Metrics *session.Metrics
	// Copy is the hardware uuid of the copy of the machine that the grants that follow are
	// for; empty: Instance.
	Copy string
	// App is the cadence of application-consistent points in the grants that follow.
	App time.Duration
	// Group is the consistency group of the grants that follow; nil: none.
	Group *pipe.Group
	// Documents of the grants that follow.
	Documents map[string]string
	// Retention of the grants that follow; with Keep 0 the default.
	Retention replica.Retention
	// Stores opens the replica store and the cache storage; nil: directories on FS.
	Stores func() (replica.Store, cachestore.Store)
	// FS is where the server's files are; nil: the system's, in Dir.
	FS vfs.FS
	// IdleTimeout of both sides; 0: wire's.
	IdleTimeout time.Duration
	// Configure changes the server's configuration before it starts; nil: as it is.
	Configure func(*server.Config)

	Server  *server.Server
	Address string // of the server, the same at every start
	stop    func() error

	epoch     ident.Epoch // of the newest grant
	target    atomic.Pointer[session.Target]
	source    *session.Source
	stopAgent func()
	mu        sync.Mutex
	ended     []error // of the agent's sessions
}

// ServerPeer is who the server's certificate says it is.
var ServerPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// New makes the disks as sparse files; nothing runs yet.
func New(t *testing.T, sizes ...int64) *Rig {
	return newMachine(t, t.Name(), wiretest.NewCA(t), sizes)
}

// Another makes another machine of the same server, which must run.
func (r *Rig) Another(name string, sizes ...int64) *Rig {
	r.T.Helper()
	out := newMachine(r.T, name, r.CA, sizes)
	out.Server, out.Address = r.Server, r.Address
	return out
}

func newMachine(t *testing.T, name string, ca *wiretest.CA, sizes []int64) *Rig {
	r := &Rig{T: t, Dir: t.TempDir(), Machine: ident.NewMachineID("vc", name), Name: name, Version: "test", CA: ca, Hooks: &quiesce.Hooks{}}
	for i, size := range sizes {
		r.AddDisk(string(rune('a'+i)), size)
	}
	t.Cleanup(func() {
		r.StopAgent()
		r.StopServer()
	})
	return r
}

// AddDisk makes one more disk.
func (r *Rig) AddDisk(uuid string, size int64) {
	r.T.Helper()
	require.NoError(r.T, os.WriteFile(r.Path(uuid), nil, 0o600))
	require.NoError(r.T, os.Truncate(r.Path(uuid), size))
	r.Disks = append(r.Disks, controlapi.Disk{ID: ident.NewDiskID(r.Machine, uuid), BackingUUID: uuid, Size: size})
}

// StopServer stops the server, if it runs.
func (r *Rig) StopServer() {
	r.T.Helper()
	if r.stop != nil {
		require.NoError(r.T, r.stop())
	}
}

// DropServer stops a server that has lost its file system: it may not end well.
func (r *Rig) DropServer() { _ = r.stop() }

// StopAgent stops the agent, if it runs.
func (r *Rig) StopAgent() {
	if r.stopAgent != nil {
		r.stopAgent()
	}
}

// Ended gives how the agent's sessions have ended so far.
func (r *Rig) Ended() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ended)
}

// State gives what the agent is doing.
func (r *Rig) State() session.State { return r.source.State() }

// AgentPeer is who the agent's certificate says it is.
func (r *Rig) AgentPeer() ident.Peer { return wiretest.Agent(r.Machine) }

// StateDir is the server's state: grants and the spool.
func (r *Rig) StateDir() string { return filepath.Join(r.Dir, "server") }

// StoreDir is the replica store.
func (r *Rig) StoreDir() string { return filepath.Join(r.Dir, "store") }

// Path is the image file of a disk.
func (r *Rig) Path(uuid string) string { return filepath.Join(r.Dir, "disk-"+uuid) }

func (r *Rig) find(uuid string) (string, error) {
	if r.Device != "" && uuid == r.Disks[0].BackingUUID {
		return r.Device, nil
	}
	if path, ok := r.Devices[uuid]; ok {
		return path, nil
	}
	return r.Path(uuid), nil
}

// Log is where both sides log to.
func (r *Rig) Log() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

func (r *Rig) fs() vfs.FS {
	if r.FS != nil {
		return r.FS
	}
	return vfs.OS
}

func (r *Rig) store() replica.Store {
	r.T.Helper()
	if r.Stores != nil {
		store, _ := r.Stores()
		return store
	}
	store, err := file.OpenFS(r.fs(), r.StoreDir())
	require.NoError(r.T, err)
	return store
}

// Cache is the cache storage as anybody may open it.
func (r *Rig) Cache() cachestore.Store {
	r.T.Helper()
	if r.Stores != nil {
		_, cache := r.Stores()
		return cache
	}
	cache, err := cachestore.NewDirectoryFS(r.fs(), filepath.Join(r.Dir, "cache"))
	require.NoError(r.T, err)
	return cache
}

// StartServer runs the server, on the same address every time.
func (r *Rig) StartServer() {
	r.T.Helper()
	store, cache := r.store(), r.Cache()
	config := server.Config{
		Name: ServerPeer.Name, StateDir: r.StateDir(), TLS: r.CA.Server(ServerPeer), FS: r.fs(),
		Store: store, Cache: cache, SpoolLimit: 1 << 30, Logger: r.Log().With("side", "server"),
		Keys: func(context.Context, ident.MachineID, string) (changeset.Key, error) {
			return changeset.Key{ID: "k", Secret: [32]byte{7}}, nil
		},
		IdleTimeout: r.IdleTimeout,
	}
	if r.Configure != nil {
		r.Configure(&config)
	}
	s, err := server.New(config)
	require.NoError(r.T, err)
	r.Server = s
	if r.Address == "" {
		r.Address, err = ports.Free()
		require.NoError(r.T, err)
	}
	listener, err := net.Listen("tcp", r.Address)
	require.NoError(r.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, listener) }()
	r.stop = func() error {
		cancel()
		r.stop = nil
		err := <-done
		if c, ok := store.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
		return err
	}
}

// Grant lets the machine stream in the epoch.
func (r *Rig) Grant(epoch ident.Epoch, cut time.Duration) {
	r.T.Helper()
	r.epoch = epoch
	spec := replica.Spec{Machine: r.Machine, Name: r.Name, KeyID: "k", Documents: r.Documents}
	for _, d := range r.Disks {
		spec.Disks = append(spec.Disks, replica.Disk{Disk: changeset.Disk{ID: d.ID, Size: d.Size}, BackingUUID: d.BackingUUID})
	}
	retention := r.Retention
	if retention.Keep == 0 {
		retention = replica.DefaultRetention()
	}
	require.NoError(r.T, r.Server.Grant(r.T.Context(), pipe.Grant{
		Epoch: epoch, Instance: cmp.Or(r.Copy, Instance), Spec: spec, Cut: cut, App: r.App, Group: r.Group, Retention: retention, Compression: r.Compression, Throttle: r.Throttle,
	}))
}

// StartAgent runs sessions one after another, as the agent's daemon does.
func (r *Rig) StartAgent(epoch ident.Epoch) {
	var stop func()
	r.target.Store(r.newTarget(epoch))
	r.source, stop = r.agent(&r.target)
	r.stopAgent = func() {
		r.stopAgent = nil
		stop()
	}
}

// Assign lets the agent's next sessions be for another epoch, or for other disks.
func (r *Rig) Assign(epoch ident.Epoch) { r.target.Store(r.newTarget(epoch)) }

// Twin runs another agent of the same machine until it is stopped.
func (r *Rig) Twin(epoch ident.Epoch) (stop func()) {
	target := new(atomic.Pointer[session.Target])
	target.Store(r.newTarget(epoch))
	_, stop = r.agent(target)
	return stop
}

func (r *Rig) newTarget(epoch ident.Epoch) *session.Target {
	target := &session.Target{Epoch: epoch, Address: r.Address, TLS: r.CA.Client(r.AgentPeer(), ServerPeer), Dial: r.Dial, Disks: slices.Clone(r.Disks),
		IdleTimeout: r.IdleTimeout}
	if r.Via != "" {
		target.Address = r.Via
	}
	return target
}

func (r *Rig) agent(target *atomic.Pointer[session.Target]) (*session.Source, func()) {
	track := tracker.Tracker(scan.New())
	if r.Track != nil {
		track = r.Track(track)
	}
	source := session.NewSource(session.Options{
		Machine: r.Machine, Instance: Instance, Version: r.Version, Tracker: track, Hooks: r.Hooks,
		Find: r.find, OpenCopy: r.OpenCopy, SkipFree: r.SkipFree, Metrics: r.Metrics, Logger: r.Log().With("side", "agent"),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			err := source.Run(ctx, *target.Load())
			r.Log().Info("session ended", "error", err)
			r.mu.Lock()
			r.ended = append(r.ended, err)
			r.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	return source, func() {
		cancel()
		wg.Wait()
		require.NoError(r.T, source.Close(context.Background()))
	}
}

// Status gives the machine's status.
func (r *Rig) Status() pipe.Status {
	r.T.Helper()
	st, err := r.Server.Status(r.Machine)
	require.NoError(r.T, err)
	return st
}

// Await waits until the status is so.
func (r *Rig) Await(what string, ready func(pipe.Status) bool) pipe.Status {
	r.T.Helper()
	var st pipe.Status
	require.Eventually(r.T, func() bool { st = r.Status(); return ready(st) }, Limit, look, what)
	return st
}

// AfterNow waits for a recovery point whose cut was begun after this call.
func (r *Rig) AfterNow() replica.Point {
	r.T.Helper()
	ctx, cancel := context.WithTimeout(r.T.Context(), Limit)
	defer cancel()
	p, err := r.Server.Cut(ctx, r.Machine, r.epoch, false)
	require.NoError(r.T, err, "a point from now on")
	return p
}

// Reader reads the replica as anybody may.
func (r *Rig) Reader() replica.Reader {
	r.T.Helper()
	reader, err := r.TryReader()
	require.NoError(r.T, err)
	return reader
}

// TryReader is Reader, of a replica that may not be there yet.
func (r *Rig) TryReader() (replica.Reader, error) {
	r.T.Helper()
	return r.store().OpenReader(r.T.Context(), r.Machine)
}

// Points gives the recovery points.
func (r *Rig) Points() []replica.Point {
	r.T.Helper()
	st, err := r.Reader().State(r.T.Context())
	require.NoError(r.T, err)
	return st.Points
}

// DigestAt is the content of all disks at a point, as they were then.
func (r *Rig) DigestAt(p replica.Point) string {
	r.T.Helper()
	h := sha256.New()
	reader := r.Reader()
	for _, d := range p.Disks {
		disk, err := reader.OpenDisk(r.T.Context(), p.ID, d.ID)
		require.NoError(r.T, err)
		_, err = io.Copy(h, io.NewSectionReader(disk, 0, disk.Size()))
		require.NoError(r.T, err)
		require.NoError(r.T, disk.Close())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Digest is the content of all disks now.
func (r *Rig) Digest() string {
	r.T.Helper()
	var paths []string
	for _, d := range r.Disks {
		paths = append(paths, r.Path(d.BackingUUID))
	}
	return DigestOf(r.T, paths...)
}

// DigestOf is the content of image files, one after the other.
func DigestOf(t *testing.T, paths ...string) string {
	t.Helper()
	h := sha256.New()
	for _, path := range paths {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Write changes one Block of a disk; nil punches zeros.
func (r *Rig) Write(disk int, at int64, data []byte) {
	r.T.Helper()
	f, err := os.OpenFile(r.Path(r.Disks[disk].BackingUUID), os.O_WRONLY, 0)
	require.NoError(r.T, err)
	if data == nil {
		data = make([]byte, Block)
	}
	_, err = f.WriteAt(data, at*Block)
	require.NoError(r.T, err)
	require.NoError(r.T, f.Close())
}
