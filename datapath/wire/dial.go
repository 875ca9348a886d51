package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"drover/datapath/ident"
)

// DialFunc opens a connection; net.Dialer.DialContext is one, a proxy's another.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dial connects to a server ("host:port"), checks its certificate as tlsConfig
// says, and asks for the upgrade. It takes at most HandshakeTimeout. The caller
// closes the connection; ctx only bounds Dial itself. A nil dial connects directly.
func Dial(ctx context.Context, dial DialFunc, address string, tlsConfig *tls.Config) (*Conn, error) {
	if tlsConfig == nil {
		return nil, errors.New("dial without a TLS configuration")
	}
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	cfg := tlsConfig.Clone()
	cfg.MinVersion, cfg.NextProtos = tls.VersionTLS13, []string{"http/1.1"}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(address)
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS with %s: %w", address, err), raw.Close())
	}
	conn, err := request(ctx, c, address)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open a stream at %s: %w", address, err)
	}
	return conn, nil
}

func request(ctx context.Context, c *tls.Conn, address string) (*Conn, error) {
	peer, err := peerOf(c.ConnectionState())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.NetConn().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	const ask = "GET " + Path + " HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: " + UpgradeToken + "\r\n\r\n"
	if _, err := fmt.Fprintf(c, ask, address); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(c, maxUpgradeResponse))
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodGet})
	if err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("read the answer: %w", err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != UpgradeToken {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, MaxText))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the server answered %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	if !stop() { // the context ended in between
		return nil, ctx.Err()
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return newConn(c, peer, fromAgent, buffered(r)), nil
}

// maxUpgradeResponse bounds the head of the answer to an upgrade request. What of
// it was read too far is given to the session.
const maxUpgradeResponse = 16 << 10

// buffered gives what a reader has read ahead.
func buffered(r *bufio.Reader) io.Reader {
	b, _ := r.Peek(r.Buffered())
	if len(b) == 0 {
		return nil
	}
	return bytes.NewReader(bytes.Clone(b))
}

func peerOf(s tls.ConnectionState) (ident.Peer, error) {
	if s.Version != tls.VersionTLS13 {
		return ident.Peer{}, fmt.Errorf("TLS version %s, want 1.3", tls.VersionName(s.Version))
	}
	if len(s.PeerCertificates) == 0 {
		return ident.Peer{}, errors.New("the other side showed no certificate")
	}
	return ident.PeerOf(s.PeerCertificates[0])
}

// Upgrade takes the connection of a request for Path over. On an error the
// request has been answered. The server's TLS configuration must demand and
// verify client certificates.
func Upgrade(w http.ResponseWriter, r *http.Request) (*Conn, error) {
	peer, status, err := checkUpgrade(r)
	if err != nil {
		if status == http.StatusUpgradeRequired {
			w.Header().Set("Upgrade", UpgradeToken)
		}
		http.Error(w, err.Error(), status)
		return nil, fmt.Errorf("upgrade of %s: %w", r.RemoteAddr, err)
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "the connection cannot be taken over", http.StatusInternalServerError)
		return nil, errors.New("upgrade: the HTTP server does not let go of its connections")
	}
	raw, rw, err := hijacker.Hijack()
	if err != nil {
		return nil, fmt.Errorf("upgrade of %s: %w", r.RemoteAddr, err)
	}
	if err := answerUpgrade(raw); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("upgrade of %s: %w", r.RemoteAddr, err)
	}
	return newConn(raw.(*tls.Conn), peer, fromServer, buffered(rw.Reader)), nil
}

func checkUpgrade(r *http.Request) (ident.Peer, int, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return ident.Peer{}, http.StatusUnauthorized, errors.New("a stream needs TLS and a verified client certificate")
	}
	peer, err := peerOf(*r.TLS)
	if err != nil {
		return ident.Peer{}, http.StatusForbidden, err
	}
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.ContentLength != 0 {
		return ident.Peer{}, http.StatusBadRequest, errors.New("want an empty GET over HTTP/1.1")
	}
	if !strings.EqualFold(r.Header.Get("Connection"), "upgrade") || r.Header.Get("Upgrade") != UpgradeToken {
		return ident.Peer{}, http.StatusUpgradeRequired, fmt.Errorf("want an upgrade to %s, no other version is spoken", UpgradeToken)
	}
	return peer, 0, nil
}

func answerUpgrade(c net.Conn) error {
	if _, ok := c.(*tls.Conn); !ok {
		return errors.New("the connection is not TLS")
	}
	if err := c.SetDeadline(time.Now().Add(HandshakeTimeout)); err != nil {
		return err
	}
	const answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + UpgradeToken + "\r\n\r\n"
	if _, err := io.WriteString(c, answer); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
