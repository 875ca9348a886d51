package enrol

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

// ErrNotEnrolled is wrapped by [Load] when there is no identity yet.
var ErrNotEnrolled = errors.New("not enrolled")

// ErrExpired is wrapped when a certificate's life has ended.
var ErrExpired = errors.New("the certificate expired")

// ErrNotKept is wrapped when a new certificate is in use but could not be written
// to the state folder.
var ErrNotKept = errors.New("the new certificate is in use but not kept")

// maxPEM bounds an identity file, in bytes.
const maxPEM = 64 << 10

// Identity is who a process is: its certificate, its key and the CA it trusts.
// It is safe for concurrent use; a renewal replaces the certificate for every
// configuration made from it before.
type Identity struct {
	// Peer is the name in the certificate.
	Peer ident.Peer
	// CA holds the one CA that issues all certificates.
	CA *x509.CertPool

	dir     string
	ca      *x509.Certificate
	caPEM   []byte
	current atomic.Pointer[tls.Certificate]
	unkept  atomic.Pointer[pair] // in use, but the state folder did not take it
}

// pair is a certificate with its key, as they are kept.
type pair struct{ key, cert []byte }

// Certificate gives the certificate in use now, with its key.
func (id *Identity) Certificate() *tls.Certificate { return id.current.Load() }

// Load reads the identity that [Enrol] kept under stateDir. Without one the error
// is [ErrNotEnrolled]. With an expired certificate the error is [ErrExpired], and
// the identity is there: it says who the process is, and [Identity.Reenrol] renews it.
func Load(stateDir string) (*Identity, error) {
	dir := identityDir(stateDir)
	caPEM, err := readFile(filepath.Join(dir, caFile))
	var keyPEM, certPEM []byte
	if err == nil {
		keyPEM, certPEM, err = loadPair(dir)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("load the identity: %w (%w); enrol first with a token from `drover-config-server token`", ErrNotEnrolled, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load the identity: %w", err)
	}
	id, err := newIdentity(dir, keyPEM, certPEM, caPEM)
	if errors.Is(err, ErrExpired) {
		return id, fmt.Errorf("load the identity from %s: %w; enrol again with a new token", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("load the identity from %s: %w; remove the folder and enrol again with a new token", dir, err)
	}
	return id, nil
}

// newIdentity checks that the three parts belong together. With [ErrExpired] there is
// an identity too.
func newIdentity(dir string, keyPEM, certPEM, caPEM []byte) (*Identity, error) {
	ca, err := parseCertificate(caPEM)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate: %w", err)
	}
	id := &Identity{dir: dir, CA: x509.NewCertPool(), ca: ca, caPEM: caPEM}
	id.CA.AddCert(ca)
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	if id.Peer, err = id.check(&cert); err != nil && !errors.Is(err, ErrExpired) {
		return nil, err
	}
	id.current.Store(&cert)
	return id, err
}

// check verifies one of our own certificates and gives its name. One that is good but
// for its age is [ErrExpired].
func (id *Identity) check(cert *tls.Certificate) (ident.Peer, error) {
	leaf := cert.Leaf
	at := time.Now()
	expired := at.After(leaf.NotAfter)
	if expired {
		at = leaf.NotAfter
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: id.CA, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return ident.Peer{}, fmt.Errorf("the certificate: %w", err)
	}
	peer, err := ident.PeerOf(leaf)
	if err == nil && expired {
		err = fmt.Errorf("%w at %s", ErrExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return peer, err
}

// ClientTLS is the configuration to reach exactly the named server: TLS 1.3, our
// certificate, and the server's must carry exactly this drover:// name.
func (id *Identity) ClientTLS(server ident.Peer) *tls.Config {
	return id.client(func(p ident.Peer) error {
		if p != server {
			return fmt.Errorf("the server is %s, expected %s: the address leads to another server", p, server)
		}
		return nil
	})
}

// ClientTLSRole is the configuration to reach any server of a role; it serves for
// the configuration server, of which there is one per CA.
func (id *Identity) ClientTLSRole(role ident.Role) *tls.Config {
	return id.client(func(p ident.Peer) error {
		if p.Role != role {
			return fmt.Errorf("the server is %s, expected a %s: the address leads to another server", p, role)
		}
		return nil
	})
}

func (id *Identity) client(accept func(ident.Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.current.Load(), nil
		},
		// Servers are known by drover:// names, not by host names, which the standard
		// check insists on; VerifyConnection checks the chain and the name instead.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(s tls.ConnectionState) error {
			p, err := verifyServer(s, id.CA)
			if err != nil {
				return err
			}
			return accept(p)
		},
	}
}

// verifyServer checks the server's chain against the CA and gives its name.
func verifyServer(s tls.ConnectionState, ca *x509.CertPool) (ident.Peer, error) {
	if len(s.PeerCertificates) == 0 {
		return ident.Peer{}, errors.New("the server sent no certificate")
	}
	leaf := s.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return ident.Peer{}, fmt.Errorf("the server's certificate is not of our CA: %w", err)
	}
	return ident.PeerOf(leaf)
}

// ServerTLS is the configuration of a listener: TLS 1.3, and every client must
// have a certificate of our CA with a drover:// name.
func (id *Identity) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.current.Load(), nil
		},
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  id.CA,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the client sent no certificate")
			}
			_, err := ident.PeerOf(s.PeerCertificates[0])
			return err
		},
	}
}

// ControlClient gives a client of the configuration server, with this identity.
func (id *Identity) ControlClient(server string, dial controlapi.Dial) *controlapi.Client {
	return controlapi.NewClient(server, id.ClientTLSRole(ident.RoleConfigurationServer)).WithDialer(dial)
}

// install checks a new certificate for a key, puts both to use and keeps them. A bad
// one changes nothing. When the state folder does not take it, it is used all the
// same, since the one that is kept may expire: the error is [ErrNotKept].
func (id *Identity) install(key *ecdsa.PrivateKey, certPEM []byte) error {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("the new certificate does not fit the key: %w", err)
	}
	p, err := id.check(&cert)
	if err != nil {
		return fmt.Errorf("the new certificate: %w", err)
	}
	if p != id.Peer {
		return fmt.Errorf("the new certificate is for %s, want %s", p, id.Peer)
	}
	id.current.Store(&cert)
	id.unkept.Store(&pair{keyPEM, certPEM})
	return id.keep()
}

// keep writes what is in use but not kept.
func (id *Identity) keep() error {
	p := id.unkept.Load()
	if p == nil {
		return nil
	}
	if err := save(id.dir, p.key, p.cert, id.caPEM); err != nil {
		return fmt.Errorf("%w: %w; make room or mend the file system, else a restart after %s needs a new token",
			ErrNotKept, err, id.keptUntil())
	}
	id.unkept.Store(nil)
	return nil
}

// keptUntil is when the certificate in the state folder expires, as text.
func (id *Identity) keptUntil() string {
	b, err := readFile(filepath.Join(id.dir, certFile))
	if err == nil {
		var cert *x509.Certificate
		if cert, err = parseCertificate(b); err == nil {
			return cert.NotAfter.UTC().Format(time.RFC3339)
		}
	}
	return "now"
}

// Kept reports whether the state folder has the certificate that is in use.
func (id *Identity) Kept() bool { return id.unkept.Load() == nil }

// fingerprint is the SHA-256 of a certificate, lower-case hex.
func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// parseCertificate reads exactly one certificate from PEM.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
