// Package enrol gives a process its identity: it exchanges a single-use token for
// a certificate of the configuration server's CA, keeps it under the state folder
// and renews it. Agents, process servers and master targets use it alike.
//
// Trust runs both ways from the token alone: its first part is the fingerprint of
// the CA, so that the client knows the server before it sends the second part,
// the secret, which proves its own right.
package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"drover/agent/controlapi"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
)

// maxToken bounds the text of a token, in bytes.
const maxToken = 512

// Options of [Enrol].
type Options struct {
	// Server is the configuration server, "https://host:port".
	Server string
	// Token is "<CA fingerprint>.<secret>" as the token command printed it; white
	// space around it does not matter.
	Token string
	// StateDir is the folder under which the identity is kept.
	StateDir string
	// Instance is the hardware uuid of this machine (DMI product uuid).
	Instance string
	// Version of the program.
	Version string
	// DataAddress is the host:port for agents' data, of a process server or master target.
	DataAddress string
	// Dial opens the connection; nil dials directly.
	Dial controlapi.Dial
}

// Enrol exchanges the token for an identity and keeps it under StateDir. The key
// is made here and never leaves. A token works once: when the answer is lost, a
// new token is needed.
func Enrol(ctx context.Context, o Options) (*Identity, error) {
	print, _, err := splitToken(o.Token)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", o.Server, err)
	}
	key, res, err := exchange(ctx, o)
	if err != nil {
		return nil, err
	}
	id, err := accept(identityDir(o.StateDir), key, res, print)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", o.Server, err)
	}
	return id, nil
}

// Reenrol exchanges a token for a new certificate of the same name, when the present
// one has expired: the operator who issued the token approved it. The token must be
// of the CA that is trusted already.
func (id *Identity) Reenrol(ctx context.Context, o Options) error {
	print, _, err := splitToken(o.Token)
	if err != nil {
		return fmt.Errorf("enrol again at %s: %w", o.Server, err)
	}
	if !same(fingerprint(id.ca), print) {
		return fmt.Errorf("enrol again at %s: the token is of another CA than the one trusted since the first enrolment; "+
			"if the configuration server was set up anew, remove %s and restart", o.Server, id.dir)
	}
	key, res, err := exchange(ctx, o)
	if err != nil {
		return err
	}
	if err := id.install(key, []byte(res.Certificate)); err != nil {
		return fmt.Errorf("enrol again at %s: %w", o.Server, err)
	}
	return nil
}

// exchange shows the token and gives the answer, with the key that it is for.
func exchange(ctx context.Context, o Options) (*ecdsa.PrivateKey, controlapi.EnrolResponse, error) {
	var none controlapi.EnrolResponse
	print, secret, err := splitToken(o.Token)
	if err != nil {
		return nil, none, fmt.Errorf("enrol at %s: %w", o.Server, err)
	}
	// Find out that the folder cannot be written to before the token is spent.
	if err := prepare(identityDir(o.StateDir)); err != nil {
		return nil, none, fmt.Errorf("enrol at %s: %w", o.Server, err)
	}
	key, csr, err := newKey()
	if err != nil {
		return nil, none, fmt.Errorf("enrol at %s: %w", o.Server, err)
	}
	failpoint.Hit(failpoint.EnrolKey)
	client := controlapi.NewClient(o.Server, tokenTLS(print)).WithDialer(o.Dial)
	defer client.Close()
	res, err := client.Enrol(ctx, controlapi.EnrolRequest{
		Secret: secret, CSR: csr, Instance: o.Instance, Version: o.Version, DataAddress: o.DataAddress,
	})
	if err == nil {
		failpoint.Hit(failpoint.EnrolAnswered)
	}
	return key, res, err
}

// accept checks what the server sent and keeps it.
func accept(dir string, key *ecdsa.PrivateKey, res controlapi.EnrolResponse, print string) (*Identity, error) {
	ca, err := parseCertificate([]byte(res.CA))
	if err != nil {
		return nil, fmt.Errorf("the CA in the answer: %w", err)
	}
	if !same(fingerprint(ca), print) {
		return nil, errors.New("the CA in the answer is not the token's")
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	id, err := newIdentity(dir, keyPEM, []byte(res.Certificate), []byte(res.CA))
	if err != nil {
		return nil, err
	}
	if err := save(dir, keyPEM, []byte(res.Certificate), []byte(res.CA)); err != nil {
		return nil, err
	}
	return id, nil
}

// splitToken takes a token apart. Errors never repeat it.
func splitToken(token string) (print, secret string, err error) {
	token = strings.TrimSpace(token)
	print, secret, ok := strings.Cut(token, ".")
	if raw, err := hex.DecodeString(print); !ok || err != nil || len(raw) != sha256.Size || secret == "" || len(token) > maxToken {
		return "", "", errors.New("the token is not of the form <CA fingerprint>.<secret>; copy it whole from the output of `drover-config-server token`")
	}
	return strings.ToLower(print), secret, nil
}

// tokenTLS trusts only a configuration server whose CA has the fingerprint.
func tokenTLS(print string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// There is no CA to check with yet: the token's fingerprint is all we have, and
		// VerifyConnection holds the server to it.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, cert := range s.PeerCertificates {
				if !cert.IsCA || !same(fingerprint(cert), print) {
					continue
				}
				pool := x509.NewCertPool()
				pool.AddCert(cert)
				p, err := verifyServer(s, pool)
				if err == nil && p.Role != ident.RoleConfigurationServer {
					err = fmt.Errorf("the server is %s, expected a configuration server", p)
				}
				return err
			}
			return errors.New("the server does not present the CA whose fingerprint is in the token: the address leads to another server, or something between reads the traffic; the token was not sent")
		},
	}
}

// same compares two fingerprints.
func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// newKey makes a key and the request for a certificate. The subject is left empty:
// the server decides the name.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate the key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate request: %w", err)
	}
	return key, csr, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
