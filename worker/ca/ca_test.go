package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

var ps1 = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

func request(t *testing.T, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	require.NoError(t, err)
	return der
}

func TestOnlyThePublicKeyIsTaken(t *testing.T) {
	c, err := Open(t.TempDir(), time.Hour)
	require.NoError(t, err)
	csr := request(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"evil.test"},
		URIs: []*url.URL{ident.Peer{Role: ident.RoleConfigurationServer, Name: "cs"}.URI()}})
	issued, err := c.Issue(csr, ps1, nil)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(issued.DER)
	require.NoError(t, err)
	got, err := ident.PeerOf(cert)
	require.NoError(t, err)
	require.Equal(t, ps1, got)
	require.Equal(t, ps1.String(), cert.Subject.CommonName)
	require.Empty(t, cert.DNSNames)
	require.False(t, cert.IsCA)
	require.WithinDuration(t, time.Now().Add(time.Hour), cert.NotAfter, time.Minute)
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		_, err = cert.Verify(x509.VerifyOptions{Roots: c.Pool(), KeyUsages: []x509.ExtKeyUsage{use}})
		require.NoError(t, err)
	}
	another, err := c.Issue(csr, ps1, nil)
	require.NoError(t, err)
	require.NotEqual(t, issued.Serial, another.Serial)
}

func TestRequestsAreChecked(t *testing.T) {
	c, err := Open(t.TempDir(), 0)
	require.NoError(t, err)
	good := request(t, &x509.CertificateRequest{})
	require.NoError(t, CheckRequest(good))
	tampered := append([]byte(nil), good...)
	tampered[len(tampered)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	rsaRequest, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	require.NoError(t, err)
	for name, csr := range map[string][]byte{"empty": nil, "noise": []byte("noise"), "signature": tampered, "rsa": rsaRequest} {
		_, err := c.Issue(csr, ps1, nil)
		require.ErrorIs(t, err, ErrRequest, name)
	}
	for _, p := range []ident.Peer{{}, {Role: "root", Name: "x"}, {Role: ident.RoleAgent}} {
		_, err := c.Issue(good, p, nil)
		require.ErrorContains(t, err, "cannot be a peer's", p)
	}
}

func TestOpenKeepsTheCA(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, 0)
	require.NoError(t, err)
	again, err := Open(dir, 0)
	require.NoError(t, err)
	require.Equal(t, c.Fingerprint(), again.Fingerprint())
	require.Len(t, c.Fingerprint(), 64)
	key, cert := filepath.Join(dir, "ca", keyFile), filepath.Join(dir, "ca", certFile)
	for _, path := range []string{key, cert} {
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	}
	// Cut short after the key: the certificate is made for it.
	require.NoError(t, os.Remove(cert))
	_, err = Open(dir, 0)
	require.NoError(t, err)
	// The key is lost: nothing is made up.
	require.NoError(t, os.Remove(key))
	_, err = Open(dir, 0)
	require.ErrorContains(t, err, "from the backup")
	require.NoFileExists(t, key)

	_, err = Open(t.TempDir(), time.Second)
	require.ErrorContains(t, err, "life of certificates")
}

func TestServerCertificateRenewsItself(t *testing.T) {
	c, err := Open(t.TempDir(), time.Hour)
	require.NoError(t, err)
	now := time.Now()
	c.now = func() time.Time { return now }
	s, err := c.Server(ident.Peer{Role: ident.RoleConfigurationServer, Name: "cs-1"}, []string{"cs.test", "192.0.2.1"})
	require.NoError(t, err)
	get := func() *tls.Certificate {
		cert, err := s.GetCertificate(nil)
		require.NoError(t, err)
		return cert
	}
	first := get()
	leaf, err := x509.ParseCertificate(first.Certificate[0])
	require.NoError(t, err)
	for _, host := range []string{"cs.test", "192.0.2.1"} {
		_, err = leaf.Verify(x509.VerifyOptions{Roots: c.Pool(), DNSName: host})
		require.NoError(t, err)
	}
	require.Equal(t, c.cert.Raw, first.Certificate[1])
	now = now.Add(39 * time.Minute)
	require.Same(t, first, get())
	now = now.Add(2 * time.Minute)
	require.NotSame(t, first, get())
	require.NotEqual(t, first.PrivateKey, get().PrivateKey)
}
