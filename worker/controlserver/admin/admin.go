// Package admin is the local API of a configuration server, for the operator on
// the same host: tokens, revocations, status. It is HTTP over a unix socket that
// only the server's user can open; whoever can, may do everything.
//
//	POST /token   TokenRequest  -> TokenResponse
//	POST /revoke  RevokeRequest -> nothing
//	GET  /status                -> Status
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/registry"
)

// Bounds of the API.
const (
	callTimeout = 10 * time.Second
	maxResponse = 64 << 20 // bytes; a status lists everything enrolled
)

// SocketPath is the socket of the server with the given state folder.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, "admin.sock") }

// TokenRequest asks for an enrolment token.
type TokenRequest struct {
	Role     ident.Role    `json:"role"`
	Name     string        `json:"name"`               // an agent's machine id, a server's name
	Instance string        `json:"instance,omitempty"` // hardware uuid; for agents
	TTL      time.Duration `json:"ttl,omitempty"`      // nanoseconds; 0 is the default
}

// TokenResponse carries the token, whole.
type TokenResponse struct {
	Token string `json:"token"`
}

// RevokeRequest names the peer whose certificates are refused from now on.
type RevokeRequest struct {
	Role ident.Role `json:"role"`
	Name string     `json:"name"`
}

// Status of a configuration server.
type Status struct {
	Name        string                `json:"name"`
	Fingerprint string                `json:"fingerprint"` // of the CA
	Time        time.Time             `json:"time"`
	Peers       []registry.PeerRecord `json:"peers"`
}

// Client calls the server whose state folder it was made with.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of the server with the given state folder.
func NewClient(stateDir string) *Client {
	socket := SocketPath(stateDir)
	return &Client{socket: socket, http: &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Token issues an enrolment token.
func (c *Client) Token(ctx context.Context, req TokenRequest) (string, error) {
	var res TokenResponse
	err := c.call(ctx, "issue a token", http.MethodPost, "/token", req, &res)
	return res.Token, err
}

// Revoke refuses the peer's certificates from now on.
func (c *Client) Revoke(ctx context.Context, peer ident.Peer) error {
	return c.call(ctx, "revoke "+peer.String(), http.MethodPost, "/revoke", RevokeRequest{Role: peer.Role, Name: peer.Name}, &struct{}{})
}

// Status gives the server's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var res Status
	err := c.call(ctx, "get the status", http.MethodGet, "/status", nil, &res)
	return res, err
}

func (c *Client) call(ctx context.Context, op, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			if errors.Is(err, os.ErrPermission) {
				return fmt.Errorf("%s: %s: permission denied: run this as the user of the configuration server", op, c.socket)
			}
			return fmt.Errorf("%s: %w: check that the configuration server runs and that this is its state folder", op, dial)
		}
		return fmt.Errorf("%s over %s: %w", op, c.socket, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxResponse))
	if err != nil {
		return fmt.Errorf("%s over %s: %w", op, c.socket, err)
	}
	if res.StatusCode != http.StatusOK {
		var e controlapi.Error
		if json.Unmarshal(b, &e) == nil && e.Code != "" {
			return &e
		}
		return fmt.Errorf("%s over %s: HTTP status %d", op, c.socket, res.StatusCode)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s over %s: read the answer: %w", op, c.socket, err)
	}
	return nil
}
