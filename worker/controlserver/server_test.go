package controlserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/controlapi"
	"drover/agent/enrol"
	"drover/datapath/ident"
	"drover/datapath/release"
	"drover/datapath/wire/wiretest"
	"drover/worker/ca"
	"drover/worker/controlserver"
	"drover/worker/controlserver/admin"
	"drover/worker/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const instance = "4211aaaa-0000-4000-8000-000000000001"

var (
	machine = ident.NewMachineID("vc", "vm")
	agent   = wiretest.Agent(machine)
	server  = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}
)

// site is a running configuration server.
type site struct {
	t     *testing.T
	url   string
	state string
	ca    *ca.CA
	reg   *registry.Registry
	admin *admin.Client
	log   *logBuffer

	mu   sync.Mutex
	skew time.Duration // of the registry's clock
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

func (s *site) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.skew)
}

func (s *site) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew += d
}

func start(t *testing.T) *site {
	t.Helper()
	// Socket paths are short, test folders' names are not.
	state, err := os.MkdirTemp("", "cs")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	s := &site{t: t, state: state, admin: admin.NewClient(state), log: &logBuffer{}}
	s.ca, err = ca.Open(state, time.Hour)
	require.NoError(t, err)
	s.reg, err = registry.OpenWithClock(state, s.now)
	require.NoError(t, err)
	srv, err := controlserver.New(controlserver.Config{Name: "cs-1", Version: "v1.6.0", StateDir: state, Hosts: []string{"localhost", "127.0.0.1"},
		CA: s.ca, Registry: s.reg, Logger: slog.New(slog.NewTextHandler(s.log, nil)), Metrics: prometheus.NewRegistry()})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.url = "https://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, s.reg.Close())
		_, err := os.Stat(admin.SocketPath(state))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	require.Eventually(t, func() bool { _, err := os.Stat(admin.SocketPath(state)); return err == nil }, 10*time.Second, time.Millisecond)
	return s
}

func (s *site) token(p ident.Peer) string {
	s.t.Helper()
	inst := ""
	if p.Role == ident.RoleAgent {
		inst = strings.ToUpper(instance) // as some firmware prints it
	}
	token, err := s.admin.Token(s.t.Context(), admin.TokenRequest{Role: p.Role, Name: p.Name, Instance: inst})
	require.NoError(s.t, err)
	return token
}

func (s *site) options(token string) enrol.Options {
	return enrol.Options{Server: s.url, Token: token, StateDir: s.t.TempDir(), Instance: instance, Version: "1.0"}
}

func (s *site) enrol(p ident.Peer) (*enrol.Identity, *controlapi.Client) {
	s.t.Helper()
	o := s.options(s.token(p))
	o.DataAddress = "10.0.0.7:9443"
	id, err := enrol.Enrol(s.t.Context(), o)
	require.NoError(s.t, err)
	client := id.ControlClient(s.url, nil)
	s.t.Cleanup(client.Close)
	return id, client
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var e *controlapi.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, e.Message)
}

func TestEnrolLoadRenew(t *testing.T) {
	s := start(t)
	o := s.options(" " + s.token(agent) + "\n")
	id, err := enrol.Enrol(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, agent, id.Peer)
	for _, name := range []string{"key.pem", "cert.pem", "ca.pem"} {
		st, err := os.Stat(filepath.Join(o.StateDir, "identity", name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), name)
	}
	loaded, err := enrol.Load(o.StateDir)
	require.NoError(t, err)
	require.Equal(t, id.Certificate().Certificate, loaded.Certificate().Certificate)

	client := loaded.ControlClient(s.url, nil)
	defer client.Close()
	require.NoError(t, loaded.Renew(t.Context(), client))
	require.NotEqual(t, id.Certificate().Certificate, loaded.Certificate().Certificate)
	require.NotEqual(t, id.Certificate().Leaf.PublicKey, loaded.Certificate().Leaf.PublicKey, "the key is new too")
	again, err := enrol.Load(o.StateDir)
	require.NoError(t, err)
	require.Equal(t, loaded.Certificate().Certificate, again.Certificate().Certificate)
	_, err = client.Heartbeat(t.Context(), controlapi.Heartbeat{Instance: instance})
	require.NoError(t, err)

	status, err := s.admin.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status.Peers, 1)
	require.Equal(t, again.Certificate().Leaf.SerialNumber.Text(16), status.Peers[0].Serial)
}

