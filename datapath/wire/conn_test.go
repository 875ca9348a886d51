package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/ident"
	"drover/datapath/wire/wiretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	agentPeer  = wiretest.Agent(ident.MachineID{0xa1, 15: 0x1a})
	serverPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps1"}
)

// accepted is what Upgrade gave for one request.
type accepted struct {
	conn *Conn
	err  error
}

// serve runs a server on the loopback interface.
func serve(t *testing.T, cfg *tls.Config) (address string, upgrades <-chan accepted) {
	t.Helper()
	raw, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ch := make(chan accepted, 8)
	mux := http.NewServeMux()
	mux.HandleFunc(Path, func(w http.ResponseWriter, r *http.Request) {
		c, err := Upgrade(w, r)
		ch <- accepted{c, err}
	})
	s := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: HandshakeTimeout}
	go func() { _ = s.Serve(tls.NewListener(raw, cfg)) }()
	t.Cleanup(func() { _ = s.Close() })
	return raw.Addr().String(), ch
}

// connect gives both ends of a new connection.
func connect(t *testing.T) (agent, server *Conn) {
	t.Helper()
	ca := wiretest.NewCA(t)
	address, upgrades := serve(t, ca.Server(serverPeer))
	agent, err := Dial(t.Context(), nil, address, ca.Client(agentPeer, serverPeer))
	require.NoError(t, err)
	a := <-upgrades
	require.NoError(t, a.err)
	t.Cleanup(func() { _, _ = agent.Close(), a.conn.Close() })
	return agent, a.conn
}

// session gives both ends of a session that was agreed.
func session(t *testing.T) (agent, server *Conn) {
	t.Helper()
	agent, server = connect(t)
	for _, s := range samples()[:2] {
		from, to := ends(agent, server, s.from)
		require.NoError(t, from.Send(s.m))
		got, err := to.Receive()
		require.NoError(t, err)
		require.Equal(t, s.m, said(got))
	}
	return agent, server
}

func ends(agent, server *Conn, from side) (*Conn, *Conn) {
	if from == fromAgent {
		return agent, server
	}
	return server, agent
}

func TestSessionCarriesEveryKind(t *testing.T) {
	agent, server := session(t)
	require.Equal(t, serverPeer, agent.Peer())
	require.Equal(t, agentPeer, server.Peer())
	require.NotEmpty(t, server.RemoteAddr().String())
	for _, side := range []side{fromAgent, fromServer} {
		from, to := ends(agent, server, side)
		var want []Message
		for _, s := range samples()[2:] {
			if s.from == side {
				want = append(want, s.m)
			}
		}
		sent := make(chan error, 1)
		go func() {
			for _, m := range want {
				if err := from.Send(m); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for _, m := range want {
			got, err := to.Receive()
			require.NoError(t, err)
			require.Equal(t, m, said(got))
		}
		require.NoError(t, <-sent)
	}
	require.Equal(t, agent.BytesWritten(), server.BytesRead())
	require.Equal(t, server.BytesWritten(), agent.BytesRead())
}

// Data of the full size does not fit the buffers of either side.
func TestDataOfFullSize(t *testing.T) {
	agent, server := session(t)
	end := samples()[6].m
	sent := make(chan error, 1)
	go func() {
		var err error
		for disk := range 3 {
			err = errors.Join(err, agent.Send(testData(1<<20, disk)))
		}
		sent <- errors.Join(err, agent.Send(end))
	}()
	for disk := range 3 {
		got, err := server.Receive()
		require.NoError(t, err)
		require.Equal(t, testData(1<<20, disk), said(got))
	}
	got, err := server.Receive()
	require.NoError(t, err)
	require.Equal(t, end, got)
	require.NoError(t, <-sent)
}

func TestPingIsAnswered(t *testing.T) {
	agent, server := session(t)
	before := time.Now()
	received := make(chan error, 1)
	go func() {
		m, err := agent.Receive()
		if c, ok := m.(*Command); !ok || c.Order != OrderCut {
			err = errors.Join(err, errors.New("want the command behind the ping"))
		}
		received <- err
	}()
	require.NoError(t, server.Send(&Ping{Time: before}))
	require.NoError(t, server.Send(&Command{Order: OrderCut}))
	m, err := server.Receive()
	require.NoError(t, err)
	require.IsType(t, &Pong{}, m)
	require.WithinRange(t, m.(*Pong).Time, before.Add(-time.Second), time.Now().Add(time.Second))
	require.NoError(t, <-received)
}

func TestSendersAtOnce(t *testing.T) {
	agent, server := session(t)
	const senders, each = 8, 50
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for n := range each {
				m := Message(&Progress{Disk: i, Done: int64(n), Total: each})
				if n == each-1 || n%7 == 3 {
					m = &SumsQuery{Disk: i, First: int64(n), Count: 1}
				}
				_ = agent.Send(m) // a lost one is missed below
			}
		})
	}
	next := map[int]int64{}
	for range senders * each {
		m, err := server.Receive()
		require.NoError(t, err)
		switch m := m.(type) {
		case *Progress:
			require.Equal(t, next[m.Disk], m.Done)
			next[m.Disk]++
		case *SumsQuery:
			require.Equal(t, next[m.Disk], m.First)
			next[m.Disk]++
		}
	}
	wg.Wait()
}

