// Package proxy is a line that can be made bad: it stands between an agent and a
// server, forwards bytes, and does to them what networks and broken machines do. Rules
// can be changed while connections run. Relay does the same to the frames inside TLS.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Direction is which way bytes go.
type Direction int

// The directions.
const (
	Up   Direction = iota // from the agent to the server
	Down                  // from the server to the agent
)

// Rule is what happens to all bytes of a direction. The zero Rule forwards them.
type Rule struct {
	Stall bool          // nothing is forwarded, nothing is closed
	Delay time.Duration // each piece waits, and those after it
	Rate  int64         // bytes a second; 0: no limit
}

// Kind is a fault that happens once.
type Kind int

// The kinds of fault.
const (
	Reset     Kind = iota + 1 // both sides see the connection reset
	EOF                       // both sides see a polite end
	HalfClose                 // the receiver sees a polite end, its answers still pass
	Flip                      // one bit is another
	Duplicate                 // bytes come twice
	Swap                      // two runs of bytes come in the other order
)

// Fault happens after so many bytes from when it was armed, in whatever connection.
type Fault struct {
	Kind  Kind
	After int64
	Bit   uint // of a Flip
	Bytes int  // of a Duplicate, and of each run of a Swap; at most what came at once
}

// Bounds of a proxy.
const (
	maxConns   = 256
	pieceBytes = 16 << 10
	pieceTime  = 50 * time.Millisecond // of a limited rate
	dialLimit  = 5 * time.Second
)

// way is the state of one direction.
type way struct {
	rule  Rule
	fault *Fault // nil: none is armed
	fired int
	bytes int64
}

// Proxy is a running proxy.
type Proxy struct {
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	target  string
	refuse  bool
	ways    [2]way
	changed chan struct{} // closed and replaced when a rule changes
	links   map[*link]struct{}
	total   int
}

// link is one connection through the proxy; its ends are the agent and the server.
type link struct{ ends [2]*net.TCPConn }

// New starts a proxy on a free loopback port.
func New(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a fault proxy: %w", err)
	}
	p := &Proxy{listener: l, target: target, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Address is where the proxy listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Close ends all connections and waits for everything.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.Cut()
	p.cancel()
	p.Cut() // what began meanwhile
	p.wg.Wait()
}

// Set changes the rule of a direction, also for connections that run.
func (p *Proxy) Set(d Direction, r Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ways[d].rule = r
	close(p.changed)
	p.changed = make(chan struct{})
}

// Arm lets a fault happen, once.
func (p *Proxy) Arm(d Direction, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ways[d].fault = &f
}

// Refuse resets every new connection, or stops doing so.
func (p *Proxy) Refuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = yes
}

// Retarget lets new connections go to another address.
func (p *Proxy) Retarget(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = address
}

// Cut resets all connections there are.
func (p *Proxy) Cut() {
	p.mu.Lock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		l.reset()
	}
}

// Fired counts the faults of a direction that have happened.
func (p *Proxy) Fired(d Direction) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ways[d].fired
}

// Bytes counts what was forwarded in a direction.
func (p *Proxy) Bytes(d Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ways[d].bytes
}

// Connections counts the connections that were taken so far.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c.(*net.TCPConn)) })
	}
}