func TestTokensAreHeldTo(t *testing.T) {
	s := start(t)
	print, _, _ := strings.Cut(s.token(agent), ".")
	t.Run("unknown", func(t *testing.T) {
		_, err := enrol.Enrol(t.Context(), s.options(print+".nonsense"))
		requireCode(t, err, controlapi.CodeTokenRefused)
	})
	t.Run("expired", func(t *testing.T) {
		token := s.token(agent)
		s.advance(registry.DefaultTTL)
		_, err := enrol.Enrol(t.Context(), s.options(token))
		requireCode(t, err, controlapi.CodeTokenRefused)
		require.Contains(t, s.log.String(), registry.ErrTokenExpired.Error())
	})
	t.Run("wrong machine, then the right one, then again", func(t *testing.T) {
		token := s.token(agent)
		o := s.options(token)
		o.Instance = "4211aaaa-0000-4000-8000-00000000beef"
		_, err := enrol.Enrol(t.Context(), o)
		requireCode(t, err, controlapi.CodeTokenRefused)
		_, err = enrol.Enrol(t.Context(), s.options(token))
		require.NoError(t, err)
		_, err = enrol.Enrol(t.Context(), s.options(token))
		requireCode(t, err, controlapi.CodeTokenRefused)
		require.Contains(t, s.log.String(), registry.ErrTokenSpent.Error())
		_, secret, _ := strings.Cut(token, ".")
		require.NotContains(t, s.log.String(), secret)
		require.NotContains(t, err.Error(), secret)
	})
	t.Run("malformed", func(t *testing.T) {
		for _, token := range []string{"", "abc", print, print + ".", "zz" + print[2:] + ".x", print + "." + strings.Repeat("x", 1000)} {
			_, err := enrol.Enrol(t.Context(), s.options(token))
			require.ErrorContains(t, err, "not of the form")
		}
	})
}

// TestAgentsOfOtherReleasesDoNotEnrol, and their tokens are still good once they are upgraded.
// Without a good token nobody learns of the server's release.
func TestAgentsOfOtherReleasesDoNotEnrol(t *testing.T) {
	s := start(t)
	o := s.options(s.token(agent))
	for version, says := range map[string]string{"1.1.0": "upgrade the agent", "1.7.0": "upgrade the servers first"} {
		o.Version = version
		_, err := enrol.Enrol(t.Context(), o)
		var refused *controlapi.Error
		require.ErrorAs(t, err, &refused)
		require.Equal(t, release.Code, refused.Code)
		require.ErrorContains(t, err, says)
		require.False(t, enrol.Transient(err))
		wrong := o
		wrong.Token = o.Token + "x"
		_, err = enrol.Enrol(t.Context(), wrong)
		require.ErrorAs(t, err, &refused)
		require.Equal(t, controlapi.CodeTokenRefused, refused.Code)
	}
	o.Version = "1.2.0"
	_, err := enrol.Enrol(t.Context(), o)
	require.NoError(t, err)
}

func TestOneTokenEnrolsOnceHoweverManyTry(t *testing.T) {
	s := start(t)
	token := s.token(agent)
	const tries = 4
	won := make(chan bool, tries)
	for range tries {
		o := s.options(token)
		go func() {
			_, err := enrol.Enrol(t.Context(), o)
			won <- err == nil
		}()
	}
	n := 0
	for range tries {
		if <-won {
			n++
		}
	}
	require.Equal(t, 1, n)
}

// A server of another CA never sees the secret.
func TestForeignServerIsNotTrusted(t *testing.T) {
	ours, theirs := start(t), start(t)
	o := theirs.options(ours.token(agent))
	_, err := enrol.Enrol(t.Context(), o)
	require.ErrorContains(t, err, "does not present the CA whose fingerprint is in the token")
	require.NotContains(t, theirs.log.String(), "enrolment refused")

	// A server that shows the right CA but has no certificate of it.
	foreign := wiretest.NewCA(t)
	cs := ident.Peer{Role: ident.RoleConfigurationServer, Name: "cs-1"}
	cert := foreign.Issue(cs)
	cert.Certificate = append(cert.Certificate, pemDER(t, ours.ca.PEM()))
	requireTLSError(t, cert, ours.token(agent), "not of our CA")

	// A process server of the right CA poses as the configuration server.
	id, _ := ours.enrol(server)
	cert = *id.Certificate()
	cert.Certificate = append(cert.Certificate[:1:1], pemDER(t, ours.ca.PEM()))
	requireTLSError(t, cert, ours.token(agent), "expected a configuration server")
}

