// Package ca is the certificate authority of a configuration server. It alone
// decides the names: of a request only the public key is taken.
package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"drover/datapath/ident"
	"drover/worker/statefile"
)

// Lives of certificates.
const (
	DefaultLife = 7 * 24 * time.Hour
	MinLife     = 5 * time.Second // for tests: so short a life needs a very good line
	MaxLife     = 90 * 24 * time.Hour

	caLife      = 10 * 365 * 24 * time.Hour
	maxBackdate = 10 * time.Minute // certificates begin earlier, for clocks that are behind
	serialBits  = 127
	maxHosts    = 32
)

// Files, in <state>/ca.
const (
	keyFile  = "key.pem"
	certFile = "cert.pem"
)

// CA issues certificates. It is safe for concurrent use.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	pool *x509.CertPool
	life time.Duration
	now  func() time.Time
}

// Open reads the CA under stateDir, or makes it there the first time. Life is that
// of the certificates it issues (MinLife to MaxLife); 0 is DefaultLife.
func Open(stateDir string, life time.Duration) (*CA, error) {
	if life == 0 {
		life = DefaultLife
	}
	if life < MinLife || life > MaxLife {
		return nil, fmt.Errorf("open the CA: life of certificates %v: want %v to %v", life, MinLife, MaxLife)
	}
	c := &CA{life: life, now: time.Now}
	dir := filepath.Join(stateDir, "ca")
	if err := c.load(dir); err != nil {
		return nil, fmt.Errorf("open the CA in %s: %w", dir, err)
	}
	c.pool = x509.NewCertPool()
	c.pool.AddCert(c.cert)
	c.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
	return c, nil
}

// load reads key and certificate. The key is written first, so a key without a
// certificate is a creation that was cut short; the reverse is a loss.
func (c *CA) load(dir string) error {
	keyPath, certPath := filepath.Join(dir, keyFile), filepath.Join(dir, certFile)
	certDER, certErr := readPEM(certPath, "CERTIFICATE")
	if certErr != nil && !errors.Is(certErr, os.ErrNotExist) {
		return certErr
	}
	keyDER, err := readPEM(keyPath, "PRIVATE KEY")
	if errors.Is(err, os.ErrNotExist) {
		if certErr == nil {
			return fmt.Errorf("%s is there but the key is not; restore %s from the backup", certPath, keyPath)
		}
		keyDER, err = createKey(keyPath)
	}
	if err != nil {
		return err
	}
	if certErr != nil {
		if certDER, err = createCert(certPath, keyDER); err != nil {
			return err
		}
	}
	return c.parse(keyDER, certDER)
}

func (c *CA) parse(keyDER, certDER []byte) error {
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return fmt.Errorf("parse the key: %w", err)
	}
	var ok bool
	if c.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return fmt.Errorf("the key is a %T, want ECDSA", key)
	}
	if c.cert, err = x509.ParseCertificate(certDER); err != nil {
		return fmt.Errorf("parse the certificate: %w", err)
	}
	if !c.key.PublicKey.Equal(c.cert.PublicKey) {
		return errors.New("key and certificate do not fit each other; restore both from the same backup")
	}
	if c.now().After(c.cert.NotAfter) {
		return fmt.Errorf("the certificate expired at %s; move the folder away and enrol everything anew", c.cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

func readPEM(path, kind string) ([]byte, error) {
	b, err := statefile.Read(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: not a %s in PEM; restore it from the backup", path, kind)
	}
	return block.Bytes, nil
}

func createKey(path string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return der, statefile.Create(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func createCert(path string, keyDER []byte) ([]byte, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("parse the key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key is a %T, want ECDSA", parsed)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Drover CA " + serial.Text(16)[:8]},
		NotBefore: now.Add(-maxBackdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA's certificate: %w", err)
	}
	return der, statefile.Create(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	// Never short, so that its text has enough digits, never zero.
	return serial.SetBit(serial, serialBits-1, 1), nil
}

// Fingerprint is the SHA-256 of the CA's certificate, lower-case hex: the first
// part of every token.
func (c *CA) Fingerprint() string {
	sum := sha256.Sum256(c.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// PEM is the CA's certificate.
func (c *CA) PEM() []byte { return c.pem }

// Pool holds the CA's certificate alone.
func (c *CA) Pool() *x509.CertPool { return c.pool }

// Issued is a certificate that was issued.
type Issued struct {
	PEM     []byte
	DER     []byte
	Serial  string // lower-case hex
	Expires time.Time
}

// ErrRequest is wrapped by [CA.Issue] when the request is at fault.
var ErrRequest = errors.New("certificate request refused")

// CheckRequest says whether Issue would take the request (PKCS#10, DER).
func CheckRequest(csr []byte) error {
	_, err := requestKey(csr)
	return err
}

func requestKey(csr []byte) (*ecdsa.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot be parsed: %w", ErrRequest, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: the signature does not prove the key: %w", ErrRequest, err)
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the key is a %T, want ECDSA P-256", ErrRequest, req.PublicKey)
	}
	return key, nil
}

// Issue gives the peer a certificate for the request's public key; everything
// else in the request is ignored. Hosts are further names and addresses to put
// in, for servers that people reach too.
func (c *CA) Issue(csr []byte, peer ident.Peer, hosts []string) (Issued, error) {
	key, err := requestKey(csr)
	if err != nil {
		return Issued{}, err
	}
	return c.issue(key, peer, hosts)
}

func (c *CA) issue(key *ecdsa.PublicKey, peer ident.Peer, hosts []string) (Issued, error) {
	if len(hosts) > maxHosts {
		return Issued{}, fmt.Errorf("issue a certificate for %s: %d host names, at most %d", peer, len(hosts), maxHosts)
	}
	serial, err := newSerial()
	if err != nil {
		return Issued{}, err
	}
	now := c.now()
	expires := now.Add(c.life)
	if expires.After(c.cert.NotAfter) {
		expires = c.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: peer.String()},
		NotBefore: now.Add(-min(maxBackdate, c.life/10)), NotAfter: expires,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{peer.URI()},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key, c.key)
	if err != nil {
		return Issued{}, fmt.Errorf("sign the certificate of %s: %w", peer, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Issued{}, fmt.Errorf("issue a certificate for %s: %w", peer, err)
	}
	// What we issue must be read by everybody else as the same name.
	if got, err := ident.PeerOf(cert); err != nil || got != peer {
		return Issued{}, fmt.Errorf("issue a certificate for %q: the name cannot be a peer's", peer.String())
	}
	return Issued{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), DER: der,
		Serial: serial.Text(16), Expires: cert.NotAfter}, nil
}
