// Package temporalserver runs a Temporal server and its web UI inside this
// process, on an SQLite file or on PostgreSQL. It is the only place that touches the server's
// internal packages, which make no promise of stability.
package temporalserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	uiserver "github.com/temporalio/ui-server/v2/server"
	uiconfig "github.com/temporalio/ui-server/v2/server/config"
	uioptions "github.com/temporalio/ui-server/v2/server/server_options"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/temporal"
)

// Options says where the server keeps its data and what it listens on.
type Options struct {
	// Dir holds the database; it is made when absent.
	Dir string
	// Postgres is used instead of an SQLite file in Dir; nil: it is not.
	Postgres *Postgres
	// Listen is the address of the gRPC frontend, e.g. 127.0.0.1:7233. The UI has no
	// log-in of its own and the server takes no certificates here, so both should
	// stay on loopback.
	Listen string
	// UI is the address of the web UI; empty runs none.
	UI string
	// Metrics is the address of Temporal's own /metrics; empty serves none.
	Metrics string
	// Namespace is made when absent, keeping finished workflows for Retention
	// (default 90 days).
	Namespace string
	Retention time.Duration
	// SearchAttributes are registered when absent.
	SearchAttributes map[string]enumspb.IndexedValueType
	Logger           *slog.Logger
}

const (
	defaultRetention = 90 * 24 * time.Hour
	// startLimit bounds how long the server may take until it answers.
	startLimit = 60 * time.Second
)

// Server is a running Temporal server.
type Server struct {
	opts   Options
	server temporal.Server
	ui     *uiserver.Server
	uiDone chan error
}

// Start starts the server and returns once its namespace and search attributes
// are usable.
func Start(ctx context.Context, opts Options) (*Server, error) {
	if opts.Retention == 0 {
		opts.Retention = defaultRetention
	}
	if err := errors.Join(free("frontend", opts.Listen), free("web UI", opts.UI), free("metrics", opts.Metrics)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start Temporal: make its data directory: %w", err)
	}
	cfg, err := serverConfig(opts)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts}
	if s.server, err = newServer(cfg, opts.Logger); err != nil {
		return nil, err
	}
	if err := s.server.Start(); err != nil {
		return nil, fmt.Errorf("start Temporal on %s: %w", opts.Listen, err)
	}
	if err := s.ensure(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	if opts.UI != "" {
		if err := s.startUI(); err != nil {
			return nil, errors.Join(err, s.Stop())
		}
	}
	return s, nil
}

// free gives an error unless the address can be listened on. The server panics,
// and the UI ends the process, when they find theirs taken.
func free(what, address string) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("start Temporal's %s: %w; end what listens there or choose another address", what, err)
	}
	return l.Close()
}

// Stop stops the UI, then the server.
func (s *Server) Stop() error {
	if s.ui != nil {
		s.ui.Stop()
		<-s.uiDone
		s.ui = nil
	}
	if err := s.server.Stop(); err != nil {
		return fmt.Errorf("stop Temporal: %w", err)
	}
	return nil
}

func newServer(cfg *config.Config, logger *slog.Logger) (temporal.Server, error) {
	authorizer, err := authorization.GetAuthorizerFromConfig(&cfg.Global.Authorization)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	srv, err := temporal.NewServer(
		temporal.WithConfig(cfg),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(staticHosts(cfg)),
		temporal.WithLogger(slogAdapter{logger}),
		temporal.WithAuthorizer(authorizer),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper {
			return authorization.NewNoopClaimMapper()
		}),
		temporal.WithDynamicConfigClient(dynamicSettings()),
	)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: %w", err)
	}
	return srv, nil
}

// ensure makes the namespace and the search attributes, and waits until they can
// be used.
func (s *Server) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	c, err := client.NewLazyClient(client.Options{HostPort: s.opts.Listen, Namespace: s.opts.Namespace, Logger: s.opts.Logger})
	if err != nil {
		return fmt.Errorf("start Temporal: %w", err)
	}
	defer c.Close()
	if err := retry(ctx, func() error { return ensureNamespace(ctx, c, s.opts) }); err != nil {
		return fmt.Errorf("start Temporal: make namespace %q: %w", s.opts.Namespace, err)
	}
	if err := retry(ctx, func() error { return ensureSearchAttributes(ctx, c, s.opts) }); err != nil {
		return fmt.Errorf("start Temporal: register search attributes: %w", err)
	}
	return nil
}

func ensureSearchAttributes(ctx context.Context, c client.Client, opts Options) error {
	list, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: opts.Namespace})
	if err != nil {
		return err
	}
	missing := map[string]enumspb.IndexedValueType{}
	for name, kind := range opts.SearchAttributes {
		if _, ok := list.CustomAttributes[name]; !ok {
			missing[name] = kind
		}
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: opts.Namespace, SearchAttributes: missing,
	})
	return err
}

// retry repeats f until it succeeds or the context ends; a server that has just
// started refuses for a moment.
func retry(ctx context.Context, f func() error) error {
	const pause = 100 * time.Millisecond
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (s *Server) startUI() error {
	host, portText, err := net.SplitHostPort(s.opts.UI)
	if err != nil {
		return fmt.Errorf("start Temporal's web UI: address %q: %w", s.opts.UI, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return fmt.Errorf("start Temporal's web UI: port %q: %w", portText, err)
	}
	s.ui = uiserver.NewServer(uioptions.WithConfigProvider(&uiconfig.Config{
		Host: host, Port: port, TemporalGRPCAddress: s.opts.Listen, EnableUI: true, HideLogs: true,
		CORS: uiconfig.CORS{CookieInsecure: true}, DisableNewsFetch: true, DefaultNamespace: s.opts.Namespace,
	}))
	s.uiDone = make(chan error, 1)
	go func() { s.uiDone <- s.ui.Start() }()
	return waitForPort(s.opts.UI, s.uiDone)
}

// waitForPort returns once something accepts on the address, or the server's
// error if it ended before.
func waitForPort(address string, done chan error) error {
	const limit, pause = 10 * time.Second, 50 * time.Millisecond
	for deadline := time.Now().Add(limit); ; {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-done:
			done <- err // Stop waits for it again
			return fmt.Errorf("start Temporal's web UI on %s: %w", address, err)
		case <-time.After(pause):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("start Temporal's web UI on %s: it does not accept connections: %w", address, err)
		}
	}
}

func databaseFile(dir string) string { return filepath.Join(dir, "temporal.sqlite") }

// serviceNames are the four services in one process, with the frontend first.
var serviceNames = []primitives.ServiceName{
	primitives.FrontendService, primitives.HistoryService, primitives.MatchingService, primitives.WorkerService,
}
