package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"drover/datapath/ident"
)

const (
	bufferBytes = 64 << 10
	// refuseLinger is how long a side that sent Refuse waits for the other to read
	// it and close, so that the refusal is not lost with the connection.
	refuseLinger = 2 * time.Second
)

// ErrRefused is what Receive returns once this side has sent a Refuse.
var ErrRefused = errors.New("session was refused by this side")

// closeWriter is what a tls.Conn has beside net.Conn.
type closeWriter interface {
	net.Conn
	CloseWrite() error
}

// Conn is one session's connection. Send may be called by several goroutines at
// once, Receive by one; Close by any, and more than once.
//
// Receive answers each Ping with a Pong and does not return it. A Pong is
// returned, so that the sender of the Ping can measure the clocks.
type Conn struct {
	conn closeWriter
	peer ident.Peer

	idle          time.Duration
	read, written atomic.Int64
	writing       atomic.Int64 // nanoseconds

	// sending
	queued  atomic.Int32 // callers inside Send
	sendMu  sync.Mutex
	out     frameState
	w       *bufio.Writer
	enc     encoder
	owed    bool  // something is in the buffer that may not wait
	sendErr error // the first; all later Sends fail with it

	// receiving
	in      frameState
	r       io.Reader
	payload []byte
	pace    func(n int) // nil: not paced

	nonce     atomic.Uint64
	lingerMu  sync.Mutex
	linger    time.Time // not zero: Refuse was sent
	closeOnce sync.Once
	closeErr  error
}

// newConn wraps a connection whose upgrade is done; early are bytes that were read
// beyond it.
func newConn(c closeWriter, peer ident.Peer, self side, early io.Reader) *Conn {
	other := fromAgent
	if self == fromAgent {
		other = fromServer
	}
	conn := &Conn{conn: c, peer: peer, idle: IdleTimeout, out: frameState{from: self}, in: frameState{from: other}}
	conn.w = bufio.NewWriterSize((*meteredWriter)(conn), bufferBytes)
	var r io.Reader = (*meteredReader)(conn)
	if early != nil {
		r = io.MultiReader(&countingReader{early, &conn.read}, r)
	}
	conn.r = bufio.NewReaderSize(r, bufferBytes)
	return conn
}

// Peer is who the certificate of the other side says it is.
func (c *Conn) Peer() ident.Peer { return c.peer }

// RemoteAddr is the other side's address, for logs.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// BytesRead counts the bytes of frames received.
func (c *Conn) BytesRead() int64 { return c.read.Load() }

// BytesWritten counts the bytes of frames sent.
func (c *Conn) BytesWritten() int64 { return c.written.Load() }

// SetIdleTimeout sets another time than IdleTimeout, before anything is sent or
// received. Both sides of a session use the same.
func (c *Conn) SetIdleTimeout(d time.Duration) { c.idle = d }

// PingInterval is how often each side sends a Ping, for the other not to close.
func (c *Conn) PingInterval() time.Duration { return c.idle / (IdleTimeout / PingInterval) }

// WriteTime is how long all writes together took: on a line that is slower than
// what is sent, nearly all the time.
func (c *Conn) WriteTime() time.Duration { return time.Duration(c.writing.Load()) }

// Pace lets wait be called with the size of every read before its bytes are used:
// while it waits nothing more is read, and TCP holds the other side back. It is
// for whoever calls Receive to set.
func (c *Conn) Pace(wait func(n int)) { c.pace = wait }

// SetNonce sets the session's nonce for both directions. Sending or receiving a
// Welcome does it already.
func (c *Conn) SetNonce(n uint64) { c.nonce.Store(n) }

// Send validates and sends one message. Parts of a change set may wait in the
// buffer until its End, the next control message or a full buffer; everything
// else is on its way when Send returns, unless another Send is about to follow.
// It fails when the other side takes nothing for IdleTimeout.
func (c *Conn) Send(m Message) error {
	if err := m.Validate(); err != nil {
		return fmt.Errorf("send %s: %w", m.kind(), err)
	}
	c.queued.Add(1)
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	last := c.queued.Add(-1) == 0
	if c.sendErr != nil {
		return c.sendErr
	}
	if err := c.write(m, last); err != nil {
		c.sendErr = fmt.Errorf("send %s to %s: %w", m.kind(), c.peer, err)
		return c.sendErr
	}
	return nil
}

