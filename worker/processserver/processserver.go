// Package processserver runs a process server or master target: the receiving end
// of agents' streams, and a Temporal worker with the activities of its host.
//
// Once it is enrolled it streams without Temporal and without the configuration
// server.
package processserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	sdkworker "go.temporal.io/sdk/worker"

	"drover/activities/replication"
	"drover/agent/controlapi"
	"drover/agent/enrol"
	"drover/datapath/health/monitor"
	"drover/datapath/ident"
	"drover/datapath/server"
	"drover/datapath/throttle"
	"drover/worker"
	"drover/worker/config"
	"drover/worker/service"
	"drover/worker/storage"
	"drover/workflows/api"
)

// maxActivities bounds the activities at once: a watch for each machine, and what
// else is asked for.
const maxActivities = 2000

// host is a server being put together.
type host struct {
	config   *config.ProcessServer
	log      *slog.Logger
	identity *enrol.Identity
	control  *controlapi.Client
	store    storage.Store
	streams  *server.Server
	health   *monitor.Monitor
	denied   *denyList
	keys     *keys
	beats    *heartbeats
	temporal *service.Temporal
	known    bool // enrolled before this start
}

// Run runs the server until ctx ends, and then stops it gracefully: what was
// acknowledged is finished.
func Run(ctx context.Context, c *config.ProcessServer, log *slog.Logger) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(server.GCPercent)
	}
	log = log.With("server", c.Name, "role", string(c.Role))
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	_, notEnrolled := enrol.Load(c.State)
	id, err := identity(ctx, c, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop while it waited
		}
		return err
	}
	if c.Role == ident.RoleRelay {
		return runRelay(ctx, c, id, log)
	}
	metrics := service.Registry()
	h := &host{config: c, log: log, identity: id, known: notEnrolled == nil}
	if err := h.open(ctx, metrics); err != nil {
		return err
	}
	err = h.serve(ctx, metrics)
	h.control.Close()
	return errors.Join(err, h.store.Close())
}

// open opens store, cache and streams; nothing runs yet.
func (h *host) open(ctx context.Context, metrics prometheus.Registerer) error {
	c := h.config
	h.control = h.identity.ControlClient(c.ConfigServer, nil)
	h.keys = newKeys(h.control)
	var err error
	if h.denied, err = openDenyList(c.State); err != nil {
		return err
	}
	cache, err := storage.OpenCache(ctx, c.Cache)
	if err != nil {
		return err
	}
	if h.store, err = storage.Open(ctx, c.Store); err != nil {
		return err
	}
	limits, err := throttle.Compile(c.ThrottleRules())
	if err != nil {
		return errors.Join(err, h.store.Close())
	}
	h.streams, err = server.New(server.Config{
		Name: c.Name, Version: service.Version(), StateDir: c.State, TLS: h.identity.ServerTLS(),
		Store: h.store, Cache: cache, SpoolLimit: int64(c.Spool.Limit), Throttle: limits, Keys: h.keys.Key,
		DiskByID: c.DiskByID, Denied: h.denied.Denied, Logger: h.log, Metrics: metrics,
	})
	if err == nil {
		err = h.connect(metrics)
	}
	if err != nil {
		return errors.Join(err, h.store.Close())
	}
	h.health = monitor.New(monitor.Config{Load: h.streams.Load, Logger: h.log, Metrics: metrics})
	h.beats = &heartbeats{
		client: h.control, denied: h.denied, health: h.health.Report, every: heartbeatEvery, log: h.log,
		beat: controlapi.Heartbeat{Instance: instance(c), Version: service.Version(), State: "serving", DataAddress: c.Advertise},
	}
	return nil
}

// connect makes the Temporal worker.
func (h *host) connect(metrics prometheus.Registerer) (err error) {
	c := h.config
	h.temporal, err = service.NewTemporal(service.TemporalConfig{
		Address: c.Temporal.Address, Namespace: c.Temporal.Namespace,
		Queue: api.HostQueue(c.Name), Identity: c.Name, Logger: h.log, Metrics: metrics,
		Worker: sdkworker.Options{DisableWorkflowWorker: true, MaxConcurrentActivityExecutionSize: maxActivities},
	})
	if err != nil {
		return err
	}
	activities := replication.NewHost(replication.HostConfig{
		Name: c.Name, Role: c.Role, Streams: h.streams, Store: h.store,
		CurrentKey: h.keys.Current, Signals: h.temporal.Client, Logger: h.log,
	})
	register, err := worker.RegisterHost(activities)
	h.temporal.SetRegister(register)
	return err
}

// serve runs everything until ctx ends or a part fails.
func (h *host) serve(ctx context.Context, metrics prometheus.Gatherer) error {
	listener, err := net.Listen("tcp", h.config.Listen)
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	h.log.Info("takes agents' data", "address", listener.Addr().String(), "advertise", h.config.Advertise)
	g := service.NewGroup(ctx)
	g.Go(func(ctx context.Context) error { return h.streams.Serve(ctx, listener) })
	g.Go(func(ctx context.Context) error {
		h.identity.KeepRenewed(ctx, h.control, h.log)
		return nil
	})
	g.Go(h.health.Run)
	g.Go(h.beats.Run)
	g.Go(h.temporal.Run)
	g.Go((&mirror{vault: h.temporal.Client, store: h.store, log: h.log}).Run)
	g.Go(func(ctx context.Context) error {
		return service.ServeMetrics(ctx, h.config.Metrics, metrics, h.healthy)
	})
	return g.Wait()
}

// healthy: streams are served, which needs neither Temporal nor the configuration
// server. Only a server that is new must have been heard of first, as nobody would
// choose it.
func (h *host) healthy() error {
	if h.known || h.beats.heard.Load() {
		return nil
	}
	return errors.New("the configuration server has not taken a heartbeat yet")
}
