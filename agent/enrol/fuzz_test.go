package enrol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/tests/fuzz"
)

// FuzzToken reads any file as a token. A refusal does not repeat it.
func FuzzToken(f *testing.F) {
	print := strings.Repeat("0a", 32)
	for name, text := range map[string]string{
		"good": print + ".secret\n", "upper": strings.ToUpper(print) + ".secret", "no-secret": print + ".", "no-dot": print, "short": "0a0a.secret",
		"long": print + "." + strings.Repeat("x", maxToken), "longer": print + "." + strings.Repeat("y", 2*maxTokenFile), "dots": print + ".a.b",
	} {
		fuzz.Seed(f, name, []byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		fuzz.Alloc(t, 8*maxTokenFile, func() {
			token, err := ReadToken(path)
			require.NoError(t, err)
			print, secret, err := splitToken(token)
			if err != nil {
				if len(token) > 16 {
					require.NotContains(t, err.Error(), token)
				}
				return
			}
			require.Equal(t, token, strings.TrimSpace(string(b)), "a part of a token is none")
			require.Equal(t, strings.ToLower(token), print+"."+strings.ToLower(secret))
			require.Regexp(t, "^[0-9a-f]{64}$", print)
			require.NotEmpty(t, secret)
		})
	})
}

// FuzzCertificate reads what a server may send as a certificate, and its name.
func FuzzCertificate(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(f, err)
	good := func(uris ...string) []byte {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(1, 0), NotAfter: time.Unix(1<<31, 0)}
		for _, text := range uris {
			u, err := url.Parse(text)
			require.NoError(f, err)
			tmpl.URIs = append(tmpl.URIs, u)
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		require.NoError(f, err)
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	one := good("drover://process-server/ps-1")
	fuzz.Seed(f, "one", one)
	fuzz.Seed(f, "two", append(append([]byte{}, one...), one...))
	fuzz.Seed(f, "two-names", good("drover://agent/a", "drover://agent/b"))
	fuzz.Seed(f, "no-name", good())
	fuzz.Seed(f, "torn", one[:len(one)/2])
	fuzz.Seed(f, "key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxPEM {
			return
		}
		cert, err := parseCertificate(b)
		if err != nil {
			return
		}
		require.Len(t, fingerprint(cert), 64)
		if p, err := ident.PeerOf(cert); err == nil {
			require.Len(t, cert.URIs, 1)
			require.Equal(t, cert.URIs[0].String(), p.URI().String())
		}
	})
}
