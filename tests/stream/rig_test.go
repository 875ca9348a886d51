package stream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/quiesce"
	"drover/agent/session"
	"drover/agent/tracker/scan"
	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
	"drover/tests/ports"
)

const (
	block    = 4096
	instance = "4c4c4544-0042-3510-8054-b7c04f4e4d31"
	limit    = 30 * time.Second // of any wait; everything here takes far less
	look     = 5 * time.Millisecond
)

// rig is a machine with its disks, and a server.
type rig struct {
	t       *testing.T
	dir     string
	machine ident.MachineID
	disks   []controlapi.Disk
	ca      *wiretest.CA
	dial    wire.DialFunc
	device  string // of the first disk, instead of its image file
	hooks   *quiesce.Hooks

	compression codec.Choice

	server  *server.Server
	address string
	stop    func() // stops the server

	source    *session.Source
	stopAgent func()
}

var serverPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// newRig makes the disks as sparse files; nothing runs yet.
func newRig(t *testing.T, sizes ...int64) *rig {
	r := &rig{t: t, dir: t.TempDir(), machine: ident.NewMachineID("vc", t.Name()), ca: wiretest.NewCA(t), hooks: &quiesce.Hooks{}}
	for i, size := range sizes {
		uuid := string(rune('a' + i))
		require.NoError(t, os.WriteFile(r.path(uuid), nil, 0o600))
		require.NoError(t, os.Truncate(r.path(uuid), size))
		r.disks = append(r.disks, controlapi.Disk{ID: ident.NewDiskID(r.machine, uuid), BackingUUID: uuid, Size: size})
	}
	t.Cleanup(func() {
		if r.stopAgent != nil {
			r.stopAgent()
		}
		if r.stop != nil {
			r.stop()
		}
	})
	return r
}

func (r *rig) path(uuid string) string { return filepath.Join(r.dir, "disk-"+uuid) }

func (r *rig) find(uuid string) (string, error) {
	if r.device != "" && uuid == r.disks[0].BackingUUID {
		return r.device, nil
	}
	return r.path(uuid), nil
}

func (r *rig) log() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// startServer runs the server, on the same address every time.
func (r *rig) startServer() {
	r.t.Helper()
	store, err := file.Open(filepath.Join(r.dir, "store"))
	require.NoError(r.t, err)
	cache, err := cachestore.NewDirectory(filepath.Join(r.dir, "cache"))
	require.NoError(r.t, err)
	r.server, err = server.New(server.Config{
		Name: serverPeer.Name, StateDir: filepath.Join(r.dir, "server"), TLS: r.ca.Server(serverPeer),
		Store: store, Cache: cache, SpoolLimit: 1 << 30, Logger: r.log().With("side", "server"),
		Keys: func(context.Context, ident.MachineID, string) (changeset.Key, error) {
			return changeset.Key{ID: "k", Secret: [32]byte{7}}, nil
		},
	})
	require.NoError(r.t, err)
	if r.address == "" {
		r.address, err = ports.Free()
		require.NoError(r.t, err)
	}
	listener, err := net.Listen("tcp", r.address)
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, listener) }()
	r.stop = func() {
		cancel()
		require.NoError(r.t, <-done)
		require.NoError(r.t, store.Close())
		r.stop = nil
	}
}

// grant lets the machine stream in the epoch.
func (r *rig) grant(epoch ident.Epoch, cut time.Duration) {
	r.t.Helper()
	spec := replica.Spec{Machine: r.machine, Name: "m", KeyID: "k"}
	for _, d := range r.disks {
		spec.Disks = append(spec.Disks, replica.Disk{Disk: changeset.Disk{ID: d.ID, Size: d.Size}, BackingUUID: d.BackingUUID})
	}
	require.NoError(r.t, r.server.Grant(r.t.Context(), pipe.Grant{
		Epoch: epoch, Instance: instance, Spec: spec, Cut: cut, Retention: replica.DefaultRetention(), Compression: r.compression,
	}))
}

// startAgent runs sessions one after another, as the agent's daemon does.
func (r *rig) startAgent(epoch ident.Epoch) {
	self := ident.Peer{Role: ident.RoleAgent, Name: r.machine.String()}
	r.source = session.NewSource(session.Options{
		Machine: r.machine, Instance: instance, Version: "test", Tracker: scan.New(), Hooks: r.hooks,
		Find: r.find, Logger: r.log().With("side", "agent"),
	})
	target := session.Target{Epoch: epoch, Address: r.address, TLS: r.ca.Client(self, serverPeer), Dial: r.dial, Disks: r.disks}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	source := r.source
	wg.Go(func() {
		for ctx.Err() == nil {
			err := source.Run(ctx, target)
			r.log().Info("session ended", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	r.stopAgent = func() {
		cancel()
		wg.Wait()
		require.NoError(r.t, source.Close(context.Background()))
		r.stopAgent = nil
	}
}

func (r *rig) status() pipe.Status {
	r.t.Helper()
	st, err := r.server.Status(r.machine)
	require.NoError(r.t, err)
	return st
}

func (r *rig) await(what string, ready func(pipe.Status) bool) pipe.Status {
	r.t.Helper()
	var st pipe.Status
	require.Eventually(r.t, func() bool { st = r.status(); return ready(st) }, limit, look, what)
	return st
}

// afterNow waits for a recovery point whose cut began after this call.
func (r *rig) afterNow() replica.Point {
	r.t.Helper()
	now := time.Now()
	r.await("a point from now on", func(st pipe.Status) bool { return st.PointTime.After(now) })
	points := r.points()
	return points[len(points)-1]
}

func (r *rig) reader() replica.Reader {
	r.t.Helper()
	store, err := file.Open(filepath.Join(r.dir, "store"))
	require.NoError(r.t, err)
	reader, err := store.OpenReader(r.t.Context(), r.machine)
	require.NoError(r.t, err)
	return reader
}

func (r *rig) points() []replica.Point {
	r.t.Helper()
	st, err := r.reader().State(r.t.Context())
	require.NoError(r.t, err)
	return st.Points
}

// digestAt is the content of all disks at a point.
func (r *rig) digestAt(p replica.Point) string {
	r.t.Helper()
	h := sha256.New()
	reader := r.reader()
	for _, d := range r.disks {
		disk, err := reader.OpenDisk(r.t.Context(), p.ID, d.ID)
		require.NoError(r.t, err)
		_, err = io.Copy(h, io.NewSectionReader(disk, 0, disk.Size()))
		require.NoError(r.t, err)
		require.NoError(r.t, disk.Close())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// digest is the content of all disks now.
func (r *rig) digest() string {
	r.t.Helper()
	h := sha256.New()
	for _, d := range r.disks {
		b, err := os.ReadFile(r.path(d.BackingUUID))
		require.NoError(r.t, err)
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// write changes one block of a disk; nil punches zeros.
func (r *rig) write(disk int, at int64, data []byte) {
	r.t.Helper()
	f, err := os.OpenFile(r.path(r.disks[disk].BackingUUID), os.O_WRONLY, 0)
	require.NoError(r.t, err)
	if data == nil {
		data = make([]byte, block)
	}
	_, err = f.WriteAt(data, at*block)
	require.NoError(r.t, err)
	require.NoError(r.t, f.Close())
}
