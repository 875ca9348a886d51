// Package controlserver serves a configuration server's two APIs over its
// registry and CA: the control API for agents, process servers and master targets
// (HTTPS, package controlapi), and the admin API for the operator on the host (a
// unix socket, package admin).
package controlserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/ca"
	"drover/worker/registry"
)

// Bounds of the server.
const (
	headerTimeout = 10 * time.Second
	// requestTimeout bounds reading a request and writing its answer; a long poll
	// must fit in.
	requestTimeout  = controlapi.MaxLongPoll + 30*time.Second
	idleTimeout     = 2 * time.Minute
	shutdownTimeout = 10 * time.Second
	maxHeader       = 16 << 10
	maxConns        = 8192 // at once; more wait to be accepted
	adminConns      = 16

	enrolPerSecond = 20 // enrolments, all together
	enrolBurst     = 100
)

// Config of a server. All but Hosts and Metrics is needed.
type Config struct {
	// Name of the configuration server; it stands in its certificate.
	Name string
	// Version of the server, from which follows which agents may enrol; empty: all.
	Version string
	// StateDir is where the admin socket is made.
	StateDir string
	// Hosts are the host names and IP addresses by which the server is reached.
	Hosts    []string
	CA       *ca.CA
	Registry *registry.Registry
	Logger   *slog.Logger
	Metrics  prometheus.Registerer
}

// Server serves both APIs.
type Server struct {
	Config
	cert     *ca.Server
	enrol    *rate.Limiter
	requests *prometheus.CounterVec
}

// New makes a server; it issues the server's own certificate.
func New(c Config) (*Server, error) {
	if c.Name == "" || c.StateDir == "" || c.CA == nil || c.Registry == nil || c.Logger == nil {
		return nil, errors.New("control server: name, state folder, CA, registry and logger are needed")
	}
	cert, err := c.CA.Server(ident.Peer{Role: ident.RoleConfigurationServer, Name: c.Name}, c.Hosts)
	if err != nil {
		return nil, fmt.Errorf("control server: %w", err)
	}
	return &Server{Config: c, cert: cert, enrol: rate.NewLimiter(enrolPerSecond, enrolBurst),
		requests: promauto.With(c.Metrics).NewCounterVec(prometheus.CounterOpts{
			Name: "drover_control_requests_total",
			Help: "Requests of agents and servers to the control API, by call and by error code (ok: none).",
		}, []string{"call", "code"})}, nil
}

// Serve answers on the listener (plain TCP; TLS is put on it here) and on the
// admin socket until ctx ends, then lets requests finish for up to ten seconds.
// It closes the listener. Its error is nil when ctx ended it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	admin, err := listenAdmin(s.StateDir)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	defer func() { _ = admin.remove() }()
	// Requests under way, long polls above all, learn of the end by this context.
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	control := s.httpServer(base, s.handler())
	operator := s.httpServer(base, s.adminHandler())

	failed := make(chan error, 2)
	var wg sync.WaitGroup
	serve := func(srv *http.Server, what string, l net.Listener) {
		wg.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	serve(control, "control API", tls.NewListener(limit(l, maxConns), s.tlsConfig()))
	serve(operator, "admin socket", limit(admin, adminConns))
	s.Logger.Info("control API listens", "address", l.Addr().String(), "socket", admin.path)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop()
	err = errors.Join(err, s.shutdown(ctx, control), s.shutdown(ctx, operator))
	wg.Wait()
	return err
}

func (s *Server) httpServer(base context.Context, h http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // one request per connection at a time: the bound on connections bounds both
	return &http.Server{
		Handler: h, BaseContext: func(net.Listener) context.Context { return base }, Protocols: &protocols,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.Logger.Handler(), slog.LevelInfo),
	}
}

func (s *Server) shutdown(ctx context.Context, srv *http.Server) error {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(limited); err != nil {
		s.Logger.Warn("requests did not end in time and are cut", "limit", shutdownTimeout, "error", err)
		return srv.Close()
	}
	return nil
}

func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: s.cert.GetCertificate,
		// Who enrols has no certificate yet; every other call insists on one. One that
		// is shown must be ours.
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  s.CA.Pool(),
		// A resumed session would skip the check of the certificate.
		SessionTicketsDisabled: true,
	}
}

// limited is a listener with at most so many open connections.
type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func limit(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, n), done: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type slotted struct {
	net.Conn
	release func()
}

func (c *slotted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
