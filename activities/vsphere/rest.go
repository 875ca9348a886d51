package vsphere

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/vmware/govmomi/session/keepalive"
	"github.com/vmware/govmomi/vapi/rest"

	"drover/workflows/api"
)

// Bounds of an answer over REST, in bytes.
const (
	maxREST      = 16 << 20
	maxRESTError = 4 << 10 // it goes into the text of an error
)

// restSession is a log-in at a vCenter's REST, beside the session over SOAP. Not every
// vCenter and not every user has one: it is opened when something asks for it.
type restSession struct {
	client *rest.Client
	alive  *keepalive.HandlerREST
}

// restPlace of a session's one log-in at REST. Who holds the lock may log in.
type restPlace struct {
	lock    chan struct{}
	current *restSession
	closed  bool
}

// onREST calls f with the REST session, and once more with a new one if vCenter does not
// know the first any more. What f does may be done twice.
func (s *session) onREST(ctx context.Context, f func(*rest.Client) error) error {
	r, err := s.restSession(ctx, nil)
	if err != nil {
		return err
	}
	err = f(r.client)
	if !rest.IsStatusError(err, http.StatusUnauthorized) {
		return err
	}
	s.config.Logger.Info("vCenter ended the REST session; a new one is opened", "vcenter", s.name)
	if r, err = s.restSession(ctx, r); err != nil {
		return err
	}
	return f(r.client)
}

// restSession gives the session and opens one if there is none. stale is one that vCenter
// does not know any more; nil: none.
func (s *session) restSession(ctx context.Context, stale *restSession) (*restSession, error) {
	select {
	case s.rest.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, failed(api.CodeVCenter, ctx.Err(), "log in to the REST of vCenter %s", s.name)
	}
	defer func() { <-s.rest.lock }()
	if s.rest.closed {
		return nil, failed(api.CodeVCenterAway, nil, "the session at vCenter %s was ended", s.name)
	}
	if s.rest.current != nil && s.rest.current != stale {
		return s.rest.current, nil
	}
	if s.rest.current != nil {
		s.rest.current.alive.Stop()
		s.rest.current = nil
	}
	fresh, err := s.loginREST(ctx)
	if err != nil {
		return nil, err
	}
	s.rest.current = fresh
	return fresh, nil
}

// loginREST opens a session with the user and password as they are now.
func (s *session) loginREST(ctx context.Context) (*restSession, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	secret, err := s.secret()
	if err != nil {
		return nil, err
	}
	client, asks := s.restClient(), s.restClient()
	alive := keepalive.NewHandlerREST(client, s.config.KeepAlive, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), loginTimeout)
		defer cancel()
		// By another client: the handler would wait for itself when it is stopped meanwhile.
		asks.SessionID(client.SessionID())
		known, err := asks.Session(ctx)
		if err == nil && known == nil {
			err = errors.New("the session is over")
		}
		return err
	})
	client.Transport = alive
	if err := client.Login(ctx, url.UserPassword(secret.User, secret.Password)); err != nil {
		alive.Stop() // it begins with an answer, whatever that is
		switch {
		case rest.IsStatusError(err, http.StatusUnauthorized):
			return nil, failed(api.CodeVCenterDenied, err, "log in to the REST of vCenter %s as the user of credentials %s", s.name, s.logsIn)
		case rest.IsStatusError(err, http.StatusNotFound):
			return nil, failed(api.CodeVCenter, err, "log in to the REST of vCenter %s, which seems to have none", s.name)
		}
		return nil, failed(api.CodeVCenter, err, "log in to the REST of vCenter %s", s.name)
	}
	return &restSession{client, alive}, nil
}

// restClient speaks over the transport of the session over SOAP: vCenter is trusted in the
// same way. It follows no redirection, which would take the session's id along.
func (s *session) restClient() *rest.Client {
	c := rest.NewClient(s.client.Client)
	c.Timeout = inventoryTimeout
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.Transport = bounded{c.Transport}
	return c
}

// bounded cuts answers off that are longer than any should be.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(r)
	if err != nil {
		return res, err
	}
	most := int64(maxREST)
	if res.StatusCode >= http.StatusBadRequest {
		most = maxRESTError
	}
	res.Body = http.MaxBytesReader(nil, res.Body, most)
	return res, nil
}

// logoutREST ends the session for good.
func (s *session) logoutREST(ctx context.Context) {
	s.rest.lock <- struct{}{} // bounded by a log-in
	defer func() { <-s.rest.lock }()
	s.rest.closed = true
	if r := s.rest.current; r != nil {
		_ = r.client.Logout(ctx) // vCenter ends idle sessions by itself
		r.alive.Stop()
		s.rest.current = nil
	}
}
