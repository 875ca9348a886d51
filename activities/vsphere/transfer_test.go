package vsphere

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/soap"

	"drover/workflows/api"
)

// TestWhichHostIsTrusted: the one whose certificate vCenter names, and whom vCenter's own
// trust would take; nobody else.
func TestWhichHostIsTrusted(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	shown := s.Certificate()
	authority := x509.NewCertPool()
	authority.AddCert(shown)
	sum := sha256.Sum256(shown.Raw)
	nobody := &tls.Config{RootCAs: x509.NewCertPool()} //nolint:gosec // only what it trusts
	for name, c := range map[string]struct {
		trust *tls.Config
		named certificate
		host  string
		fine  bool
	}{
		"nothing known":                         {nobody, certificate{}, "127.0.0.1", false},
		"SHA-1 that vCenter tells":              {nobody, certificate{thumbprint: soap.ThumbprintSHA1(shown)}, "other", true},
		"SHA-256":                               {nobody, certificate{thumbprint: soap.ThumbprintSHA256(shown)}, "other", true},
		"another thumbprint":                    {nobody, certificate{thumbprint: "AA:BB"}, "127.0.0.1", false},
		"the whole certificate":                 {nobody, certificate{exact: shown.Raw}, "other", true},
		"another, the thumbprint does not help": {nobody, certificate{exact: []byte("x"), thumbprint: soap.ThumbprintSHA1(shown)}, "127.0.0.1", false},
		"vCenter's authority":                   {&tls.Config{RootCAs: authority}, certificate{}, "127.0.0.1", true},                            //nolint:gosec // as above
		"and another name":                      {&tls.Config{RootCAs: authority}, certificate{}, "esx-1.example.org", false},                   //nolint:gosec // as above
		"vCenter's pin":                         {&tls.Config{VerifyConnection: pin(hex.EncodeToString(sum[:]))}, certificate{}, "other", true}, //nolint:gosec // as above
		"another pin":                           {&tls.Config{VerifyConnection: pin("aabb")}, certificate{}, "127.0.0.1", false},                //nolint:gosec // as above
	} {
		err := verifyHost(tls.ConnectionState{PeerCertificates: []*x509.Certificate{shown}, ServerName: c.host}, c.trust, c.named)
		if c.fine {
			require.NoError(t, err, name)
		} else {
			require.ErrorIs(t, err, errPin, name)
		}
	}
	require.ErrorIs(t, verifyHost(tls.ConnectionState{}, nobody, certificate{}), errPin)
}

// TestGuestTakesPlainWords: what is no plain word is not given to a guest's shell.
func TestGuestTakesPlainWords(t *testing.T) {
	for _, command := range []string{"", "a;b", "a'b", "a\"b", "$(a)", "a>b", "a|b", "a&b", "a\nb", "a`b`", "a\\b", "a*", "~"} {
		_, err := (&Guest{}).Run(t.Context(), command)
		requireCode(t, err, api.CodeInternal)
	}
}

// TestVCenterWithoutGuestOperations is refused; so is a VM that is not there.
func TestVCenterWithoutGuestOperations(t *testing.T) {
	w := newWorld(t)
	_, ref := w.vm(t, "db-1")
	nothing := func(*Guest) error { t.Error("the guest was entered"); return nil }
	user := GuestUser{Name: "root", Password: "x", From: "guests"}
	requireCode(t, w.InGuest(t.Context(), ref, user, nothing), api.CodePush) // no Tools
	require.NoError(t, w.sim.ToolsStatus(t.Context(), "db-1", "guestToolsRunning"))
	err := w.on(t.Context(), w.vcenter, func(s *session) error {
		s.client.ServiceContent.GuestOperationsManager = nil
		return nil
	})
	require.NoError(t, err)
	requireCode(t, w.InGuest(t.Context(), ref, user, nothing), api.CodeVCenter)
	requireCode(t, w.InGuest(t.Context(), api.VMRef{VCenter: "vc-1", InstanceUUID: "x"}, user, nothing), api.CodeNotFound)
}