// sendRaw sends a frame that was spoilt after its header was made.
func sendRaw(t *testing.T, c *Conn, spoil func(frame []byte)) {
	t.Helper()
	c.out.nonce = c.nonce.Load()
	frame := c.out.encode(t, &Pong{Time: time.Unix(1, 0)})
	spoil(frame)
	_, err := c.conn.Write(frame)
	require.NoError(t, err)
}

func TestBadFramesOnTheLine(t *testing.T) {
	for name, spoil := range map[string]func([]byte){
		"damaged":       func(b []byte) { b[headerBytes+3] ^= 4 },
		"nonce differs": func(b []byte) { b[offNonce] ^= 1 },
		"frame number":  func(b []byte) { b[offSeq]++ },
		"wrong side":    func(b []byte) { b[offKind] = byte(KindCommand) },
		"at most 8":     func(b []byte) { b[offLength+3] = 0x80 },
	} {
		t.Run(name, func(t *testing.T) {
			agent, server := session(t)
			sendRaw(t, agent, spoil)
			_, err := server.Receive()
			requireBadFrame(t, err, name)
		})
	}
}

func TestRefuseReachesTheOtherSide(t *testing.T) {
	agent, server := connect(t)
	require.NoError(t, agent.Send(samples()[0].m))
	_, err := server.Receive()
	require.NoError(t, err)
	refusal := &Refuse{Code: CodeEpoch, Detail: "epoch 4 is the owner", RetryAfter: time.Minute}
	require.NoError(t, server.Refuse(refusal))
	require.ErrorIs(t, server.Send(&Command{Order: OrderCut}), ErrRefused)
	got, err := agent.Receive()
	require.NoError(t, err)
	require.Equal(t, refusal, got)
	_, err = agent.Receive()
	require.Equal(t, io.EOF, err)
	require.NoError(t, agent.Close())
	_, err = server.Receive()
	require.ErrorIs(t, err, ErrRefused)
	require.NoError(t, server.Close())
}

// What the other side still sends does not keep it from reading the refusal.
func TestRefuseInTheMiddleOfData(t *testing.T) {
	agent, server := session(t)
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 100 && err == nil; i++ {
			err = agent.Send(testData(1<<20, i%2))
		}
		sent <- err
	}()
	_, err := server.Receive()
	require.NoError(t, err)
	require.NoError(t, server.Refuse(&Refuse{Code: CodeFull}))
	ended := make(chan error, 1)
	go func() {
		_, err := server.Receive()
		ended <- errors.Join(err, server.Close())
	}()
	got, err := agent.Receive()
	require.NoError(t, err)
	require.Equal(t, &Refuse{Code: CodeFull}, got)
	require.NoError(t, agent.Close())
	<-sent
	require.ErrorIs(t, <-ended, ErrRefused)
}

// A refusal that left the flush to a Send behind it is flushed all the same: that
// Send may find the session refused.
func TestRefuseBeforeAnotherSender(t *testing.T) {
	line := &tape{Reader: strings.NewReader("")}
	c := newConn(line, ident.Peer{}, fromServer, nil)
	c.queued.Add(1) // another goroutine has announced its Send and waits
	refusal := &Refuse{Code: CodeStopped, Detail: "stopping"}
	require.NoError(t, c.Refuse(refusal))
	got, err := play(fromAgent, 0, line.written.Bytes()).Receive()
	require.NoError(t, err, "the refusal never left")
	require.Equal(t, refusal, got)
}

func TestCloseBetweenFrames(t *testing.T) {
	agent, server := session(t)
	require.NoError(t, server.Close())
	require.NoError(t, server.Close())
	_, err := agent.Receive()
	require.Equal(t, io.EOF, err)
	require.Error(t, server.Send(&Command{Order: OrderCut}))
	_, err = server.Receive()
	require.Error(t, err)
}

func TestCloseInsideAFrame(t *testing.T) {
	for _, n := range []int{1, headerBytes - 1, headerBytes, headerBytes + 7} {
		agent, server := session(t)
		agent.out.nonce = testNonce
		_, err := agent.conn.Write(agent.out.encode(t, &Pong{})[:n])
		require.NoError(t, err)
		require.NoError(t, agent.Close())
		_, err = server.Receive()
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.ErrorContains(t, err, agentPeer.String())
	}
}

// The first frame may arrive together with the answer to the upgrade.
func TestEarlyBytesBelongToTheSession(t *testing.T) {
	all := samples()
	want := all[len(all)-1].m
	frame := (&frameState{from: fromServer}).encode(t, want)
	for n := range frame {
		early := bytes.NewReader(frame[:n])
		c := newConn(&tape{Reader: bytes.NewReader(frame[n:])}, ident.Peer{}, fromAgent, early)
		got, err := c.Receive()
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.EqualValues(t, len(frame), c.BytesRead())
	}
}