func requireTLSError(t *testing.T, cert tls.Certificate, token, want string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).HandshakeContext(context.Background())
			_ = c.Close()
		}
	}()
	_, err = enrol.Enrol(t.Context(), enrol.Options{Server: "https://" + l.Addr().String(), Token: token, StateDir: t.TempDir(), Instance: instance})
	require.ErrorContains(t, err, want)
	require.NoError(t, l.Close())
	<-done
}

func TestForeignAndMissingClientCertificates(t *testing.T) {
	s := start(t)
	cs := ident.Peer{Role: ident.RoleConfigurationServer, Name: "cs-1"}
	foreign := wiretest.NewCA(t)
	cfg := foreign.Client(agent, cs)
	cfg.VerifyConnection = nil // the stranger does not mind whom it talks to,
	cert := foreign.Issue(agent)
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil } // nor that it is not wanted
	_, err := controlapi.NewClient(s.url, cfg).Heartbeat(t.Context(), controlapi.Heartbeat{})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "DRV-", "the handshake fails, not the call")

	bare := controlapi.NewClient(s.url, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	defer bare.Close()
	_, err = bare.Heartbeat(t.Context(), controlapi.Heartbeat{})
	requireCode(t, err, controlapi.CodeNoCertificate)
	_, err = bare.Key(t.Context(), machine, "")
	requireCode(t, err, controlapi.CodeNoCertificate)
}

func TestRoles(t *testing.T) {
	s := start(t)
	_, asAgent := s.enrol(agent)
	_, asServer := s.enrol(server)
	_, err := asAgent.Key(t.Context(), machine, "")
	requireCode(t, err, controlapi.CodeForbidden)
	_, err = asServer.Assignment(t.Context(), 0, 0)
	requireCode(t, err, controlapi.CodeForbidden)

	key, err := asServer.Key(t.Context(), machine, "")
	require.NoError(t, err)
	same, err := asServer.Key(t.Context(), machine, key.ID)
	require.NoError(t, err)
	require.Equal(t, key, same)
	_, err = asServer.Key(t.Context(), machine, "0000000000000000")
	requireCode(t, err, controlapi.CodeUnknown)
	require.NotContains(t, s.log.String(), string(key.Secret))

	// Another machine's assignment cannot even be asked for.
	other := ident.NewMachineID("vc", "other")
	require.NoError(t, s.reg.SetAssignment(controlapi.Assignment{Machine: other, Action: controlapi.ActionReplicate, Epoch: 1, Server: "ps-1"}))
	a, err := asAgent.Assignment(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Equal(t, machine, a.Machine)
	require.Equal(t, controlapi.ActionStandby, a.Action)
}

func TestHeartbeats(t *testing.T) {
	s := start(t)
	_, asAgent := s.enrol(agent)
	_, asServer := s.enrol(server)
	_, err := asAgent.Heartbeat(t.Context(), controlapi.Heartbeat{Instance: instance, State: "streaming", DataAddress: "6.6.6.6:1"})
	require.NoError(t, err)
	agents, err := s.reg.Agents(machine)
	require.NoError(t, err)
	require.Len(t, agents, 1)
	require.Equal(t, instance, agents[0].Instance)
	require.Equal(t, "streaming", agents[0].State)
	_, err = asServer.Heartbeat(t.Context(), controlapi.Heartbeat{Version: "2"})
	require.NoError(t, err)
	servers, err := s.reg.Servers(ident.RoleProcessServer)
	require.NoError(t, err)
	require.Len(t, servers, 1)
	require.Equal(t, "10.0.0.7:9443", servers[0].DataAddress, "known from the enrolment")
	require.WithinDuration(t, time.Now(), servers[0].LastSeen, time.Minute)
}

func TestLongPollWakesOnChange(t *testing.T) {
	s := start(t)
	_, client := s.enrol(agent)
	got := make(chan controlapi.Assignment, 1)
	go func() {
		a, err := client.Assignment(t.Context(), 0, controlapi.MaxLongPoll)
		if err == nil {
			got <- a
		}
		close(got)
	}()
	want := controlapi.Assignment{Machine: machine, Action: controlapi.ActionReplicate, Epoch: 3, Instance: instance,
		Server: "ps-1", Role: ident.RoleProcessServer, Address: "10.0.0.7:9443", Disks: []controlapi.Disk{{ID: ident.NewDiskID(machine, "b"), BackingUUID: "b", Size: 1 << 20}}}
	began := time.Now()
	require.NoError(t, s.reg.SetAssignment(want))
	a := <-got
	want.Version = 1
	require.Equal(t, want, a)
	require.Less(t, time.Since(began), controlapi.MaxLongPoll/2)

	// Unchanged: the answer comes after the wait.
	a, err := client.Assignment(t.Context(), 1, 20*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, want, a)
}

func TestStopEndsLongPolls(t *testing.T) {
	s := start(t)
	_, client := s.enrol(agent)
	_, err := client.Assignment(t.Context(), 0, 0)
	require.NoError(t, err)
	// The end of the test stops the server; its cleanup would fail the test if this
	// poll held it up.
	go func() { _, _ = client.Assignment(context.Background(), 0, controlapi.MaxLongPoll) }()
}

func TestRevoke(t *testing.T) {
	s := start(t)
	id, asAgent := s.enrol(agent)
	_, asServer := s.enrol(server)
	waiting := make(chan error, 1)
	go func() {
		_, err := asAgent.Assignment(t.Context(), 0, controlapi.MaxLongPoll)
		waiting <- err
	}()
	require.NoError(t, s.admin.Revoke(t.Context(), agent))
	require.NoError(t, s.reg.SetAssignment(controlapi.Assignment{Machine: machine, Action: controlapi.ActionStandby, Epoch: 1}))
	requireCode(t, <-waiting, controlapi.CodeRevoked)
	_, err := asAgent.Heartbeat(t.Context(), controlapi.Heartbeat{})
	requireCode(t, err, controlapi.CodeRevoked)
	requireCode(t, id.Renew(t.Context(), asAgent), controlapi.CodeRevoked)
	hb, err := asServer.Heartbeat(t.Context(), controlapi.Heartbeat{})
	require.NoError(t, err)
	require.Equal(t, []string{machine.String()}, hb.Denied)
	_, err = s.admin.Token(t.Context(), admin.TokenRequest{Role: agent.Role, Name: agent.Name, Instance: instance})
	requireCode(t, err, controlapi.CodeRevoked)
	requireCode(t, s.admin.Revoke(t.Context(), ident.Peer{Role: ident.RoleMasterTarget, Name: "typo"}), controlapi.CodeUnknown)

	s.advance(2 * time.Hour) // the revoked certificate has expired
	_, again := s.enrol(agent)
	_, err = again.Heartbeat(t.Context(), controlapi.Heartbeat{})
	require.NoError(t, err)
}

func TestAdminSocket(t *testing.T) {
	s := start(t)
	st, err := os.Stat(admin.SocketPath(s.state))
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, st.Mode().Type()|st.Mode().Perm())
	for _, req := range []admin.TokenRequest{
		{Role: ident.RoleConfigurationServer, Name: "cs-2"},
		{Role: ident.RoleAgent, Name: "../../etc", Instance: instance},
		{Role: ident.RoleAgent, Name: machine.String()},
		{Role: ident.RoleProcessServer, Name: "a/b"},
		{Role: ident.RoleProcessServer, Name: "ps-1", TTL: 24 * time.Hour},
	} {
		_, err := s.admin.Token(t.Context(), req)
		requireCode(t, err, controlapi.CodeBadRequest)
	}
	_, err = admin.NewClient(t.TempDir()).Status(t.Context())
	require.ErrorContains(t, err, "check that the configuration server runs")
}

