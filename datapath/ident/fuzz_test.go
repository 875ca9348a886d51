package ident

import (
	"crypto/x509"
	"encoding"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/fuzz"
)

// FuzzText reads any text as each of the types, and as a certificate's URI. What is
// accepted has only one form; an id or a name is fit for a file's name.
func FuzzText(f *testing.F) {
	m := NewMachineID("vc", "vm").String()
	for name, text := range map[string]string{
		"id": m, "upper": "ABCDEFAB-0000-4000-8000-000000000000", "urn": "urn:uuid:" + m, "braces": "{" + m + "}", "path": "../" + m[3:],
		"digest": Digest{1, 0xff}.String(), "consistency": "file-system", "empty": "",
		"uri-agent": Peer{RoleAgent, NewMachineID("vc", "vm").String()}.URI().String(), "uri-server": "drover://process-server/ps-1",
		"role": "drover://root/x", "scheme": "http://agent/x", "user": "drover://a@agent/x", "query": "drover://agent/x?y", "fragment": "drover://agent/x#y",
		"escaped": "drover://process-server/a%2Fb", "dots": "drover://process-server/../x", "slash": "drover://process-server//x", "opaque": "drover:agent/x",
	} {
		fuzz.Seed(f, name, text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := ParseMachineID(text); err == nil {
			require.Equal(t, text, id.String())
			require.Equal(t, text, filepath.Base(text))
		}
		if id, err := ParseDiskID(text); err == nil {
			require.Equal(t, text, id.String())
			require.Equal(t, text, filepath.Base(text))
		}
		for _, v := range []interface {
			encoding.TextUnmarshaler
			encoding.TextMarshaler
		}{new(Digest), new(Consistency)} {
			if v.UnmarshalText([]byte(text)) != nil {
				continue
			}
			again, err := v.MarshalText()
			require.NoError(t, err)
			require.Equal(t, len(text), len(again))
			require.NoError(t, v.UnmarshalText(again))
		}
		if u, err := url.Parse(text); err == nil {
			requireOnePeer(t, u)
		}
	})
}

// requireOnePeer holds that an accepted name is spelled in one way only.
func requireOnePeer(t *testing.T, u *url.URL) {
	p, err := PeerOf(&x509.Certificate{URIs: []*url.URL{u}})
	if err != nil {
		return
	}
	require.Equal(t, u.String(), p.URI().String())
	require.Equal(t, p.Name, filepath.Base(p.Name))
	require.NotEqual(t, "..", p.Name)
	again, err := PeerOf(&x509.Certificate{URIs: []*url.URL{p.URI()}})
	require.NoError(t, err)
	require.Equal(t, p, again)
}