func TestDialRefusesAndIsRefused(t *testing.T) {
	ca, foreign := wiretest.NewCA(t), wiretest.NewCA(t)
	client := ca.Client(agentPeer, serverPeer)
	with := func(change func(*tls.Config)) *tls.Config {
		c := client.Clone()
		change(c)
		return c
	}
	old := ca.Server(serverPeer)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, c := range map[string]struct{ server, client *tls.Config }{
		"agent of a foreign CA":     {ca.Server(serverPeer), with(func(c *tls.Config) { c.Certificates = []tls.Certificate{foreign.Issue(agentPeer)} })},
		"agent without certificate": {ca.Server(serverPeer), with(func(c *tls.Config) { c.Certificates = nil })},
		"server of a foreign CA":    {foreign.Server(serverPeer), client},
		"server of another name":    {ca.Server(ident.Peer{Role: ident.RoleProcessServer, Name: "ps2"}), client},
		"server with TLS 1.2":       {old, client},
	} {
		t.Run(name, func(t *testing.T) {
			address, upgrades := serve(t, c.server)
			_, err := Dial(t.Context(), nil, address, c.client)
			require.Error(t, err)
			require.Empty(t, upgrades, "the request was let through")
		})
	}
}

// A server that does not verify certificates by TLS still gives no stream.
func TestUpgradeWantsVerifiedCertificates(t *testing.T) {
	ca, foreign := wiretest.NewCA(t), wiretest.NewCA(t)
	lax := ca.Server(serverPeer)
	lax.ClientAuth = tls.RequestClientCert
	address, upgrades := serve(t, lax)
	client := ca.Client(agentPeer, serverPeer)
	for _, certs := range [][]tls.Certificate{nil, {foreign.Issue(agentPeer)}} {
		client.Certificates = certs
		_, err := Dial(t.Context(), nil, address, client)
		require.ErrorContains(t, err, "401")
		require.ErrorContains(t, err, "verified client certificate")
		require.Error(t, (<-upgrades).err)
	}
}

func TestUpgradeChecksTheRequest(t *testing.T) {
	cert := wiretest.NewCA(t).Issue(agentPeer)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	require.NoError(t, err)
	for name, c := range map[string]struct {
		spoil  func(*http.Request)
		status int
	}{
		"no TLS":             {func(r *http.Request) { r.TLS = nil }, http.StatusUnauthorized},
		"TLS 1.2":            {func(r *http.Request) { r.TLS.Version = tls.VersionTLS12 }, http.StatusForbidden},
		"POST":               {func(r *http.Request) { r.Method = http.MethodPost }, http.StatusBadRequest},
		"HTTP/2":             {func(r *http.Request) { r.ProtoMajor = 2 }, http.StatusBadRequest},
		"body":               {func(r *http.Request) { r.ContentLength = 1 }, http.StatusBadRequest},
		"no upgrade":         {func(r *http.Request) { r.Header.Del("Connection") }, http.StatusUpgradeRequired},
		"another protocol":   {func(r *http.Request) { r.Header.Set("Upgrade", "drover/1") }, http.StatusUpgradeRequired},
		"cannot be hijacked": {func(*http.Request) {}, http.StatusInternalServerError},
	} {
		r := httptest.NewRequest(http.MethodGet, Path, nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", UpgradeToken)
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{leaf},
			VerifiedChains: [][]*x509.Certificate{{leaf}}}
		c.spoil(r)
		w := httptest.NewRecorder()
		_, err := Upgrade(w, r)
		require.Error(t, err, name)
		require.Equal(t, c.status, w.Code, name)
		if c.status == http.StatusUpgradeRequired {
			require.Equal(t, UpgradeToken, w.Header().Get("Upgrade"), name)
		}
	}
}

func TestDialErrors(t *testing.T) {
	_, err := Dial(t.Context(), nil, "127.0.0.1:1", nil)
	require.ErrorContains(t, err, "without a TLS configuration")
	broken := func(_ context.Context, network, address string) (net.Conn, error) {
		return nil, errors.New("proxy says no to " + network + " " + address)
	}
	_, err = Dial(t.Context(), broken, "server.example:9443", &tls.Config{MinVersion: tls.VersionTLS13})
	require.EqualError(t, err, "connect to server.example:9443: proxy says no to tcp server.example:9443")
}

// A server that accepts and then says nothing holds Dial only as long as its context.
func TestDialEndsWithItsContext(t *testing.T) {
	ca := wiretest.NewCA(t)
	raw, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := tls.NewListener(raw, ca.Server(serverPeer))
	defer func() { require.NoError(t, listener.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	held := make(chan net.Conn, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, _ = c.Read(make([]byte, 1024)) // the handshake and the request
			held <- c
		}
		cancel()
	}()
	_, err = Dial(ctx, nil, raw.Addr().String(), ca.Client(agentPeer, serverPeer))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, (<-held).Close())
}

// said is what a message says, without the memory it lies in.
func said(m Message) Message {
	if d, ok := m.(*Data); ok {
		d.memory = nil
	}
	return m
}
