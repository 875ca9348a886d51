package fault

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/run"
	"drover/agent/status"
	"drover/datapath/server"
	"drover/tests/ports"
	"drover/tests/rig"
	"drover/worker/ca"
	"drover/worker/controlserver"
	"drover/worker/registry"
)

// site is a real configuration server beside the rig's process server, and the agent as
// the program that an operator installs.
type site struct {
	*rig.Rig
	state   string
	address string // of the configuration server, the same at every start
	ca      *ca.CA
	reg     *registry.Registry
	stop    func() // the configuration server; nil: it does not run
	config  *config.Config
	agent   func() error // stops the agent
	log     logBuffer    // the agent's
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// streaming is a site whose machine has a block of data, and its base copy.
func streaming(t *testing.T, life time.Duration) *site {
	t.Helper()
	s := newSite(t, life)
	s.Write(0, 1, []byte(strings.Repeat("a", rig.Block)))
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	s.right()
	return s
}

// newSite makes a site whose agents' certificates live so long. Everything runs but the
// agent, which has a grant and an assignment.
func newSite(t *testing.T, life time.Duration) *site {
	t.Helper()
	state, err := os.MkdirTemp("", "cs") // socket paths are short, test folders' names are not
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	s := &site{Rig: rig.New(t, mib), state: state}
	s.ca, err = ca.Open(state, life)
	require.NoError(t, err)
	s.reg, err = registry.Open(state)
	require.NoError(t, err)
	t.Cleanup(func() {
		s.stopAgent()
		s.stopControl()
		require.NoError(t, s.reg.Close())
	})
	s.address, err = ports.Free()
	require.NoError(t, err)
	s.startControl()

	long, err := ca.Open(state, time.Hour)
	require.NoError(t, err)
	cert, err := long.Server(rig.ServerPeer, nil)
	require.NoError(t, err)
	s.Configure = func(c *server.Config) {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: cert.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: long.Pool()}
	}
	s.StartServer()
	s.Grant(1, cut)
	s.assign()
	dir := t.TempDir()
	s.config = &config.Config{ConfigServer: "https://" + s.address, State: filepath.Join(dir, "state"), TokenFile: filepath.Join(dir, "token"),
		Socket: filepath.Join(state, "agent.sock"), Instance: rig.Instance, Disks: map[string]string{}}
	for _, d := range s.Disks {
		s.config.Disks[d.BackingUUID] = s.Path(d.BackingUUID)
	}
	return s
}

func (s *site) startControl() {
	s.T.Helper()
	srv, err := controlserver.New(controlserver.Config{Name: "cs-1", StateDir: s.state, Hosts: []string{"127.0.0.1"},
		CA: s.ca, Registry: s.reg, Logger: s.Log().With("side", "control"), Metrics: prometheus.NewRegistry()})
	require.NoError(s.T, err)
	l, err := net.Listen("tcp", s.address)
	require.NoError(s.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	s.stop = func() {
		cancel()
		require.NoError(s.T, <-done)
	}
}

func (s *site) stopControl() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// assign lets the machine stream its disks to the process server.
func (s *site) assign() {
	s.T.Helper()
	require.NoError(s.T, s.reg.SetAssignment(controlapi.Assignment{Action: controlapi.ActionReplicate, Machine: s.Machine, Epoch: 1, Instance: rig.Instance,
		Server: rig.ServerPeer.Name, Role: rig.ServerPeer.Role, Address: s.Address, Disks: slices.Clone(s.Disks)}))
}

// token puts a new token of the machine into the agent's file.
func (s *site) token() {
	s.T.Helper()
	secret, err := s.reg.IssueToken(registry.TokenSpec{Peer: s.AgentPeer(), Instance: rig.Instance})
	require.NoError(s.T, err)
	s.puts(s.ca.Fingerprint() + "." + secret)
}

func (s *site) puts(token string) {
	s.T.Helper()
	require.NoError(s.T, os.WriteFile(s.config.TokenFile, []byte(token+"\n"), 0o600))
}

func (s *site) startAgent() {
	s.T.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	out := io.Writer(&s.log)
	if testing.Verbose() {
		out = io.MultiWriter(out, os.Stderr)
	}
	go func() { done <- run.Run(ctx, s.config, "test", slog.New(slog.NewTextHandler(out, nil)), nil) }()
	s.agent = func() error { cancel(); return <-done }
}

func (s *site) stopAgent() {
	if s.agent != nil {
		require.NoError(s.T, s.agent())
		s.agent = nil
	}
}

// shows waits until the agent's status, as a person in the guest sees it, is so.
func (s *site) shows(what string, so func(status.Status) bool) status.Status {
	s.T.Helper()
	var st status.Status
	var err error
	require.Eventually(s.T, func() bool {
		st, err = status.Get(s.T.Context(), s.config.Socket)
		return err == nil && so(st)
	}, soon, often, "%s: %+v, %v", what, &st, &err)
	return st
}

func inState(word string) func(status.Status) bool {
	return func(st status.Status) bool { return st.State == word }
}

// right waits for a recovery point from now on, and compares it with the source.
func (s *site) right() {
	s.T.Helper()
	require.Equal(s.T, s.Digest(), s.DigestAt(s.AfterNow()))
}
