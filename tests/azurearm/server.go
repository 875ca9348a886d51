// Package azurearm is a small Azure on a TLS socket, for tests: the Entra token
// endpoint, Azure Resource Manager for what Drover uses, and page blobs. The
// unmodified SDK clients talk to it. It keeps what was done, refuses what Azure
// refuses (a network card in a subnet that does not exist, a disk that is attached
// already, deleting what is in use), answers long-running operations over several
// polls, and does on request what goes wrong in a cloud: 429, quota, operations
// that fail later, replies that are lost.
package azurearm

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What the server knows from the start.
const (
	Tenant       = "11111111-2222-3333-4444-555555555555"
	Subscription = "99999999-8888-7777-6666-555555555555"
	ClientID     = "drover"
	// OtherClientID is an identity that only machines have. The SDK keeps an identity's
	// tokens for the whole process: who counts how often they are asked for uses its own.
	OtherClientID = "drover-2"
	Secret        = "not-a-secret" //nolint:gosec // of a server that tests start
	// Assertion is the content of a federated token file that the client is known by, too.
	Assertion = "not-a-secret.either" //nolint:gosec // of a server that tests start
	Location  = "westeurope"

	maxBody = 8 << 20
	// pollsOfAnOperation is how often an operation is seen under way.
	pollsOfAnOperation = 2
)

// Request is a call that came in, for tests that count.
type Request struct {
	Method, Path, Query string
	Source, SourceToken string // that a page or blob is copied from, and a token for it
}

// Server is the test's Azure. Its state outlives its clients.
type Server struct {
	URL string

	http *httptest.Server

	mu         sync.Mutex
	resources  map[string]*Resource // by lower-case id
	operations map[string]*operation
	faults     []*Fault
	held       []string
	blobs      map[string]*blob // by account/container/name or disks/sas-key
	requests   []Request
	quota      map[string]int64 // limit by usage name
	sizes      []VMSize
	actions    []string // of the caller's role
	runbooks   map[string]*Runbook
	emulator   *emulator
	booted     map[string][]string // custom data, by lower-case id of the machine
	serial     int
}

// Start starts the server; Close stops it.
func Start() *Server {
	s := &Server{
		resources: map[string]*Resource{}, operations: map[string]*operation{}, blobs: map[string]*blob{},
		quota: map[string]int64{"cores": 100}, sizes: defaultSizes, actions: []string{"*"}, runbooks: map[string]*Runbook{}, booted: map[string][]string{},
	}
	s.http = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL
	return s
}

// Close stops the server.
func (s *Server) Close() { s.http.Close() }

// CA gives the certificate to trust, in PEM.
func (s *Server) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}

// Client gives a plain client that trusts the server.
func (s *Server) Client() *http.Client { return s.http.Client() }

// Requests gives the calls so far whose method is equal and whose path contains
// the text, in any case of letters.
func (s *Server) Requests(method, path string) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Request
	for _, r := range s.requests {
		if r.Method == method && strings.Contains(strings.ToLower(r.Path), strings.ToLower(path)) {
			out = append(out, r)
		}
	}
	return out
}

// problem is an error in Azure's form.
type problem struct {
	status        int
	code, message string
	retryAfter    string
}

