package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/datapath/wire/wiretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ps1 = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// authority is a CA that renews what it is asked to.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	peer ident.Peer
	err  error
}

func newAuthority(t *testing.T, peer ident.Peer) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{key: key, cert: cert, peer: peer, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(csr []byte, peer ident.Peer) (controlapi.EnrolResponse, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return controlapi.EnrolResponse{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore: time.Now().Add(-time.Second), NotAfter: time.Now().Add(time.Minute), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{peer.URI()},
	}, a.cert, req.PublicKey, a.key)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return controlapi.EnrolResponse{Certificate: string(cert), CA: string(a.pem)}, err
}

func (a *authority) Renew(_ context.Context, req controlapi.RenewRequest) (controlapi.EnrolResponse, error) {
	if a.err != nil {
		return controlapi.EnrolResponse{}, a.err
	}
	return a.issue(req.CSR, a.peer)
}

// identity gives a peer of the authority, kept in a new folder.
func (a *authority) identity(t *testing.T, peer ident.Peer) (*Identity, string) {
	t.Helper()
	key, csr, err := newKey()
	require.NoError(t, err)
	res, err := a.issue(csr, peer)
	require.NoError(t, err)
	state := t.TempDir()
	id, err := accept(identityDir(state), key, res, fingerprint(a.cert))
	require.NoError(t, err)
	return id, state
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	a := newAuthority(t, ps1)
	_, err := Load(t.TempDir())
	require.ErrorIs(t, err, ErrNotEnrolled)
	_, state := a.identity(t, ps1)
	other, otherState := newAuthority(t, ps1).identity(t, ps1)
	require.NotNil(t, other)
	foreign, err := os.ReadFile(filepath.Join(otherState, "identity", caFile))
	require.NoError(t, err)
	path := filepath.Join(state, "identity", caFile)
	require.NoError(t, os.WriteFile(path, foreign, 0o600))
	_, err = Load(state)
	require.ErrorContains(t, err, "enrol again with a new token")
	require.NoError(t, os.WriteFile(path, []byte("noise"), 0o600))
	_, err = Load(state)
	require.ErrorContains(t, err, "not a certificate in PEM")
	require.NoError(t, os.Remove(path))
	_, err = Load(state)
	require.ErrorIs(t, err, ErrNotEnrolled)
}

// A crash at any step of a renewal leaves an identity that loads.
func TestRenewalSurvivesACrashAtAnyStep(t *testing.T) {
	a := newAuthority(t, ps1)
	id, state := a.identity(t, ps1)
	dir := identityDir(state)
	before := snapshot(t, dir)
	require.NoError(t, id.Renew(t.Context(), a))
	after := snapshot(t, dir)
	require.NotEqual(t, before[keyFile], after[keyFile])
	for name, files := range map[string]map[string]string{
		"nothing yet":        before,
		"next key written":   {keyFile: before[keyFile], certFile: before[certFile], caFile: before[caFile], nextKeyFile: after[keyFile]},
		"certificate placed": {keyFile: before[keyFile], certFile: after[certFile], caFile: before[caFile], nextKeyFile: after[keyFile]},
		"done":               after,
	} {
		t.Run(name, func(t *testing.T) {
			crashed := t.TempDir()
			require.NoError(t, os.MkdirAll(identityDir(crashed), 0o700))
			for file, data := range files {
				require.NoError(t, os.WriteFile(filepath.Join(identityDir(crashed), file), []byte(data), 0o600))
			}
			for range 2 {
				got, err := Load(crashed)
				require.NoError(t, err)
				require.Equal(t, ps1, got.Peer)
				require.Equal(t, files[certFile], string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: got.Certificate().Certificate[0]})))
			}
		})
	}
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	files := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		files[e.Name()] = string(b)
	}
	require.Len(t, files, 3)
	return files
}

// handshake connects client and server in memory.
func handshake(t *testing.T, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			s := tls.Server(c, server)
			if err = s.HandshakeContext(t.Context()); err == nil {
				_, err = s.Write([]byte{1})
			}
			_ = c.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	client = client.Clone()
	client.ServerName = "ignored"
	tc := tls.Client(c, client)
	if clientErr = tc.HandshakeContext(t.Context()); clientErr == nil {
		_, clientErr = io.ReadFull(tc, make([]byte, 1)) // the server's verdict on the client
	}
	_ = c.Close()
	return clientErr, <-done
}

