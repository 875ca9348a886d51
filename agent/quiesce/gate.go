package quiesce

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// gateRoom is how much of the log is kept while the gate is closed, in bytes.
const gateRoom = 64 << 10

// Gate is a writer for the log that writes nothing while file systems are frozen: the
// log may lie on one of them, and whoever writes there stands still. A nil Gate is
// always open.
type Gate struct {
	w io.Writer

	mu     sync.Mutex
	closed bool
	kept   []byte
	lost   int // lines for which there was no room
}

// NewGate makes a gate before w. Its memory is taken at once.
func NewGate(w io.Writer) *Gate { return &Gate{w: w, kept: make([]byte, 0, gateRoom)} }

// Write writes, or keeps for later.
func (g *Gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		return g.w.Write(p)
	}
	if len(g.kept)+len(p) > gateRoom {
		g.lost++
	} else {
		g.kept = append(g.kept, p...)
	}
	return len(p), nil
}

// Close keeps back what is written from now on.
func (g *Gate) Close() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Open writes what was kept back, and all that follows at once.
func (g *Gate) Open() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		return
	}
	g.closed = false
	_, _ = g.w.Write(g.kept) // as with any line of a log
	if g.lost > 0 {
		_, _ = fmt.Fprintf(g.w, "{\"time\":%q,\"level\":\"WARN\",\"msg\":\"lines of this log were dropped while the file systems were frozen\",\"lines\":%d}\n", time.Now().Format(time.RFC3339Nano), g.lost)
	}
	g.kept, g.lost = g.kept[:0], 0
}
