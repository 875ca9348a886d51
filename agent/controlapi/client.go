package controlapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"drover/datapath/ident"
)

// Codes of the API's errors; docs/errors.md says more about each.
const (
	CodeBadRequest    = "DRV-1001" // the request cannot be read
	CodeTokenRefused  = "DRV-1002" // enrolment token unknown, spent, expired or for another machine
	CodeNoCertificate = "DRV-1003" // no valid client certificate
	CodeRevoked       = "DRV-1004" // the certificate was revoked
	CodeForbidden     = "DRV-1005" // the certificate's role may not do this
	CodeUnknown       = "DRV-1006" // no such thing
	CodeTooMany       = "DRV-1007" // too many requests
	CodeTooLarge      = "DRV-1008" // body over MaxBody
	CodeServer        = "DRV-1009" // the configuration server failed
	// CodeUnexpected is the client's own: the answer did not come from a
	// configuration server.
	CodeUnexpected = "DRV-1010"
)

// Timeouts of the client.
const (
	// CallTimeout bounds every call; a long poll may take its wait more.
	CallTimeout      = 15 * time.Second
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 90 * time.Second
	maxIdle          = 2 // idle connections kept: one long poll, one for the rest
	maxErrorText     = 200
	maxHeader        = 16 << 10
)

// Dial opens a connection; net.Dialer.DialContext is one.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Client calls a configuration server. It makes one attempt per call: whoever
// calls decides what to repeat and when. It is safe for concurrent use.
type Client struct {
	server    string
	transport *http.Transport
	http      *http.Client
	timeout   time.Duration
}

// NewClient makes a client of the server, "https://host:port". Environment
// proxies are not used, redirects are not followed.
func NewClient(server string, tlsConfig *tls.Config) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	t := &http.Transport{
		DialContext:            dialer.DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    handshakeTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    maxIdle,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
	}
	return &Client{
		server:    strings.TrimSuffix(server, "/"),
		transport: t,
		timeout:   CallTimeout,
		http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	}
}

// WithDialer makes the client open its connections through dial (a proxy, for
// example) and returns it. Nil changes nothing. Call it before the first call.
func (c *Client) WithDialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) *Client {
	if dial != nil {
		c.transport.DialContext = dial
	}
	return c
}

// Server gives the address the client was made with.
func (c *Client) Server() string { return c.server }

// Close closes the connections that are idle. The client stays usable.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Enrol asks for the first certificate. The connection needs none, but the
// caller must have a TLS configuration that checks the server by its token.
func (c *Client) Enrol(ctx context.Context, req EnrolRequest) (EnrolResponse, error) {
	var res EnrolResponse
	err := c.call(ctx, "enrol", http.MethodPost, "/v1/enrol", req, &res, 0)
	return res, err
}

// Renew asks for a new certificate with the name of the present one.
func (c *Client) Renew(ctx context.Context, req RenewRequest) (EnrolResponse, error) {
	var res EnrolResponse
	err := c.call(ctx, "renew the certificate", http.MethodPost, "/v1/renew", req, &res, 0)
	if err == nil {
		// The next connections are to use the new certificate.
		c.transport.CloseIdleConnections()
	}
	return res, err
}

// Assignment gives the agent's assignment as soon as its version differs from the
// given one, or the unchanged one after wait (at most MaxLongPoll). An agent that
// was never assigned gets version 0 and ActionStandby.
func (c *Client) Assignment(ctx context.Context, version uint64, wait time.Duration) (Assignment, error) {
	wait = max(0, min(wait, MaxLongPoll))
	q := url.Values{"version": {strconv.FormatUint(version, 10)}, "wait": {wait.String()}}
	var res Assignment
	err := c.call(ctx, "get the assignment", http.MethodGet, "/v1/assignment?"+q.Encode(), nil, &res, wait)
	return res, err
}

// Heartbeat tells the server that the caller lives.
func (c *Client) Heartbeat(ctx context.Context, hb Heartbeat) (HeartbeatResponse, error) {
	var res HeartbeatResponse
	err := c.call(ctx, "send the heartbeat", http.MethodPost, "/v1/heartbeat", hb, &res, 0)
	return res, err
}

// Key gives a machine's data key; an empty keyID is the current one. Only process
// servers and master targets may ask.
func (c *Client) Key(ctx context.Context, machine ident.MachineID, keyID string) (Key, error) {
	op := "get the data key of machine " + machine.String()
	path := "/v1/machines/" + machine.String() + "/key"
	if keyID != "" {
		path += "?" + url.Values{"key": {keyID}}.Encode()
	}
	var res Key
	if err := c.call(ctx, op, http.MethodGet, path, nil, &res, 0); err != nil {
		return Key{}, err
	}
	if len(res.Secret) != KeySize || res.ID == "" || (keyID != "" && res.ID != keyID) {
		return Key{}, &Error{Code: CodeUnexpected, Message: op + ": the answer is not the key asked for; check that " + c.server + " is the configuration server"}
	}
	return res, nil
}

// KeySize is the size of a data key in bytes (AES-256).
const KeySize = 32

// call does one request. In and out are JSON; extra is added to the timeout.
func (c *Client) call(ctx context.Context, op, method, path string, in, out any, extra time.Duration) error {
	if u, err := url.Parse(c.server); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" {
		return fmt.Errorf("%s: the configuration server's address %q: want https://host:port", op, c.server)
	}
	limit := c.timeout + extra
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: encode the request: %w", op, err)
		}
		if len(b) > MaxBody {
			return &Error{Code: CodeTooLarge, Message: fmt.Sprintf("%s: the request is %d bytes, the limit is %d", op, len(b), MaxBody)}
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(limited, method, c.server+path, body)
	if err != nil {
		return fmt.Errorf("%s from %s: %w", op, c.server, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return c.failed(ctx, limited, op, limit, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, MaxBody+1))
	if err != nil {
		return c.failed(ctx, limited, op, limit, err)
	}
	return c.decode(op, res.StatusCode, b, out)
}

// failed says who gave up: the caller, the client's own limit, or the network.
func (c *Client) failed(ctx, limited context.Context, op string, limit time.Duration, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s from %s: stopped by the caller: %w", op, c.server, context.Cause(ctx))
	}
	if limited.Err() != nil {
		return fmt.Errorf("%s: no answer from %s within %v; check that it runs and that the network lets it through: %w",
			op, c.server, limit, limited.Err())
	}
	// The URL in a url.Error repeats the server and its query; the cause is enough.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("%s from %s: %w", op, c.server, err)
}

func (c *Client) decode(op string, status int, b []byte, out any) error {
	if len(b) > MaxBody {
		return &Error{Code: CodeTooLarge, Message: fmt.Sprintf("%s: the answer of %s is over %d bytes", op, c.server, MaxBody)}
	}
	if status < 200 || status > 299 {
		var e Error
		if json.Unmarshal(b, &e) == nil && e.Code != "" {
			e.Message = op + ": " + e.Message
			return &e
		}
		return &Error{Code: CodeUnexpected, Message: fmt.Sprintf(
			"%s: %s answers with HTTP status %d and %q; check that it is the configuration server and not a proxy", op, c.server, status, text(b))}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &Error{Code: CodeUnexpected, Message: fmt.Sprintf(
			"%s: the answer of %s cannot be read (%v); check that it is the configuration server and not a proxy", op, c.server, err)}
	}
	return nil
}

// text is the beginning of a body that was meant for people.
func text(b []byte) string {
	return strings.TrimSpace(string(b[:min(len(b), maxErrorText)]))
}
