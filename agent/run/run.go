// Package run is the agent as a program that never ends by itself: it enrols,
// tells the configuration server that it lives, and does what it is assigned.
//
//	run.go         the parts and how they start and stop
//	identity.go    the certificate: tokens, renewal, what happens when it has expired
//	assignments.go the long poll
//	replicate.go   sessions, one after another
//	reach.go       whether a server can be reached
//	heartbeat.go   what is told of the machine
//	told.go        what is told of the agent, in the guest
//	limits.go      memory and priority
//	tracker*.go    how changes are found
//	lock_*.go      one agent for one state directory
//	system_*.go    what the system has for it
package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/enrol"
	"drover/agent/pace"
	"drover/agent/proxy"
	"drover/agent/quiesce"
	"drover/agent/session"
	"drover/agent/status"
	"drover/agent/tracker/choose"
)

// Bounds and cadences.
const (
	heartbeatEvery = 5 * time.Second
	inventoryEvery = 5 * time.Minute // it goes out with the first heartbeat, and when it has changed
	preflightEvery = 6 * time.Hour
	pollWait       = 20 * time.Second
	backoffFirst   = 200 * time.Millisecond
	backoffMost    = 10 * time.Second
	stopLimit      = 10 * time.Second
	metricsTimeout = 10 * time.Second
	// frozenMarker stands in the state directory while the machine is frozen.
	frozenMarker = "frozen"
)

// Agent is a running agent.
type Agent struct {
	config   *config.Config
	version  string
	started  time.Time
	log      *slog.Logger
	identity *enrol.Identity
	control  *controlapi.Client
	dial     controlapi.Dial
	watch    disk.Watch
	pacer    *pace.Pacer
	metrics  *prometheus.Registry
	cuts     *session.Metrics
	hooks    *quiesce.Hooks
	source   atomic.Pointer[session.Source] // nil until there is an identity
	tracker  atomic.Pointer[choose.Tracker] // the same
	memory   atomic.Int64                   // the limit in force
	assigned *latest
	told     told
}

// Run runs the agent until ctx ends. The gate is what the log is written through.
func Run(ctx context.Context, c *config.Config, version string, log *slog.Logger, gate *quiesce.Gate) error {
	dial, err := proxy.Dialer(c.Proxy)
	if err != nil {
		return err
	}
	unlock, err := lockState(c.State)
	if err != nil {
		return err
	}
	defer unlock()
	thawed, leftErr := quiesce.RecoverFileSystems(filepath.Join(c.State, frozenMarker)) // before anything is written
	a := &Agent{config: c, version: version, started: time.Now(), log: log, dial: dial, pacer: pace.New(c.Limits.Pace()), assigned: newLatest(),
		watch: disk.Watch{Finder: disk.Finder{Paths: c.Disks}}, metrics: prometheus.NewRegistry()}
	a.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.cuts = session.NewMetrics(a.metrics)
	a.keepMemory(controlapi.Assignment{})
	a.hooks = a.makeHooks(gate)
	if thawed > 0 || leftErr != nil {
		log.Warn("file systems were still frozen from before; they are thawed", "number", thawed, "error", fmt.Sprint(leftErr))
	}
	if err := yieldToOthers(c.Limits.Nice); err != nil {
		a.told.problem(partPriority, err.Error())
		log.Warn("the guest's own programs do not go first", "error", err.Error())
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { a.showStatus(ctx) })
	if a.identity, err = a.enrol(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while it waited
		}
		return err
	}
	a.told.identity(a.identity)
	return a.work(ctx)
}

// work does what there is to do once there is an identity.
func (a *Agent) work(ctx context.Context) error {
	c, log := a.config, a.log
	machine, err := a.identity.Peer.Machine()
	if err != nil {
		return fmt.Errorf("the identity under %s: %w", c.State, err)
	}
	a.control = a.identity.ControlClient(c.ConfigServer, a.dial)
	defer a.control.Close()
	if was, err := a.hooks.Recover(ctx, machine); was || err != nil {
		log.Warn("the machine was still held from before; it goes on", "error", fmt.Sprint(err))
	}
	tracker := newTracker(c, log)
	a.tracker.Store(tracker)
	a.metrics.MustRegister(newTrackerMetrics(tracker))
	source := session.NewSource(session.Options{
		Machine: machine, Instance: c.Instance, Version: a.version, Tracker: tracker, Hooks: a.hooks,
		Find: a.watch.Finder.Find, SkipFree: c.SkipFree, Metrics: a.cuts, Logger: log,
	})
	a.source.Store(source)
	log.Info("agent runs", "machine", machine.String(), "instance", c.Instance, "version", a.version, "server", c.ConfigServer)
	err = a.serve(ctx)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	return errors.Join(err, source.Close(limited))
}

// showStatus serves the status in the guest. Without it the agent works all the same.
func (a *Agent) showStatus(ctx context.Context) {
	if a.config.Socket == "" {
		return
	}
	if err := status.Serve(ctx, a.config.Socket, a.status); err != nil {
		a.told.problem(partSocket, err.Error())
		a.log.Warn("`drover-agent status` will not work", "error", err.Error())
	}
}

// makeHooks makes what is done around a cut, as configured.
func (a *Agent) makeHooks(gate *quiesce.Gate) *quiesce.Hooks {
	c := a.config
	h := &quiesce.Hooks{
		Pre: c.Quiesce.Pre, Post: c.Quiesce.Post, Timeout: time.Duration(c.Quiesce.Timeout),
		Scripts: quiesce.Scripts{Dir: c.Scripts.Directory, Timeout: time.Duration(c.Scripts.Timeout), Logger: a.log},
		Marker:  filepath.Join(c.State, frozenMarker), Log: gate,
	}
	hold(h, c)
	return h
}

// serve runs the parts until ctx ends or one of them fails.
func (a *Agent) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{
		a.heartbeats,
		a.follow,
		a.replicate,
		a.reach,
		a.keepIdentity,
		a.preflights,
		func(ctx context.Context) error { return serveMetrics(ctx, a.config.Metrics, a.metrics) },
	} {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serveMetrics serves /metrics and /healthz until ctx ends; an empty address
// serves nothing.
func serveMetrics(ctx context.Context, address string, metrics prometheus.Gatherer) error {
	if address == "" {
		return nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve metrics on %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: metricsTimeout, ReadTimeout: metricsTimeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", address, err)
	}
	return nil
}

// sleep waits; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
