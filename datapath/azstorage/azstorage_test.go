package azstorage

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestNoSecretInErrors: a SAS is a secret in the request's address; what fails is told
// without it.
func TestNoSecretInErrors(t *testing.T) {
	var asked string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RawQuery
		w.Header().Set("x-ms-error-code", "AuthenticationFailed")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte("<Error><AuthenticationErrorDetail>TOPSECRET</AuthenticationErrorDetail></Error>"))
	}))
	file := filepath.Join(t.TempDir(), "sas")
	require.NoError(t, os.WriteFile(file, []byte("?sv=2026&sig=TOPSECRET\n"), 0o600))
	a := Account{Endpoint: s.URL, Container: "seed", Auth: Auth{Method: SAS, SASFile: file}, Retry: Retry{Times: 1, First: time.Millisecond, Most: time.Second, Try: time.Second}}
	c, err := Open(a)
	require.NoError(t, err)
	_, _, err = c.Get(t.Context(), "x", 10)
	require.ErrorIs(t, err, os.ErrPermission)
	require.Contains(t, asked, "sig=TOPSECRET", "it was sent")
	require.NotContains(t, err.Error(), "TOPSECRET")
	require.Contains(t, err.Error(), "AuthenticationFailed")
	s.Close() // from now on connections are refused
	_, _, err = c.Get(t.Context(), "x", 10)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "TOPSECRET")
	require.NoError(t, os.WriteFile(file, []byte("no query"), 0o600))
	_, err = (&sasPolicy{file: file}).read(time.Now())
	require.ErrorContains(t, err, "holds no SAS")
	require.NotContains(t, Clean(&url.Error{Op: "Get", URL: "https://h/p?sig=TOPSECRET", Err: errors.New("x")}).Error(), "TOPSECRET")
}

// TestPacerFollowsTheAccount: less while it is busy, at once and for as long as it says;
// more again, slowly, up to the limits.
func TestPacerFollowsTheAccount(t *testing.T) {
	p := NewPacer(Limits{Bytes: 1000, Requests: 100}, nil)
	now := time.Now()
	p.told(503, "7", now)
	require.InDelta(t, 650, float64(p.bytes.Limit()), 1)
	require.InDelta(t, 65, float64(p.requests.Limit()), 1)
	require.Equal(t, now.Add(7*time.Second), p.until)
	p.told(429, "", now.Add(cutEvery/2))
	require.InDelta(t, 650, float64(p.bytes.Limit()), 1, "those under way tell of the same moment")
	for i := range 100 {
		p.told(503, "86400", now.Add(time.Duration(i+1)*cutEvery))
	}
	require.InDelta(t, 1000*leastShare, float64(p.bytes.Limit()), 1, "never nothing")
	require.LessOrEqual(t, time.Until(p.until), mostPause+200*time.Second, "a pause has a bound")
	last := p.share
	for i := range 2000 {
		p.told(201, "", now.Add(time.Duration(1000+i)*growEvery))
		require.GreaterOrEqual(t, p.share, last)
		last = p.share
	}
	require.InDelta(t, 1, p.share, 0.001)
}

func TestAccountsThatCannotBe(t *testing.T) {
	good := Account{Endpoint: "https://a.blob.core.windows.net", Container: "seed", Auth: Auth{Method: ManagedIdentity}}
	require.NoError(t, good.Check())
	for _, change := range []func(*Account){
		func(a *Account) { a.Endpoint = "https://a.blob.core.windows.net/?sig=x" },
		func(a *Account) { a.Endpoint = "https://u:p@a.blob.core.windows.net" },
		func(a *Account) { a.Endpoint = "" },
		func(a *Account) { a.Endpoint = "http://a.blob.core.windows.net" },
		func(a *Account) { a.Container = "a--b" },
		func(a *Account) { a.Container = "../x" },
		func(a *Account) { a.Auth.Method = "" },
		func(a *Account) { a.Auth.Method = EmulatorKey },
		func(a *Account) { a.Auth.Method = SAS },
	} {
		a := good
		change(&a)
		require.Error(t, a.Check(), a)
	}
}
