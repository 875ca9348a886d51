// Package wiretest issues the certificates that tests of streams need: a small CA
// in memory, with the names that a configuration server would give.
package wiretest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/datapath/ident"
)

// CA issues certificates.
type CA struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	Pool *x509.CertPool
}

// NewCA makes a CA.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := template("test CA")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &CA{t: t, key: key, cert: cert, Pool: pool}
}

// Save keeps the CA in a directory, for other processes.
func (c *CA) Save(dir string) {
	c.t.Helper()
	key, err := x509.MarshalECPrivateKey(c.key)
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "ca.key"), key, 0o600), os.WriteFile(filepath.Join(dir, "ca.crt"), c.cert.Raw, 0o600))
	if err != nil {
		c.t.Fatal(err)
	}
}

// Load takes up a CA that was saved.
func Load(t testing.TB, dir string) *CA {
	t.Helper()
	der, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	c := &CA{t: t, Pool: x509.NewCertPool()}
	if c.key, err = x509.ParseECPrivateKey(der); err != nil {
		t.Fatal(err)
	}
	if der, err = os.ReadFile(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.Pool.AddCert(c.cert)
	return c
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

// Issue gives a certificate with the peer's name.
func (c *CA) Issue(p ident.Peer) tls.Certificate {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	tmpl := template(p.String())
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	tmpl.URIs = []*url.URL{p.URI()}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Server is a server's configuration: client certificates of this CA are required.
func (c *CA) Server(p ident.Peer) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.Issue(p)},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.Pool}
}

// Client is the configuration of self that wants to reach exactly the server.
func (c *CA) Client(self, server ident.Peer) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.Issue(self)},
		// Names are drover:// names, never hosts: VerifyConnection checks both.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("no server certificate")
			}
			leaf := s.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: c.Pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			if err != nil {
				return err
			}
			if got, err := ident.PeerOf(leaf); err != nil || got != server {
				return fmt.Errorf("server is %s, want %s (%w)", got, server, err)
			}
			return nil
		}}
}

// Agent is the peer of a machine's agent.
func Agent(m ident.MachineID) ident.Peer {
	return ident.Peer{Role: ident.RoleAgent, Name: m.String()}
}