func (p *Proxy) serve(agent *net.TCPConn) {
	p.mu.Lock()
	p.total++
	target, refuse := p.target, p.refuse || len(p.links) >= maxConns
	p.mu.Unlock()
	if refuse {
		_ = agent.SetLinger(0)
		_ = agent.Close()
		return
	}
	dialing, cancel := context.WithTimeout(p.ctx, dialLimit)
	defer cancel()
	server, err := new(net.Dialer).DialContext(dialing, "tcp", target)
	if err != nil {
		_ = agent.SetLinger(0)
		_ = agent.Close()
		return
	}
	l := &link{[2]*net.TCPConn{agent, server.(*net.TCPConn)}}
	p.mu.Lock()
	p.links[l] = struct{}{}
	p.mu.Unlock()
	if p.ctx.Err() != nil { // Close may have missed it
		l.reset()
	}
	ctx, done := context.WithCancel(p.ctx)
	var both sync.WaitGroup
	for _, d := range []Direction{Up, Down} {
		both.Go(func() {
			if !p.pump(ctx, l, d) {
				done() // the other direction may be waiting
			}
		})
	}
	both.Wait()
	done()
	l.end()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// reset closes both ends so that their peers see a reset.
func (l *link) reset() {
	for _, c := range l.ends {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

func (l *link) end() {
	for _, c := range l.ends {
		_ = c.Close()
	}
}

// pump forwards one direction until its end. False: the other direction ends too.
func (p *Proxy) pump(ctx context.Context, l *link, d Direction) bool {
	from, to := l.ends[d], l.ends[1-d]
	buf := make([]byte, pieceBytes)
	for {
		n, err := from.Read(buf[:p.pieceOf(d)])
		if n > 0 {
			if e := p.forward(ctx, l, d, buf[:n]); e != nil {
				return errors.Is(e, errHalf)
			}
		}
		if err != nil {
			if p.wait(ctx, d, 0) != nil {
				return false
			}
			return to.CloseWrite() == nil
		}
	}
}

func (p *Proxy) pieceOf(d Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.ways[d].rule.Rate; r > 0 {
		return min(max(r*int64(pieceTime)/int64(time.Second), 1), pieceBytes)
	}
	return pieceBytes
}

var (
	errEnded = errors.New("the fault ended the connection")
	errHalf  = errors.New("the fault ended the direction")
)

// forward sends a piece on, with what is to happen to it.
func (p *Proxy) forward(ctx context.Context, l *link, d Direction, piece []byte) error {
	if err := p.wait(ctx, d, len(piece)); err != nil {
		return err
	}
	piece, f := p.take(d, piece)
	p.mu.Lock()
	p.ways[d].bytes += int64(len(piece))
	p.mu.Unlock()
	if _, err := l.ends[1-d].Write(piece); err != nil {
		return err
	}
	switch f {
	case Reset:
		l.reset()
		return errEnded
	case EOF:
		l.end()
		return errEnded
	case HalfClose:
		_ = l.ends[1-d].CloseWrite()
		return errHalf
	}
	return nil
}

// wait holds a piece back as long as the rule says.
func (p *Proxy) wait(ctx context.Context, d Direction, n int) error {
	begin := time.Now()
	for {
		p.mu.Lock()
		r, changed := p.ways[d].rule, p.changed
		p.mu.Unlock()
		pause := r.Delay
		if r.Rate > 0 {
			pause += time.Duration(n) * time.Second / time.Duration(r.Rate)
		}
		left := pause - time.Since(begin)
		if !r.Stall && left <= 0 {
			return ctx.Err()
		}
		var due <-chan time.Time
		if !r.Stall {
			due = time.After(left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-due:
		}
	}
}

// take gives what a piece becomes, and the fault that ends the connection after it.
func (p *Proxy) take(d Direction, piece []byte) ([]byte, Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := &p.ways[d]
	f := w.fault
	if f == nil {
		return piece, 0
	}
	if f.After >= int64(len(piece)) {
		f.After -= int64(len(piece))
		return piece, 0
	}
	at := int(f.After)
	rest := piece[at:]
	if f.Kind == Swap && len(rest) < 2 { // with the next piece
		f.After = 0
		return piece, 0
	}
	w.fault = nil
	w.fired++
	switch f.Kind {
	case Flip:
		rest[0] ^= 1 << (f.Bit % 8)
	case Duplicate:
		n := min(max(f.Bytes, 1), len(rest))
		twice := append([]byte(nil), piece[:at+n]...)
		return append(append(twice, rest[:n]...), rest[n:]...), 0
	case Swap:
		n := min(max(f.Bytes, 1), len(rest)/2)
		swapped := append([]byte(nil), piece[:at]...)
		swapped = append(append(swapped, rest[n:2*n]...), rest[:n]...)
		return append(swapped, rest[2*n:]...), 0
	default:
		return piece[:at], f.Kind
	}
	return piece, 0
}
