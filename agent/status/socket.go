package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

// Bounds of the socket.
const (
	timeout   = 2 * time.Second // of any request, on both sides
	maxConns  = 8               // at once; more are closed
	maxHeader = 4 << 10
	maxAnswer = 4 << 20 // bytes
	path      = "/v1/status"
)

// ErrNotRunning is wrapped when no agent serves the socket.
var ErrNotRunning = errors.New("no agent runs")

// Serve answers with what get gives until ctx ends. The socket is made in a folder that
// only root can enter; one that a killed agent left is replaced, one that is alive is not.
func Serve(ctx context.Context, socket string, get func() Status) error {
	l, err := listen(ctx, socket)
	if err != nil {
		return fmt.Errorf("serve the status on %s: %w", socket, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		b, err := json.Marshal(get())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b) // whoever asked may be gone
	})
	server := &http.Server{Handler: mux, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: timeout, MaxHeaderBytes: maxHeader}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(bounded{l, make(chan struct{}, maxConns)}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the status on %s: %w", socket, err)
	}
	return nil
}

func listen(ctx context.Context, socket string) (net.Listener, error) {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var d net.Dialer
	if c, err := d.DialContext(ctx, "unix", socket); err == nil {
		return nil, errors.Join(errors.New("another agent serves it; give each a `socket` of its own"), c.Close())
	}
	// It comes to life in a folder that nobody else can enter and moves to its place
	// when its mode is right.
	tmp, err := os.MkdirTemp(dir, ".s") // 0700; short, because a socket's path has at most 107 bytes
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	birth := filepath.Join(tmp, "s")
	if runtime.GOOS == "windows" { // a socket does not move there; the folder is closed to others
		birth = socket
		_ = os.Remove(socket) // nobody serves it
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: birth, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(birth, 0o600); err == nil && birth != socket {
		err = os.Rename(birth, socket)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return unlinking{l, socket}, nil
}

// unlinking takes the socket's name away when it is closed.
type unlinking struct {
	net.Listener
	path string
}

func (u unlinking) Close() error {
	err := u.Listener.Close()
	if err == nil {
		err = os.Remove(u.path)
	}
	return err
}

// bounded has at most so many connections at once.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func (b bounded) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case b.slots <- struct{}{}:
		return &slotted{Conn: c, release: sync.OnceFunc(func() { <-b.slots })}, nil
	default:
		return c, c.Close() // too many: the server finds it closed; asking again costs nothing
	}
}

type slotted struct {
	net.Conn
	release func()
}

func (s *slotted) Close() error {
	defer s.release()
	return s.Conn.Close()
}

// Get asks the agent that serves the socket.
func Get(ctx context.Context, socket string) (Status, error) {
	var out Status
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: timeout}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return out, err
	}
	res, err := client.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return out, fmt.Errorf("%w: %s: %w; see `systemctl status drover-agent`, and run this as root", ErrNotRunning, socket, op.Err)
		}
		return out, fmt.Errorf("ask the agent on %s: %w", socket, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err == nil && (res.StatusCode != http.StatusOK || len(b) > maxAnswer) {
		err = fmt.Errorf("HTTP status %d and %d bytes", res.StatusCode, len(b))
	}
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return out, fmt.Errorf("ask the agent on %s: %w", socket, err)
	}
	return out, nil
}