func (c *Conn) write(m Message, last bool) error {
	c.enc.buf, c.enc.tail = c.enc.buf[:0], nil
	m.marshal(&c.enc)
	c.out.nonce = c.nonce.Load()
	h := c.out.header(m.kind(), c.enc.buf, c.enc.tail)
	for _, part := range [][]byte{h[:], c.enc.buf, c.enc.tail} {
		if _, err := c.w.Write(part); err != nil {
			return err
		}
	}
	c.enc.tail = nil
	if w, ok := m.(*Welcome); ok {
		c.nonce.Store(w.Nonce)
	}
	// The last caller flushes for all before it, also when its own may wait: what
	// they left to it may not.
	if kinds[m.kind()].lazy && !c.owed {
		return nil
	}
	if !last {
		c.owed = true
		return nil
	}
	c.owed = false
	return c.w.Flush()
}

// Receive gives the next message. It is the caller's; see Data.Free.
// Errors: *ProtocolError for a bad frame, ErrRefused after Refuse, io.EOF when the
// other side closed between frames, a timeout when it was silent for IdleTimeout.
func (c *Conn) Receive() (Message, error) {
	for {
		if c.refused() {
			_, err := io.Copy(io.Discard, c.r)
			return nil, errors.Join(ErrRefused, err)
		}
		m, err := c.receive()
		if err != nil {
			if c.refused() {
				return nil, errors.Join(ErrRefused, err)
			}
			return nil, err
		}
		switch m := m.(type) {
		case *Ping:
			if err := c.Send(&Pong{Time: time.Now()}); err != nil {
				return nil, err
			}
			continue
		case *Welcome:
			c.nonce.Store(m.Nonce)
		}
		return m, nil
	}
}

func (c *Conn) receive() (Message, error) {
	c.in.nonce = c.nonce.Load()
	kind, payload, err := c.in.next(c.r, &c.payload)
	if err != nil {
		var p *ProtocolError
		if err == io.EOF || errors.As(err, &p) {
			return nil, err
		}
		return nil, fmt.Errorf("receive from %s: %w", c.peer, err)
	}
	m := newMessage(kind)
	if d, ok := m.(*Data); ok { // its memory is the caller's from now on
		d.memory, c.payload = c.payload, nil
	}
	return m, decode(m, payload)
}

// Refuse sends the refusal and ends this side's sending. The caller then calls
// Receive until it fails, which waits a bounded time for the other side to close,
// and Close.
func (c *Conn) Refuse(r *Refuse) error {
	err := c.Send(r)
	c.sendMu.Lock()
	if c.sendErr == nil {
		// Send may have left the flush to another one, which now fails.
		err = errors.Join(err, c.w.Flush())
		c.sendErr = ErrRefused
		_ = c.conn.SetWriteDeadline(time.Now().Add(refuseLinger))
		err = errors.Join(err, c.conn.CloseWrite())
	}
	c.sendMu.Unlock()
	c.lingerMu.Lock()
	defer c.lingerMu.Unlock()
	c.linger = time.Now().Add(refuseLinger)
	return errors.Join(err, c.conn.SetReadDeadline(c.linger))
}

func (c *Conn) refused() bool {
	c.lingerMu.Lock()
	defer c.lingerMu.Unlock()
	return !c.linger.IsZero()
}

// Close ends the connection at once; Send and Receive fail.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		c.closeErr = c.conn.Close()
	})
	return c.closeErr
}

// meteredWriter counts bytes and lets every chunk have its own deadline, so that a
// slow line that makes progress is not taken for a dead one.
type meteredWriter Conn

func (w *meteredWriter) Write(p []byte) (n int, err error) {
	const chunk = 16 << 10
	defer func(begin time.Time) { w.writing.Add(int64(time.Since(begin))) }(time.Now())
	for n < len(p) {
		part := p[n:min(n+chunk, len(p))]
		if err := w.conn.SetWriteDeadline(time.Now().Add(w.idle)); err != nil {
			return n, err
		}
		k, err := w.conn.Write(part)
		n += k
		w.written.Add(int64(k))
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// meteredReader counts bytes and gives every read its own deadline.
type meteredReader Conn

func (r *meteredReader) Read(p []byte) (int, error) {
	r.lingerMu.Lock()
	deadline := r.linger
	if deadline.IsZero() {
		deadline = time.Now().Add(r.idle)
	}
	err := r.conn.SetReadDeadline(deadline)
	r.lingerMu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := r.conn.Read(p)
	r.read.Add(int64(n))
	if r.pace != nil {
		r.pace(n)
	}
	return n, err
}

type countingReader struct {
	r     io.Reader
	count *atomic.Int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.count.Add(int64(n))
	return n, err
}
