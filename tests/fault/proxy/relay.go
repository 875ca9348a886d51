package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// FrameHeader is how long a frame's header is, and FrameLength where in it the length
// of the payload is; datapath/wire/FORMAT.md has the rest.
const (
	FrameHeader = 32
	FrameLength = 8
	maxFrame    = 2 << 20
	maxHead     = 16 << 10
)

// Tamper is told each frame and gives what is sent instead of it, in order. It may keep
// the frame.
type Tamper func(frame []byte) [][]byte

// Relay ends TLS on both sides, with certificates of both, and lets frames be changed:
// what a broken program, or an attacker who has a key, could send.
type Relay struct {
	listener net.Listener
	target   string
	client   *tls.Config
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	tamper Tamper // of the frames to the server
	conns  map[net.Conn]struct{}
}

// NewRelay starts a relay that is the server to agents and the agent to the server.
func NewRelay(target string, server, client *tls.Config) (*Relay, error) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return nil, fmt.Errorf("start a frame relay: %w", err)
	}
	r := &Relay{listener: l, target: target, client: client, conns: map[net.Conn]struct{}{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(r.accept)
	return r, nil
}

// Address is where the relay listens.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// SetTamper changes the frames that agents send; nil: no more.
func (r *Relay) SetTamper(t Tamper) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tamper = t
}

// Close ends everything and waits for it.
func (r *Relay) Close() {
	r.cancel()
	_ = r.listener.Close()
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *Relay) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(c) })
	}
}

// keep notes a connection for Close; false: Close was called.
func (r *Relay) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	return r.ctx.Err() == nil
}

func (r *Relay) drop(c net.Conn) {
	_ = c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *Relay) serve(agent net.Conn) {
	defer r.drop(agent)
	if !r.keep(agent) {
		return
	}
	dialing, cancel := context.WithTimeout(r.ctx, dialLimit)
	defer cancel()
	dialer := tls.Dialer{Config: r.client}
	server, err := dialer.DialContext(dialing, "tcp", r.target)
	if err != nil {
		return
	}
	defer r.drop(server)
	if !r.keep(server) {
		return
	}
	var down sync.WaitGroup
	down.Go(func() {
		_, _ = io.Copy(agent, server)
		_ = agent.Close()
	})
	_ = r.up(agent, server)
	_ = server.(*tls.Conn).CloseWrite() // what it has said still arrives
	down.Wait()
}

// up forwards the upgrade's request, then frames.
func (r *Relay) up(agent io.Reader, server io.Writer) error {
	in := bufio.NewReader(agent)
	for n := 0; ; {
		line, err := in.ReadBytes('\n')
		if n += len(line); err != nil || n > maxHead {
			return errors.Join(err, errors.New("no request"))
		}
		if _, err := server.Write(line); err != nil {
			return err
		}
		if len(line) <= len("\r\n") {
			break
		}
	}
	for {
		frame, err := ReadFrame(in)
		if err != nil {
			return err
		}
		r.mu.Lock()
		tamper := r.tamper
		r.mu.Unlock()
		frames := [][]byte{frame}
		if tamper != nil {
			frames = tamper(frame)
		}
		for _, f := range frames {
			if _, err := server.Write(f); err != nil {
				return err
			}
		}
	}
}

// ReadFrame reads a frame, header and payload.
func ReadFrame(in io.Reader) ([]byte, error) {
	header := make([]byte, FrameHeader)
	if _, err := io.ReadFull(in, header); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(header[FrameLength:])
	if n > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	frame := make([]byte, FrameHeader+int(n))
	copy(frame, header)
	_, err := io.ReadFull(in, frame[FrameHeader:])
	return frame, err
}
