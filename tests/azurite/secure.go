package azurite

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/tests/azurearm"
	"drover/tests/ports"
)

// secureHost has the account's name in its first part, as in Azure.
const secureHost = AccountName + ".blob.localhost"

// Secure is an emulator that is asked over TLS, at a host name, with tokens or with what
// was signed by a user delegation key. It takes those of the identity that the other
// server gives tokens.
type Secure struct {
	Endpoint string
	// Identity gives tokens, as a virtual machine's metadata service too.
	Identity *azurearm.Server

	client *http.Client
}

// StartSecure starts an emulator, in memory, which ends with the test.
func StartSecure(t testing.TB) *Secure {
	t.Helper()
	s, pool, err := startSecure(t.Context(), t.TempDir())
	Need(t, err)
	identity := azurearm.Start()
	pool.AppendCertsFromPEM(identity.CA())
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	dialer := &net.Dialer{}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if host, _, _ := net.SplitHostPort(address); host == secureHost {
				address = s.address // no resolver is asked
			}
			return dialer.DialContext(ctx, network, address)
		},
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		identity.Close()
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &Secure{Endpoint: "https://" + net.JoinHostPort(secureHost, port), Identity: identity, client: &http.Client{Transport: transport}}
}

// startSecure gives the certificates to trust, too.
func startSecure(ctx context.Context, dir string) (*Server, *x509.CertPool, error) {
	address, err := ports.Free()
	if err != nil {
		return nil, nil, err
	}
	cert, key, err := certificate()
	if err != nil {
		return nil, nil, fmt.Errorf("make azurite's certificate: %w", err)
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	s := &Server{address: address, more: []string{"--cert", certFile, "--key", keyFile, "--oauth", "basic"}}
	return s, pool, s.Run(ctx)
}

func certificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{secureHost}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", der), block("PRIVATE KEY", secret), err
}

// Do sends a request; what is meant for the metadata service of a virtual machine goes to
// the identity's server.
func (s *Secure) Do(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "169.254.169.254" {
		at, err := url.Parse(s.Identity.URL)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host, r.Host = at.Scheme, at.Host, at.Host
	}
	return s.client.Do(r)
}
