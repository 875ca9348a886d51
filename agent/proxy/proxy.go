// Package proxy opens connections through an HTTP proxy with CONNECT, for agents
// in networks that reach the outside only so. TLS runs end to end inside the
// tunnel: the proxy sees names and amounts, nothing else.
package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Bounds of a CONNECT.
const (
	connectTimeout = 15 * time.Second
	maxResponse    = 8 << 10 // bytes of the proxy's answer
	maxErrorText   = 200     // bytes of it that an error repeats
	defaultPort    = "80"
)

// Dial opens a connection; net.Dialer.DialContext is one.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer gives a function that connects through the proxy, "http://host:port",
// with user and password where the proxy wants them. An empty proxyURL gives a
// nil Dial, which every taker of one reads as "connect directly".
func Dialer(proxyURL string) (Dial, error) {
	if proxyURL == "" {
		return nil, nil
	}
	u, err := url.Parse(proxyURL)
	if err != nil {
		// The parser's error repeats the text, which may hold a password.
		return nil, errors.New("proxy: not a URL; want http://host:port")
	}
	if u.Scheme != "http" || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("proxy %s: want http://host:port", u.Redacted())
	}
	t := tunnel{address: u.Host, header: http.Header{}}
	if u.Port() == "" {
		t.address = net.JoinHostPort(u.Hostname(), defaultPort)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		t.header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	return t.dial, nil
}

// tunnel is one proxy.
type tunnel struct {
	address string
	header  http.Header
}

func (t tunnel) dial(ctx context.Context, network, address string) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(limited, network, t.address)
	if err != nil {
		return nil, fmt.Errorf("connect to proxy %s: %w", t.address, err)
	}
	// The end of the context ends reads and writes; stop tells whether that happened.
	stop := context.AfterFunc(limited, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	tunnelled, err := t.connect(conn, address)
	if !stop() && err == nil {
		err = limited.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if limited.Err() != nil {
			err = fmt.Errorf("no answer within %v: %w", connectTimeout, limited.Err())
		}
		return nil, fmt.Errorf("connect to %s through proxy %s: %w", address, t.address, err)
	}
	return tunnelled, nil
}

// connect asks the proxy for the tunnel.
func (t tunnel) connect(conn net.Conn, address string) (net.Conn, error) {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: t.header}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask for the tunnel: %w", err)
	}
	limit := &io.LimitedReader{R: conn, N: maxResponse}
	r := bufio.NewReaderSize(limit, maxResponse)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		if limit.N == 0 {
			return nil, fmt.Errorf("the answer is longer than %d bytes: it is not an HTTP proxy", maxResponse)
		}
		if text := err.Error(); len(text) > maxErrorText { // it repeats what the proxy sent
			return nil, fmt.Errorf("read the answer: %s; it is not an HTTP proxy", text[:maxErrorText])
		}
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, fmt.Errorf("the proxy refuses: %s; ask its operator to let %s through", res.Status[:min(len(res.Status), maxErrorText)], address)
	}
	if r.Buffered() == 0 {
		return conn, nil
	}
	// The far side spoke first: what came with the answer belongs to the tunnel.
	early, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, err
	}
	return &prefixed{Conn: conn, early: early}, nil
}

// prefixed is a connection whose first bytes were already read.
type prefixed struct {
	net.Conn
	early []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.early) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.early)
	p.early = p.early[n:]
	return n, nil
}