func refuse(status int, code, format string, args ...any) *problem {
	return &problem{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	e := s.emulator
	s.mu.Unlock()
	if e.has(r.URL.Path) {
		e.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return // the client went away
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, Request{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		Source: r.Header.Get("x-ms-copy-source"), SourceToken: r.Header.Get("x-ms-copy-source-authorization"),
	})
	f := s.fault(r)
	if f != nil && !f.Lost && f.Async == "" {
		write(w, nil, nil, &problem{f.Status, f.Code, f.Message, f.RetryAfter})
		return
	}
	out := w
	if f != nil && f.Lost {
		out = httptest.NewRecorder() // done, but nobody hears of it
	}
	s.route(out, r, body, f)
	if f != nil && f.Lost {
		write(w, nil, nil, refuse(http.StatusGatewayTimeout, "GatewayTimeout", "the request took too long"))
	}
}

func (s *Server) route(w http.ResponseWriter, r *http.Request, body []byte, f *Fault) {
	switch p := r.URL.Path; {
	case p == "/metadata/identity/oauth2/token":
		s.instanceToken(w, r)
	case strings.HasPrefix(p, "/"+Tenant+"/"):
		s.token(w, r, body)
	case strings.HasPrefix(p, "/blob/"), strings.HasPrefix(p, "/disks/"):
		s.blob(w, r, body)
	case r.Header.Get("Authorization") != "Bearer "+token:
		write(w, nil, nil, refuse(http.StatusUnauthorized, "AuthenticationFailed", "no valid token"))
	case r.URL.Query().Get("api-version") == "":
		write(w, nil, nil, refuse(http.StatusBadRequest, "MissingApiVersionParameter", "api-version is missing"))
	case strings.HasPrefix(p, "/operations/"):
		s.poll(w, r)
	default:
		s.manage(w, r, body, f)
	}
}

// token is Entra's: discovery, and the client's secret or federated token.
func (s *Server) token(w http.ResponseWriter, r *http.Request, body []byte) {
	if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
		base := s.URL + "/" + Tenant
		write(w, nil, map[string]any{
			"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token",
		}, nil)
		return
	}
	known := strings.Contains(string(body), "client_secret="+Secret) || strings.Contains(string(body), "client_assertion="+Assertion)
	if !known || !strings.Contains(string(body), "client_id="+ClientID) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}`))
		return
	}
	write(w, nil, map[string]any{"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token}, nil)
}

// Token is what the instance's metadata service, Entra, and whoever stands for the
// command line give a known identity. It has the form that Azurite wants.
var Token = token

// token is a JWT without a signature: issued 2024-01-01, for storage, good until 2100.
var token = func() string {
	part := func(v map[string]any) string {
		b, _ := json.Marshal(v) // of strings and numbers
		return base64.RawURLEncoding.EncodeToString(b)
	}
	issued := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	return part(map[string]any{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/" + Tenant + "/", "oid": objectID, "tid": Tenant,
		"iat": issued, "nbf": issued, "exp": time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).Unix(),
	}) + ".unsigned"
}()

// instanceToken is the metadata service of a virtual machine: 169.254.169.254 in Azure.
func (s *Server) instanceToken(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	id := q.Get("client_id")
	switch {
	case r.Header.Get("Metadata") != "true" || q.Get("api-version") == "":
		write(w, nil, nil, refuse(http.StatusBadRequest, "invalid_request", "Required metadata header not specified"))
	case q.Get("resource") == "":
		write(w, nil, nil, refuse(http.StatusBadRequest, "invalid_resource", "no resource"))
	case id != "" && id != ClientID && id != OtherClientID:
		bad := http.StatusBadRequest
		write(w, &bad, map[string]any{"error": "invalid_request", "error_description": "Identity not found"}, nil)
	default:
		write(w, nil, map[string]any{
			"access_token": token, "client_id": first(id, ClientID), "expires_in": "3600", "expires_on": strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10),
			"resource": q.Get("resource"), "token_type": "Bearer",
		}, nil)
	}
}

// write answers with JSON; a problem in Azure's form.
func write(w http.ResponseWriter, status *int, v any, p *problem) {
	w.Header().Set("Content-Type", "application/json")
	code := http.StatusOK
	if status != nil {
		code = *status
	}
	if p != nil {
		code, v = p.status, map[string]any{"error": map[string]any{"code": p.code, "message": p.message}}
		w.Header().Set("x-ms-error-code", p.code)
		if p.retryAfter != "" {
			w.Header().Set("Retry-After", p.retryAfter)
		}
	}
	w.WriteHeader(code)
	if v != nil {
		_ = json.NewEncoder(w).Encode(v)
	}
}

// now is a time in the form of headers.
func now() string { return time.Now().UTC().Format(http.TimeFormat) }
