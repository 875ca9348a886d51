// Package configserver runs the configuration server: the control API for agents
// and servers, the operator's admin socket, and the Temporal worker of the control
// queue.
//
// Agents and servers enrol, renew and learn their assignments while Temporal is
// away; the worker starts when it answers.
package configserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/interceptor"
	sdkworker "go.temporal.io/sdk/worker"

	"drover/activities/action"
	"drover/activities/control"
	"drover/activities/notify"
	"drover/activities/push"
	"drover/activities/replication"
	"drover/activities/target"
	"drover/activities/vsphere"
	"drover/datapath/cachestore"
	"drover/datapath/ident"
	"drover/worker"
	"drover/worker/ca"
	"drover/worker/config"
	"drover/worker/controlserver"
	"drover/worker/controlserver/admin"
	"drover/worker/registry"
	"drover/worker/service"
	"drover/worker/storage"
	"drover/workflows/api"
)

// adminLook bounds the look whether the admin socket answers.
const adminLook = time.Second

// maxActivities bounds the activities at once. Most only wait, for an agent to call or a
// machine's action to end: each of a namespace's machines may have two.
const maxActivities = 5000

// server is a configuration server being put together.
type server struct {
	config   *config.ConfigServer
	log      *slog.Logger
	registry *registry.Registry
	store    storage.Store
	cache    cachestore.Store
	api      *controlserver.Server
	temporal *service.Temporal
	vcenter  *vsphere.Activities
}

// Run runs the server until ctx ends, and then stops it gracefully.
func Run(ctx context.Context, c *config.ConfigServer, log *slog.Logger) (err error) {
	s := &server{config: c, log: log.With("server", c.Name)}
	for _, dir := range []string{c.State, c.Scripts, c.Secrets} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the directories of the configuration server: %w", err)
		}
	}
	if s.registry, err = registry.Open(c.State); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.registry.Close()) }()
	if s.store, err = storage.Open(ctx, c.Store); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	if s.cache, err = storage.OpenCache(ctx, c.Cache); err != nil {
		return err
	}
	metrics := service.Registry()
	if err := errors.Join(s.serveAPI(metrics), s.connect(metrics)); err != nil {
		return err
	}
	defer s.vcenter.Close(context.WithoutCancel(ctx))
	return s.serve(ctx, metrics)
}

// serveAPI makes the control API and the admin socket.
func (s *server) serveAPI(metrics prometheus.Registerer) error {
	authority, err := ca.Open(s.config.State, s.config.CertificateLife.D())
	if err != nil {
		return err
	}
	s.api, err = controlserver.New(controlserver.Config{
		Name: s.config.Name, Version: service.Version(), StateDir: s.config.State, Hosts: s.config.Advertise,
		CA: authority, Registry: s.registry, Logger: s.log, Metrics: metrics,
	})
	return err
}

// connect makes the Temporal worker of the control queue.
func (s *server) connect(metrics prometheus.Registerer) (err error) {
	c := s.config
	s.temporal, err = service.NewTemporal(service.TemporalConfig{
		Address: c.Temporal.Address, Namespace: c.Temporal.Namespace,
		Queue: api.ControlQueue, Identity: c.Name, Logger: s.log, Metrics: metrics,
		Prepare: s.registerSearchAttributes, Started: startVault,
		Worker: sdkworker.Options{MaxConcurrentActivityExecutionSize: maxActivities, Interceptors: []interceptor.WorkerInterceptor{
			service.Beating(api.ActMachineAction, api.ActAwaitAgent, api.ActCheckNetwork, api.ActCreateMachine,
				api.ActStartMachine, api.ActCheckMachine, api.ActStopMachine, api.ActDeleteMachine, api.ActCommitMachine,
				api.ActAcquireRelay, api.ActReleaseRelay),
		}},
	})
	if err != nil {
		return err
	}
	groups, err := s.activities()
	if err != nil {
		return err
	}
	register, err := worker.RegisterControl(groups...)
	s.temporal.SetRegister(register)
	return err
}

// activities makes all activities of the control queue.
func (s *server) activities() ([]worker.Activities, error) {
	c := s.config
	ctl := control.New(control.Config{Client: s.temporal.Client, Agents: reports{s.registry}.of})
	vcenter, err := vsphere.New(vsphere.Config{Secrets: c.Secrets, Lookup: ctl.LookupVCenter, Tell: ctl.TellDiscovery, Logger: s.log})
	if err != nil {
		return nil, err
	}
	s.vcenter = vcenter
	cloud, runbooks, err := s.target()
	if err != nil {
		return nil, err
	}
	actions, err := action.New(action.Config{
		Scripts: c.Scripts, ScriptUser: c.ScriptUser, Webhooks: c.Webhooks.Allow, WebhookSecret: c.Webhooks.SecretFile, Runbooks: runbooks, Logger: s.log,
	})
	if err != nil {
		return nil, err
	}
	notifier, err := notify.New(c.Notify.Webhook, s.log)
	if err != nil {
		return nil, err
	}
	pushes, err := push.New(push.Config{
		Secrets: c.Secrets, Agents: c.Agents.Directory, Server: c.Agents.Server,
		Known: filepath.Join(c.State, "known-hosts.json"), Token: s.token, InGuest: s.vcenter.InGuest, Logger: s.log,
	})
	if err != nil {
		return nil, err
	}
	replicas := replication.NewControl(replication.ControlConfig{Registry: directory{s.registry}, Store: s.store, Cache: s.cache})
	return []worker.Activities{ctl, replicas, s.vcenter, pushes, target.New(cloud, s.store), s.relays(cloud), actions, notifier}, nil
}

// token makes a token with which one machine's agent enrols, once.
func (s *server) token(machine ident.MachineID, instance string) (string, error) {
	return s.tokenOf(ident.Peer{Role: ident.RoleAgent, Name: machine.String()}, instance)
}

func (s *server) tokenOf(peer ident.Peer, instance string) (string, error) {
	secret, err := s.registry.IssueToken(registry.TokenSpec{Peer: peer, Instance: instance, TTL: registry.MinTTL})
	if err != nil {
		return "", err
	}
	s.log.Info("token issued", "peer", peer.String(), "instance", instance, "life", registry.MinTTL)
	return s.api.CA.Fingerprint() + "." + secret, nil
}

// serve runs everything until ctx ends or a part fails.
func (s *server) serve(ctx context.Context, metrics prometheus.Gatherer) error {
	listener, err := net.Listen("tcp", s.config.Listen)
	if err != nil {
		return fmt.Errorf("listen for agents and servers: %w", err)
	}
	g := service.NewGroup(ctx)
	g.Go(func(ctx context.Context) error { return s.api.Serve(ctx, listener) })
	g.Go(s.temporal.Run)
	g.Go(newReporter(reports{s.registry}, s.temporal, s.log).run)
	g.Go(newKeeper(s.temporal, s.log).run)
	g.Go(func(ctx context.Context) error {
		return service.ServeMetrics(ctx, s.config.Metrics, metrics, s.healthy)
	})
	return g.Wait()
}

// healthy: the worker runs and the operator can be served.
func (s *server) healthy() error {
	if err := s.temporal.Healthy(); err != nil {
		return err
	}
	conn, err := net.DialTimeout("unix", admin.SocketPath(s.config.State), adminLook)
	if err != nil {
		return fmt.Errorf("the admin socket does not answer: %w", err)
	}
	return conn.Close()
}
