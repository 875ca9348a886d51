// Package run is the agent as a program that never ends by itself: it enrols,
// tells the configuration server that it lives, and does what it is assigned.
//
//	run.go         the parts and how they start and stop
//	enrol.go       the identity
//	assignments.go the long poll
//	replicate.go   sessions, one after another
//	heartbeat.go   what is told of the machine
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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/enrol"
	"drover/agent/proxy"
	"drover/agent/quiesce"
	"drover/agent/session"
	"drover/agent/tracker/scan"
	"drover/datapath/wire"
)

// Bounds and cadences.
const (
	heartbeatEvery = 5 * time.Second
	inventoryEvery = 5 * time.Minute // it goes out with the first heartbeat too
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
	log      *slog.Logger
	identity *enrol.Identity
	control  *controlapi.Client
	dial     wire.DialFunc
	finder   disk.Finder
	source   *session.Source
	assigned *latest
}

// Run runs the agent until ctx ends.
func Run(ctx context.Context, c *config.Config, version string, log *slog.Logger) error {
	a := &Agent{config: c, version: version, log: log, finder: disk.Finder{Paths: c.Disks}, assigned: newLatest()}
	dial, err := proxy.Dialer(c.Proxy)
	if err != nil {
		return err
	}
	a.dial = wire.DialFunc(dial)
	if a.identity, err = a.enrol(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while it waited
		}
		return err
	}
	machine, err := a.identity.Peer.Machine()
	if err != nil {
		return fmt.Errorf("the identity under %s: %w", c.State, err)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.control = a.identity.ControlClient(c.ConfigServer, dial)
	defer a.control.Close()
	hooks := &quiesce.Hooks{
		Pre: c.Quiesce.Pre, Post: c.Quiesce.Post, Timeout: time.Duration(c.Quiesce.Timeout),
		Marker: filepath.Join(c.State, frozenMarker),
	}
	if was, err := hooks.Recover(ctx, machine); was {
		log.Warn("the machine was still frozen from before; it is thawed", "error", fmt.Sprint(err))
	}
	a.source = session.NewSource(session.Options{
		Machine: machine, Instance: c.Instance, Version: version, Tracker: scan.New(), Hooks: hooks,
		Find: a.finder.Find, Metrics: session.NewMetrics(metrics), Logger: log,
	})
	log.Info("agent runs", "machine", machine.String(), "instance", c.Instance, "version", version, "server", c.ConfigServer)
	err = a.serve(ctx, metrics)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	return errors.Join(err, a.source.Close(limited))
}

// serve runs the parts until ctx ends or one of them fails.
func (a *Agent) serve(ctx context.Context, metrics prometheus.Gatherer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{
		a.heartbeats,
		a.follow,
		a.replicate,
		func(ctx context.Context) error { a.identity.KeepRenewed(ctx, a.control, a.log); return nil },
		func(ctx context.Context) error { return serveMetrics(ctx, a.config.Metrics, metrics) },
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
