package azstorage_test

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/azstorage"
	"drover/tests/azurearm"
	"drover/tests/azurite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(azurite.Main{M: m}, azurite.Idle()...) }

// keys counts how often an account is asked for a user delegation key.
type keys struct {
	*azurite.Secure
	asked atomic.Int64
}

func (k *keys) Do(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("comp") == "userdelegationkey" {
		k.asked.Add(1)
	}
	return k.Secure.Do(r)
}

// TestReadableByOthers: whoever has an address that an identity signed reads the blob, in an
// emulator that checks signatures by itself, and does nothing else with it.
func TestReadableByOthers(t *testing.T) {
	e := &keys{Secure: azurite.StartSecure(t)}
	a := azstorage.Account{Endpoint: e.Endpoint, Container: "seed", Transport: e, Auth: azstorage.Auth{Method: azstorage.ManagedIdentity, ClientID: azurearm.OtherClientID}}
	c, err := azstorage.Open(a)
	require.NoError(t, err)
	require.NoError(t, c.Make(t.Context()))
	for _, name := range []string{"machines/a", "machines/b"} {
		_, err = c.Put(t.Context(), name, []byte("content"), azstorage.If{Absent: true}, nil)
		require.NoError(t, err)
	}
	cred, err := a.Auth.Credential(azcore.ClientOptions{Transport: e}, false)
	require.NoError(t, err)
	d, err := azstorage.NewDelegate(e.Endpoint, cred, azcore.ClientOptions{Transport: e})
	require.NoError(t, err)
	signed, err := d.Readable(t.Context(), c.Name()+"/machines/a")
	require.NoError(t, err)

	status := func(method, address string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, address, bytes.NewReader(nil))
		require.NoError(t, err)
		req.Header.Set("x-ms-version", "2026-06-06")
		req.Header.Set("x-ms-blob-type", "BlockBlob")
		resp, err := e.Do(req)
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode, string(b)
	}
	code, content := status(http.MethodGet, signed)
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "content", content)
	for _, x := range []struct{ method, address string }{
		{http.MethodPut, signed}, {http.MethodDelete, signed}, {http.MethodGet, strings.Replace(signed, "machines/a", "machines/b", 1)},
	} {
		code, _ = status(x.method, x.address)
		require.Equal(t, http.StatusForbidden, code, x.method)
	}
	u, err := url.Parse(signed)
	require.NoError(t, err)
	q := u.Query()
	require.Equal(t, "r", q.Get("sp"))
	require.Equal(t, "https", q.Get("spr"))
	until, err := time.Parse(time.RFC3339, q.Get("se"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), until, time.Minute)
	_, err = d.Readable(t.Context(), c.Name()+"/machines/b")
	require.NoError(t, err)
	require.Equal(t, int64(1), e.asked.Load(), "a key serves for many")
}
