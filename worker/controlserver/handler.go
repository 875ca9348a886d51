package controlserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/datapath/release"
	"drover/worker/ca"
	"drover/worker/registry"
)

// failure is an answer that is not 2xx. Cause is for the log alone.
type failure struct {
	status int
	body   controlapi.Error
	cause  error
}

func (f *failure) Error() string { return f.body.Error() }

func fail(status int, code, format string, args ...any) *failure {
	return &failure{status: status, body: controlapi.Error{Code: code, Message: fmt.Sprintf(format, args...)}}
}

func internal(err error) *failure {
	return &failure{status: http.StatusInternalServerError, cause: err, body: controlapi.Error{Code: controlapi.CodeServer,
		Message: "the configuration server failed; the cause is in its log"}}
}

// call answers one request of a peer; it returns what to send as JSON.
type call func(r *http.Request, peer ident.Peer) (any, error)

var (
	everyone = []ident.Role{ident.RoleAgent, ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay}
	agents   = []ident.Role{ident.RoleAgent}
	servers  = []ident.Role{ident.RoleProcessServer, ident.RoleMasterTarget}
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/enrol", s.answer("enrol", func(r *http.Request) (any, error) { return s.doEnrol(r) }))
	mux.Handle("POST /v1/renew", s.peerCall("renew", everyone, s.doRenew))
	mux.Handle("GET /v1/assignment", s.peerCall("assignment", agents, s.doAssignment))
	mux.Handle("POST /v1/heartbeat", s.peerCall("heartbeat", everyone, s.doHeartbeat))
	mux.Handle("GET /v1/machines/{id}/key", s.peerCall("key", servers, s.doKey))
	mux.Handle("/", s.answer("unknown", func(r *http.Request) (any, error) {
		return nil, fail(http.StatusNotFound, controlapi.CodeUnknown, "no such call; check that client and server are of the same version")
	}))
	return mux
}

// peerCall checks the certificate and the role before the call.
func (s *Server) peerCall(name string, roles []ident.Role, c call) http.Handler {
	return s.answer(name, func(r *http.Request) (any, error) {
		peer, err := s.authenticate(r)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(roles, peer.Role) {
			return nil, fail(http.StatusForbidden, controlapi.CodeForbidden, "a certificate of %s may not do this; it is for %v", peer, roles)
		}
		return c(r, peer)
	})
}

// authenticate gives the peer of the connection's certificate.
func (s *Server) authenticate(r *http.Request) (ident.Peer, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.PeerCertificates) == 0 {
		return ident.Peer{}, fail(http.StatusUnauthorized, controlapi.CodeNoCertificate, "no client certificate; enrol first")
	}
	leaf := r.TLS.PeerCertificates[0]
	peer, err := ident.PeerOf(leaf)
	if err != nil {
		return ident.Peer{}, fail(http.StatusUnauthorized, controlapi.CodeNoCertificate, "%v", err)
	}
	// The handshake may be long ago.
	if time.Now().After(leaf.NotAfter) {
		return ident.Peer{}, fail(http.StatusUnauthorized, controlapi.CodeNoCertificate,
			"the certificate of %s expired at %s; connect again with the renewed one, or enrol anew", peer, leaf.NotAfter.Format(time.RFC3339))
	}
	if s.Registry.IsRevoked(peer) {
		return ident.Peer{}, fail(http.StatusForbidden, controlapi.CodeRevoked, "the certificate of %s was revoked by the operator", peer)
	}
	return peer, nil
}

// answer runs a call and writes its result or its failure.
func (s *Server) answer(name string, do func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, controlapi.MaxBody)
		out, err := do(r)
		status, code := http.StatusOK, "ok"
		if err != nil {
			var f *failure
			if !errors.As(err, &f) {
				f = internal(err)
			}
			if f.cause != nil && r.Context().Err() == nil {
				s.Logger.Error("control call failed", "call", name, "from", r.RemoteAddr, "error", f.cause)
			}
			if f.status == http.StatusUnauthorized {
				w.Header().Set("Connection", "close") // the next one may have a good certificate
			}
			status, code, out = f.status, f.body.Code, f.body
		}
		s.requests.WithLabelValues(name, code).Inc()
		b, err := json.Marshal(out)
		if err != nil {
			s.Logger.Error("control call failed", "call", name, "error", err)
			status, b = http.StatusInternalServerError, nil
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_, _ = w.Write(b) // whoever asked may be gone
	})
}

// readBody reads the whole body, which is bounded, as one JSON value.
func readBody(r *http.Request, v any) error {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return fail(http.StatusRequestEntityTooLarge, controlapi.CodeTooLarge, "the request is over %d bytes", big.Limit)
	case err != nil:
		return fail(http.StatusBadRequest, controlapi.CodeBadRequest, "the request cannot be read: %v", err)
	}
	return nil
}

