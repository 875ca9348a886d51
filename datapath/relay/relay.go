// Package relay passes agents' connections on to servers that they cannot reach
// themselves: an HTTP proxy that knows nothing but CONNECT, and only to the addresses it
// is given. What passes through is TLS from end to end, of which it sees names and
// amounts.
package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Bounds.
const (
	MaxConnections = 1024 // at once; more are refused
	askTimeout     = 15 * time.Second
	maxRequest     = 8 << 10 // bytes of a request's head
	keepAlive      = 30 * time.Second
)

// Relay passes connections on.
type Relay struct {
	to     []string
	log    *slog.Logger
	dialer net.Dialer
	room   chan struct{}
}

// New makes a relay to the addresses (host:port) and to no other.
func New(to []string, log *slog.Logger) *Relay {
	return &Relay{to: to, log: log, dialer: net.Dialer{Timeout: askTimeout, KeepAlive: keepAlive}, room: make(chan struct{}, MaxConnections)}
}

// Serve takes connections until ctx ends, and then ends them all. It closes the listener.
func (r *Relay) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("take connections to pass on: %w", err)
		}
		select {
		case r.room <- struct{}{}:
			wg.Go(func() {
				defer func() { <-r.room }()
				if err := r.pass(ctx, conn); err != nil {
					r.log.Warn("connection not passed on", "from", conn.RemoteAddr().String(), "error", err.Error())
				}
			})
		default:
			_ = conn.Close() // its agent comes again
		}
	}
}

// pass passes one connection on until either side ends it.
func (r *Relay) pass(ctx context.Context, conn net.Conn) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return err
	}
	head := bufio.NewReader(io.LimitReader(conn, maxRequest))
	req, err := http.ReadRequest(head)
	if err != nil {
		return fmt.Errorf("read what is asked for: %w", err)
	}
	if req.Method != http.MethodConnect || !slices.Contains(r.to, req.Host) {
		return errors.Join(fmt.Errorf("%s %q: only CONNECT to %v", req.Method, req.Host, r.to), answer(conn, http.StatusForbidden))
	}
	to, err := r.dialer.DialContext(ctx, "tcp", req.Host)
	if err != nil {
		return errors.Join(fmt.Errorf("connect to %s: %w", req.Host, err), answer(conn, http.StatusBadGateway))
	}
	defer func() { _ = to.Close() }()
	stopTo := context.AfterFunc(ctx, func() { _ = to.Close() })
	defer stopTo()
	early, err := head.Peek(head.Buffered()) // sent before the answer
	if err == nil {
		_, err = to.Write(early)
	}
	if err = errors.Join(err, answer(conn, http.StatusOK), conn.SetDeadline(time.Time{})); err != nil {
		return err
	}
	splice(conn, to)
	return nil
}

func answer(conn net.Conn, status int) error {
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n\r\n", status, http.StatusText(status))
	return err
}

// splice copies both ways; the end of either way ends both.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // how a connection ends is its two ends' matter
		_, _ = to.Close(), from.Close()
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
}
