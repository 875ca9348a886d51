package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Bounds of connections of which nobody knows yet whose they are: they have sent no
// Hello that was accepted. One more is reset at once, so that a flood costs the
// server nothing and the sessions there are go on.
const (
	maxStrangers        = 512
	maxStrangersPerAddr = 64 // of one IPv4 address or one IPv6 /64 network; agents behind one NAT come back a little later
)

// Why a connection was dropped at the gate; values of a metric's label.
const (
	dropTotal   = "too many"
	dropAddress = "too many of one address"
	dropSlow    = "no hello in time"
)

// gate is the listener of a server. A connection that passes has a time limit over
// TLS, upgrade and Hello together.
type gate struct {
	net.Listener
	limit   time.Duration
	dropped func(why string)

	mu        sync.Mutex
	closed    bool
	strangers map[*stranger]struct{}
	addresses map[netip.Prefix]int
}

func newGate(l net.Listener, limit time.Duration, m *metrics) *gate {
	return &gate{Listener: l, limit: limit, strangers: map[*stranger]struct{}{}, addresses: map[netip.Prefix]int{},
		dropped: func(why string) { m.dropped.WithLabelValues(why).Inc() }}
}

// stranger is a connection that has passed the gate.
type stranger struct {
	net.Conn
	gate  *gate
	from  netip.Prefix
	timer *time.Timer
}

// Accept gives the next connection that is within the bounds.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		st, why := g.admit(c)
		if st != nil {
			return st, nil
		}
		g.dropped(why)
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset: nothing of it stays here
		}
		_ = c.Close()
	}
}

func (g *gate) admit(c net.Conn) (st *stranger, why string) {
	from := networkOf(c.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed || len(g.strangers) >= maxStrangers:
		return nil, dropTotal
	case g.addresses[from] >= maxStrangersPerAddr:
		return nil, dropAddress
	}
	st = &stranger{Conn: c, gate: g, from: from}
	g.strangers[st] = struct{}{}
	g.addresses[from]++
	st.timer = time.AfterFunc(g.limit, st.tooSlow)
	return st, ""
}

// networkOf is who a connection is counted for.
func networkOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: all of them count together
	}
	return p
}

// Close ends the listener and all that has not said whose it is.
func (g *gate) Close() error {
	err := g.Listener.Close()
	g.mu.Lock()
	g.closed = true
	left := make([]*stranger, 0, len(g.strangers))
	for st := range g.strangers {
		left = append(left, st)
	}
	g.mu.Unlock()
	for _, st := range left {
		_ = st.Close()
	}
	return err
}

// waiting counts the strangers.
func (g *gate) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.strangers)
}

// leave takes the connection out of the count, once; false: it was out.
func (st *stranger) leave() bool {
	g := st.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, in := g.strangers[st]; !in {
		return false
	}
	st.timer.Stop()
	delete(g.strangers, st)
	if g.addresses[st.from]--; g.addresses[st.from] == 0 {
		delete(g.addresses, st.from)
	}
	return true
}

func (st *stranger) tooSlow() {
	if st.leave() {
		st.gate.dropped(dropSlow)
		_ = st.Conn.Close()
	}
}

// Close ends the connection.
func (st *stranger) Close() error {
	st.leave()
	return st.Conn.Close()
}

type strangerKey struct{}

// withStranger makes a connection known to the handlers of its requests.
func withStranger(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		return context.WithValue(ctx, strangerKey{}, t.NetConn())
	}
	return ctx
}

// known says that the connection of a request is an agent's, who may stay.
func known(r *http.Request) func() {
	st, ok := r.Context().Value(strangerKey{}).(*stranger)
	return func() {
		if ok {
			st.leave()
		}
	}
}
