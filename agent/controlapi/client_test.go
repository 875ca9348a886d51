package controlapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var machine = ident.NewMachineID("vc", "vm")

// serve answers every request with h.
func serve(t *testing.T, h http.HandlerFunc) *controlapi.Client {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	c := controlapi.NewClient(srv.URL+"/", &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool})
	t.Cleanup(c.Close)
	return c
}

func TestCallsSayWhatTheyMean(t *testing.T) {
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		_, _ = fmt.Fprintf(w, `{"id":"k1","secret":"%s="}`, strings.Repeat("A", 43))
	})
	_, err := c.Enrol(t.Context(), controlapi.EnrolRequest{})
	require.NoError(t, err)
	_, err = c.Renew(t.Context(), controlapi.RenewRequest{})
	require.NoError(t, err)
	_, err = c.Assignment(t.Context(), 7, time.Hour)
	require.NoError(t, err)
	_, err = c.Heartbeat(t.Context(), controlapi.Heartbeat{})
	require.NoError(t, err)
	key, err := c.Key(t.Context(), machine, "k1")
	require.NoError(t, err)
	require.Equal(t, controlapi.Key{ID: "k1", Secret: make([]byte, controlapi.KeySize)}, key)
	_, err = c.Key(t.Context(), machine, "other") // the server gave another one
	requireCode(t, err, controlapi.CodeUnexpected)
	require.Equal(t, []string{"POST /v1/enrol", "POST /v1/renew", "GET /v1/assignment?version=7&wait=30s",
		"POST /v1/heartbeat", "GET /v1/machines/" + machine.String() + "/key?key=k1", "GET /v1/machines/" + machine.String() + "/key?key=other"}, asked)
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var e *controlapi.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, e.Message)
}

func TestAnswersThatAreNotWanted(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body, code string
		message    string
	}{
		"typed":        {403, `{"code":"DRV-1004","message":"revoked"}`, controlapi.CodeRevoked, "send the heartbeat: revoked"},
		"a proxy's":    {502, "<html>Bad gateway " + strings.Repeat("x", 1000), controlapi.CodeUnexpected, "HTTP status 502"},
		"a redirect":   {302, "", controlapi.CodeUnexpected, "HTTP status 302"},
		"not JSON":     {200, "<html>", controlapi.CodeUnexpected, "cannot be read"},
		"without end":  {200, strings.Repeat(" ", controlapi.MaxBody+1), controlapi.CodeTooLarge, "over"},
		"error's size": {500, strings.Repeat(" ", controlapi.MaxBody+1), controlapi.CodeTooLarge, "over"},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			})
			_, err := client.Heartbeat(t.Context(), controlapi.Heartbeat{})
			requireCode(t, err, c.code)
			require.ErrorContains(t, err, c.message)
			require.Less(t, len(err.Error()), 600)
		})
	}
}

func TestRequestsAreBounded(t *testing.T) {
	c := controlapi.NewClient("https://127.0.0.1:1", nil)
	_, err := c.Heartbeat(t.Context(), controlapi.Heartbeat{Detail: strings.Repeat("x", controlapi.MaxBody)})
	requireCode(t, err, controlapi.CodeTooLarge)
}

func TestWhoGaveUpIsClear(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	shutdown := errors.New("shutting down")
	time.AfterFunc(10*time.Millisecond, func() { cancel(shutdown) })
	_, err := c.Assignment(ctx, 0, 10*time.Second)
	require.ErrorIs(t, err, shutdown)
	require.ErrorContains(t, err, "stopped by the caller")
}

func TestDialerIsUsed(t *testing.T) {
	refused := errors.New("the proxy says no")
	var address string
	c := controlapi.NewClient("https://cs.test:443", nil).WithDialer(func(_ context.Context, _, a string) (net.Conn, error) {
		address = a
		return nil, refused
	})
	_, err := c.Heartbeat(t.Context(), controlapi.Heartbeat{})
	require.ErrorIs(t, err, refused)
	require.Equal(t, "cs.test:443", address)
}

func TestAddressIsChecked(t *testing.T) {
	for _, server := range []string{"", "cs.test:443", "http://cs.test", "https://", "https://cs test"} {
		_, err := controlapi.NewClient(server, nil).Heartbeat(t.Context(), controlapi.Heartbeat{})
		require.ErrorContains(t, err, "want https://host:port", server)
	}
}