// doEnrol is open to everybody who reaches the port: the token is checked first,
// and why it is refused goes to the log only.
func (s *Server) doEnrol(r *http.Request) (any, error) {
	if !s.enrol.Allow() {
		return nil, fail(http.StatusTooManyRequests, controlapi.CodeTooMany, "too many enrolments at once; try again in a few seconds (the token was not used up)")
	}
	var req controlapi.EnrolRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	// A bad request shall not use the token up.
	if err := ca.CheckRequest(req.CSR); err != nil {
		return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "%v", err)
	}
	peer, err := s.Registry.SpendToken(req.Secret, req.Instance, func(p ident.Peer) error { return s.takes(p, req.Version) })
	var refused *failure
	if errors.As(err, &refused) {
		s.Logger.Warn("enrolment refused", "from", r.RemoteAddr, "error", err)
		return nil, err
	}
	if errors.Is(err, registry.ErrToken) {
		s.Logger.Warn("enrolment refused", "from", r.RemoteAddr, "error", err)
		return nil, fail(http.StatusForbidden, controlapi.CodeTokenRefused,
			"the token is refused: tokens work once, for a limited time, and for one machine; issue a new one with `drover-config-server token` (the server's log says why)")
	}
	if err != nil {
		return nil, internal(err)
	}
	issued, err := s.CA.Issue(req.CSR, peer, nil)
	if err != nil {
		return nil, internal(err)
	}
	err = s.Registry.Enrolled(registry.Enrolment{Peer: peer, Serial: issued.Serial, Expires: issued.Expires,
		Instance: req.Instance, Version: req.Version, DataAddress: dataAddress(peer, req.DataAddress)})
	if err != nil {
		return nil, internal(err)
	}
	s.Logger.Info("enrolled", "peer", peer.String(), "serial", issued.Serial, "expires", issued.Expires, "from", r.RemoteAddr)
	return controlapi.EnrolResponse{Certificate: string(issued.PEM), CA: string(s.CA.PEM())}, nil
}

// takes refuses an agent of a release that no server takes. Its token is not used up.
func (s *Server) takes(peer ident.Peer, version string) error {
	if peer.Role != ident.RoleAgent {
		return nil
	}
	if err := release.Takes(s.Version, version); err != nil {
		return fail(http.StatusConflict, release.Code, "%v", err)
	}
	return nil
}

func (s *Server) doRenew(r *http.Request, peer ident.Peer) (any, error) {
	var req controlapi.RenewRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	issued, err := s.CA.Issue(req.CSR, peer, nil)
	if errors.Is(err, ca.ErrRequest) {
		return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "%v", err)
	}
	if err != nil {
		return nil, internal(err)
	}
	if err := s.Registry.Renewed(peer, issued.Serial, issued.Expires); errors.Is(err, registry.ErrRevoked) {
		return nil, fail(http.StatusForbidden, controlapi.CodeRevoked, "the certificate of %s was revoked by the operator", peer)
	} else if err != nil {
		return nil, internal(err)
	}
	s.Logger.Info("certificate renewed", "peer", peer.String(), "serial", issued.Serial, "expires", issued.Expires)
	return controlapi.EnrolResponse{Certificate: string(issued.PEM), CA: string(s.CA.PEM())}, nil
}

// doAssignment gives an agent the assignment of its own machine: there is no way
// to name another.
func (s *Server) doAssignment(r *http.Request, peer ident.Peer) (any, error) {
	machine, err := peer.Machine()
	if err != nil {
		return nil, fail(http.StatusForbidden, controlapi.CodeForbidden, "%v", err)
	}
	q := r.URL.Query()
	version, err := strconv.ParseUint(q.Get("version"), 10, 64)
	if err != nil && q.Get("version") != "" {
		return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "version %q: want a number", q.Get("version"))
	}
	var wait time.Duration
	if text := q.Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "wait %q: want a duration such as 20s", text)
		}
	}
	a, err := s.Registry.WaitAssignment(r.Context(), machine, version, min(wait, controlapi.MaxLongPoll))
	if errors.Is(err, registry.ErrClosed) || r.Context().Err() != nil {
		return nil, fail(http.StatusServiceUnavailable, controlapi.CodeServer, "the configuration server is stopping; try again")
	}
	if err != nil {
		return nil, internal(err)
	}
	// It may have been revoked while it waited.
	if _, err := s.authenticate(r); err != nil {
		return nil, err
	}
	return a, nil
}

func (s *Server) doHeartbeat(r *http.Request, peer ident.Peer) (any, error) {
	var hb controlapi.Heartbeat
	if err := readBody(r, &hb); err != nil {
		return nil, err
	}
	hb.DataAddress = dataAddress(peer, hb.DataAddress)
	if peer.Role == ident.RoleAgent {
		hb.Health = nil // it is of servers
	}
	now := time.Now()
	if err := s.Registry.Heard(peer, hb, now); errors.Is(err, registry.ErrInvalid) {
		return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "%v", err)
	} else if err != nil {
		return nil, internal(err)
	}
	res := controlapi.HeartbeatResponse{Time: now}
	if peer.Role != ident.RoleAgent {
		res.Denied = s.Registry.Denied()
	}
	return res, nil
}

// dataAddress is what a peer may say of where it takes data: agents take none.
func dataAddress(peer ident.Peer, address string) string {
	if peer.Role == ident.RoleAgent {
		return ""
	}
	return address
}

func (s *Server) doKey(r *http.Request, peer ident.Peer) (any, error) {
	machine, err := ident.ParseMachineID(r.PathValue("id"))
	if err != nil {
		return nil, fail(http.StatusBadRequest, controlapi.CodeBadRequest, "%v", err)
	}
	key, err := s.Registry.Key(machine, r.URL.Query().Get("key"))
	if errors.Is(err, registry.ErrUnknown) {
		return nil, fail(http.StatusNotFound, controlapi.CodeUnknown, "%v", err)
	}
	if err != nil {
		return nil, internal(err)
	}
	s.Logger.Info("data key given", "machine", machine.String(), "key", key.ID, "to", peer.String())
	return key, nil
}
