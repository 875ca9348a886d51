package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// FuzzRequest takes anything for a certificate request: it comes from whoever
// reaches the port.
func FuzzRequest(f *testing.F) {
	for name, curve := range map[string]elliptic.Curve{"good": elliptic.P256(), "curve": elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		require.NoError(f, err)
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"x"}}, key)
		require.NoError(f, err)
		fuzz.Seed(f, name, der)
		fuzz.Seed(f, name+"-torn", der[:len(der)/2])
		der[len(der)-1] ^= 1
		fuzz.Seed(f, name+"-signature", der)
	}
	f.Fuzz(func(t *testing.T, csr []byte) {
		fuzz.Alloc(t, 64*len(csr), func() { fuzz.Kind(t, CheckRequest(csr), ErrRequest) })
	})
}
