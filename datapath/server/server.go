// Package server is the receiving end of replication, a process server or a master
// target: it lets agents of granted machines stream, spools what they send, and
// has it carried on into the replica.
//
//	server.go   the server: sessions come in, a clean stop
//	gate.go     connections before anybody knows whose they are
//	streams.go  what the control plane asks for (stream.Streams)
//	grant.go    grants on disk
//	machine.go  one machine: replica, pipeline, what is known of it
//	status.go   what is told of it
//	places.go   which store and spool are the server's
//	load.go     what is told of the server's health
//	session.go  one agent's session: hello, welcome, the loop
//	pace.go     how fast it is read
//	group.go    consistency groups: when their rounds are, and what came of them
//	round.go    one round: all its machines at one moment, or the names of those that missed it
//	receive.go  a change set, from Begin to End
//	chunk.go    its chunks: checked beside each other, written in order
//	verify.go   comparing a machine's source with its replica: who asks for it; verify_answer.go
//	            answers the agent, verify_replica.go reads the replica, verify_record.go signs
//	metrics.go  counters
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/compress"
	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
	"drover/datapath/spool"
	"drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/datapath/vfs"
	"drover/datapath/wire"
)

// Bounds of a server.
const (
	maxSessions  = 1024
	maxMachines  = 4096
	maxHeaders   = 16 << 10 // bytes of an upgrade request
	baseSetBytes = 32 << 20 // plain data of one base set
	stopLimit    = 20 * time.Second
	watchEvery   = time.Second
	retryBusy    = time.Second     // when an agent refused for something short comes back
	retryFull    = 3 * time.Second // when the spool was full
	retryBroken  = 2 * time.Second // when a resync must be asked for first
	retryVersion = time.Minute     // when agent or server must be upgraded first
)

// GCPercent is for debug.SetGCPercent in a process that runs a Server: chunks come and
// go by the MiB, and with the default so much garbage of theirs would wait that a server
// of 32 streams needs twice what it holds.
const GCPercent = 40

// Config of a server. All fields but Version, FS, DiskByID, Denied, Metrics and the timeouts are needed.
type Config struct {
	Name     string // in the certificate and in logs
	Version  string // of this server; which agents it takes follows from it. Empty: all
	StateDir string // grants and the spool
	FS       vfs.FS // of StateDir; nil is the system's
	TLS      *tls.Config
	Store    replica.Store
	Cache    cachestore.Store
	// SpoolLimit bounds the spool in bytes.
	SpoolLimit int64
	// Throttle limits what all agents together may send.
	Throttle throttle.Schedule
	Keys     func(ctx context.Context, machine ident.MachineID, id string) (changeset.Key, error)
	// DiskByID has a link per attached disk, named by its backing's uuid (master target).
	DiskByID string
	// Denied reports revoked certificates.
	Denied  func(ident.Peer) bool
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	// IdleTimeout ends a session that is silent; HandshakeTimeout a connection that has
	// not said hello. 0: wire's.
	IdleTimeout, HandshakeTimeout time.Duration
	// VerifyPatience ends a comparison that comes no further; 0: half an hour.
	VerifyPatience time.Duration
}

// Server is a process server's or master target's data path.
type Server struct {
	Config
	spool   *spool.Spool
	metrics *metrics
	started time.Time
	line    *throttle.Limiter // what all agents share
	slots   *pipeline.Slots   // what all pipelines share
	drained atomic.Int64      // bytes applied since the start
	groups  groups

	mu       sync.Mutex
	machines map[ident.MachineID]*machine
	sessions int
	stopping bool
	records  map[ident.MachineID]stream.Verified // the newest comparisons
	wg       sync.WaitGroup                      // sessions

	checking chan struct{} // one place per chunk that may be checked at a time
	scratch  sync.Pool     // *[]byte: memory for a chunk, decoded or encoded
	held     atomic.Int64  // bytes of decoded data that wait to be applied

	halt    context.Context // ends when the server stops
	stopped context.CancelFunc
}

var _ stream.Streams = (*Server)(nil)

