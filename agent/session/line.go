package session

import (
	"context"
	"errors"
	"sync"
	"time"

	"drover/datapath/wire"
)

const (
	// maxRoundTrip: a longer one tells little of the server's clock. The error is
	// half of it.
	maxRoundTrip = time.Second
	maxPings     = 64 // not answered; on a line that slow more are of no use
	// settled: what is sent while the machine is frozen takes about as long as what
	// was sent last before.
	settled = 500 * time.Millisecond
)

// line is what the pings tell of the line: how far it is behind, and what the
// server's clock shows.
type line struct {
	sending sync.Mutex // held while a ping is sent, so that they go in order

	mu     sync.Mutex
	pings  []*ping       // not answered, oldest first
	trip   time.Duration // of the measurement in use
	offset time.Duration // add it to our clock for the server's
}

type ping struct {
	sent     time.Time
	answered chan struct{} // closed
}

// ping sends one. Where too many are not answered it gives the newest instead.
func (l *line) ping(conn *wire.Conn) (*ping, error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	p := &ping{time.Now(), make(chan struct{})}
	l.mu.Lock()
	if n := len(l.pings); n >= maxPings {
		defer l.mu.Unlock()
		return l.pings[n-1], nil
	}
	l.pings = append(l.pings, p)
	l.mu.Unlock()
	return p, conn.Send(&wire.Ping{Time: p.sent})
}

// pong takes the answer to the oldest ping.
func (l *line) pong(server time.Time) error {
	l.mu.Lock()
	if len(l.pings) == 0 {
		l.mu.Unlock()
		return errors.New("session: an answer to no ping")
	}
	p := l.pings[0]
	l.pings = l.pings[1:]
	l.mu.Unlock()
	close(p.answered)
	l.measure(p.sent, server)
	return nil
}

// measure takes the server's clock, read between begin and now. Of a long time, as
// on a line that is throttled, only the first measurement counts.
func (l *line) measure(begin, server time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	trip := time.Since(begin)
	if l.trip > 0 && trip > max(maxRoundTrip, l.trip) {
		return
	}
	l.trip, l.offset = trip, server.Sub(begin.Add(trip/2))
}

func (l *line) clockOffset() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offset
}

// settle waits until the server has read all that was sent, and gives how long
// that took.
func (l *line) settle(ctx context.Context, conn *wire.Conn) (time.Duration, error) {
	begin := time.Now()
	p, err := l.ping(conn)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.answered:
		return time.Since(begin), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