func TestPeersKnowEachOtherByName(t *testing.T) {
	a := newAuthority(t, ps1)
	server, _ := a.identity(t, ps1)
	client, _ := a.identity(t, wiretest.Agent(ident.NewMachineID("vc", "vm")))
	cErr, sErr := handshake(t, client.ClientTLS(ps1), server.ServerTLS())
	require.NoError(t, cErr)
	require.NoError(t, sErr)
	cErr, _ = handshake(t, client.ClientTLSRole(ident.RoleProcessServer), server.ServerTLS())
	require.NoError(t, cErr)
	cErr, _ = handshake(t, client.ClientTLS(ident.Peer{Role: ident.RoleProcessServer, Name: "ps-2"}), server.ServerTLS())
	require.ErrorContains(t, cErr, "the server is process-server/ps-1, expected process-server/ps-2")
	cErr, _ = handshake(t, client.ClientTLSRole(ident.RoleConfigurationServer), server.ServerTLS())
	require.ErrorContains(t, cErr, "expected a configuration-server")

	foreign := wiretest.NewCA(t)
	cErr, _ = handshake(t, client.ClientTLS(ps1), foreign.Server(ps1))
	require.ErrorContains(t, cErr, "not of our CA")
	_, sErr = handshake(t, foreign.Client(client.Peer, ps1), server.ServerTLS())
	require.Error(t, sErr)
	_, sErr = handshake(t, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}, server.ServerTLS())
	require.ErrorContains(t, sErr, "didn't provide a certificate")
}

func TestRenewedCertificateIsUsedByOldConfigurations(t *testing.T) {
	a := newAuthority(t, ps1)
	server, _ := a.identity(t, ps1)
	cfg := server.ServerTLS()
	old, err := cfg.GetCertificate(nil)
	require.NoError(t, err)
	require.NoError(t, server.Renew(t.Context(), a))
	renewed, err := cfg.GetCertificate(nil)
	require.NoError(t, err)
	require.NotEqual(t, old.Leaf.SerialNumber, renewed.Leaf.SerialNumber)
}

// What a renewal brings is checked; a bad one changes nothing.
func TestBadRenewalsAreRefused(t *testing.T) {
	a := newAuthority(t, ps1)
	id, state := a.identity(t, ps1)
	before := snapshot(t, identityDir(state))
	mt := *a
	mt.peer = ident.Peer{Role: ident.RoleMasterTarget, Name: "mt-1"}
	require.ErrorContains(t, id.Renew(t.Context(), &mt), "is for master-target/mt-1")
	require.ErrorContains(t, id.Renew(t.Context(), newAuthority(t, ps1)), "the new certificate")
	require.Equal(t, before, snapshot(t, identityDir(state)))
}

func TestKeepRenewedWaitsForTheTime(t *testing.T) {
	a := newAuthority(t, ps1)
	id, _ := a.identity(t, ps1)
	leaf := id.Certificate().Leaf
	require.True(t, id.RenewAt().After(time.Now()))
	require.True(t, id.RenewAt().Before(leaf.NotAfter))

	// One that is due.
	due := *id.Certificate()
	backdated := *leaf
	backdated.NotBefore = time.Now().Add(-time.Hour)
	backdated.NotAfter = time.Now().Add(time.Minute)
	due.Leaf = &backdated
	id.current.Store(&due)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); id.KeepRenewed(ctx, a, slog.New(slog.DiscardHandler)) }()
	require.Eventually(t, func() bool { return id.Certificate() != &due }, 10*time.Second, time.Millisecond)
	cancel()
	<-done
	require.IsType(t, &ecdsa.PrivateKey{}, id.Certificate().PrivateKey)

	// A failing server leaves it as it is.
	a.err = errors.New("no server")
	id.current.Store(&due)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	id.KeepRenewed(ctx, a, slog.New(slog.DiscardHandler))
	require.Same(t, &due, id.Certificate())
}

func TestParseCertificateTakesOne(t *testing.T) {
	a := newAuthority(t, ps1)
	_, err := parseCertificate(slices.Concat(a.pem, a.pem))
	require.ErrorContains(t, err, "more than one")
	_, err = parseCertificate(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	require.Error(t, err)
	cert, err := parseCertificate(a.pem)
	require.NoError(t, err)
	require.IsType(t, &x509.Certificate{}, cert)
}