// The control port has no admin calls, bounds bodies and explains itself.
func TestControlPortRefusesTheRest(t *testing.T) {
	s := start(t)
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.ca.Pool()}}}
	post := func(path, body string) (int, controlapi.Error) {
		res, err := h.Post(s.url+path, "application/json", strings.NewReader(body))
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		var e controlapi.Error
		require.NoError(t, json.NewDecoder(res.Body).Decode(&e))
		return res.StatusCode, e
	}
	for _, c := range []struct {
		path, body, code string
		status           int
	}{
		{"/token", "{}", controlapi.CodeUnknown, http.StatusNotFound},
		{"/v1/enrol", "not json", controlapi.CodeBadRequest, http.StatusBadRequest},
		{"/v1/enrol", `{"csr":"AAAA"}`, controlapi.CodeBadRequest, http.StatusBadRequest},
		{"/v1/enrol", `{"secret":"` + strings.Repeat("x", controlapi.MaxBody) + `"}`, controlapi.CodeTooLarge, http.StatusRequestEntityTooLarge},
	} {
		status, e := post(c.path, c.body)
		require.Equal(t, c.status, status, e.Message)
		require.Equal(t, c.code, e.Code)
	}
	const tries = 100_000 // far more than the burst, however slow the machine
	for range tries {
		status, e := post("/v1/enrol", "{}")
		if status == http.StatusTooManyRequests {
			require.Equal(t, controlapi.CodeTooMany, e.Code)
			return
		}
	}
	t.Fatal("enrolments are not bounded")
}