// New opens the spool and the grants. What an earlier run acknowledged is carried
// on from here.
func New(c Config) (*Server, error) {
	if c.Denied == nil {
		c.Denied = func(ident.Peer) bool { return false }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = wire.IdleTimeout
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = wire.HandshakeTimeout
	}
	sp, err := spool.OpenFS(c.FS, filepath.Join(c.StateDir, "spool"), c.SpoolLimit)
	if err != nil {
		return nil, err
	}
	s := &Server{Config: c, spool: sp, machines: map[ident.MachineID]*machine{}, records: map[ident.MachineID]stream.Verified{}, started: time.Now(),
		checking: make(chan struct{}, 2*runtime.GOMAXPROCS(0)), scratch: sync.Pool{New: newScratch},
		line: throttle.NewLimiter(c.Throttle), slots: pipeline.NewSlots()}
	if err := s.checkPlaces(context.Background()); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	s.halt, s.stopped = context.WithCancel(context.Background())
	s.metrics = newMetrics(c.Metrics, s)
	s.readRecords(context.Background())
	if err := durable.MkdirAll(s.FS, s.grantDir(), 0o700); err != nil {
		return nil, fmt.Errorf("open the grants: %w", err)
	}
	records, err := s.readGrants()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		m := newMachine(s, r)
		s.machines[m.id] = m
	}
	return s, nil
}

func newScratch() any {
	b := compress.Memory()
	return &b
}

// Serve takes sessions until ctx ends, then stops gracefully. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc(wire.Path, s.upgrade)
	srv := &http.Server{
		Handler: mux, TLSConfig: s.TLS, MaxHeaderBytes: maxHeaders,
		ReadTimeout: s.HandshakeTimeout, ReadHeaderTimeout: s.HandshakeTimeout, ConnContext: withStranger,
		IdleTimeout: wire.IdleTimeout, ErrorLog: slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1 only
	}
	failed, served := make(chan error, 1), make(chan struct{})
	gate := newGate(listener, s.HandshakeTimeout, s.metrics)
	s.metrics.watchGate(gate)
	go func() { defer close(served); failed <- srv.ServeTLS(gate, "", "") }()
	watched := make(chan struct{})
	watching, stopWatching := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		var both sync.WaitGroup
		both.Go(func() { s.watch(watching) })
		both.Go(func() { s.watchGroups(watching) })
		both.Wait()
	}()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopWatching()
	<-watched
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	shutErr := srv.Shutdown(limited)
	<-served // and with it the listener is closed
	return errors.Join(err, shutErr, s.stop())
}

// stop ends all sessions and closes all machines. Grants stay.
func (s *Server) stop() error {
	s.mu.Lock()
	s.stopping = true
	machines := s.list()
	s.mu.Unlock()
	s.stopped()
	for _, m := range machines {
		m.endSession(&wire.Refuse{Code: wire.CodeStopped, Detail: "the server is stopping", RetryAfter: retryBusy})
	}
	s.wg.Wait()
	var err error
	for _, m := range machines {
		m.op.Lock()
		m.gone = errStopping
		err = errors.Join(err, m.close())
		m.op.Unlock()
	}
	return errors.Join(err, s.spool.Close())
}

// list gives the machines; mu is held.
func (s *Server) list() []*machine {
	out := make([]*machine, 0, len(s.machines))
	for _, m := range s.machines {
		out = append(out, m)
	}
	return out
}

// watch opens machines that are not open and marks those whose agents stay away.
func (s *Server) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var opening sync.WaitGroup
	defer opening.Wait()
	for {
		s.mu.Lock()
		machines := s.list()
		s.mu.Unlock()
		for _, m := range machines {
			if !m.ready() {
				opening.Go(func() { m.tryOpen(ctx) })
			}
			m.watch()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// upgrade takes one agent's connection.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many sessions, or the server is stopping", http.StatusServiceUnavailable)
		s.metrics.refused.WithLabelValues(wire.CodeBusy.String()).Inc()
		return
	}
	defer s.leave()
	conn, err := wire.Upgrade(w, r)
	if err != nil {
		s.Logger.Warn("a connection for a stream was refused", "remote", r.RemoteAddr, "error", err.Error())
		return
	}
	conn.SetIdleTimeout(s.IdleTimeout)
	s.session(conn, known(r))
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || s.sessions >= maxSessions {
		return false
	}
	s.sessions++
	s.wg.Add(1)
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
	s.wg.Done()
}

// machine finds a machine by its id; replica.ErrNotFound without a grant.
func (s *Server) machine(id ident.MachineID) (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[id]
	if m == nil {
		return nil, fmt.Errorf("machine %s has no grant on %s: %w", id, s.Name, replica.ErrNotFound)
	}
	return m, nil
}
