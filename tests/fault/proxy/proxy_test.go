package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair gives both ends of a connection through a proxy.
func pair(t *testing.T) (p *Proxy, agent, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p, err = New(l.Addr().String())
	require.NoError(t, err)
	a, err := net.Dial("tcp", p.Address())
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	t.Cleanup(func() { _ = a.Close(); _ = s.Close(); p.Close() })
	for _, c := range []net.Conn{a, s} {
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	}
	return p, a.(*net.TCPConn), s.(*net.TCPConn)
}

// sent is what arrives when the agent sends the text and ends.
func sent(t *testing.T, agent, server *net.TCPConn, text string) (string, error) {
	t.Helper()
	_, err := io.WriteString(agent, text)
	require.NoError(t, err)
	_ = agent.CloseWrite() // may be gone by a fault
	got, err := io.ReadAll(server)
	return string(got), err
}

func TestForwards(t *testing.T) {
	p, agent, server := pair(t)
	text := bytes.Repeat([]byte("0123456789"), 100_000)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = agent.Write(text); _ = agent.CloseWrite() })
	got, err := io.ReadAll(server)
	require.NoError(t, err)
	require.Equal(t, text, got)
	wg.Wait()
	_, err = io.WriteString(server, "the answer")
	require.NoError(t, err)
	require.NoError(t, server.CloseWrite())
	back, err := io.ReadAll(agent)
	require.NoError(t, err)
	require.Equal(t, "the answer", string(back))
	require.Equal(t, int64(len(text)), p.Bytes(Up))
	require.Equal(t, int64(len(back)), p.Bytes(Down))
	require.Equal(t, 1, p.Connections())
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		fault Fault
		want  string
		err   error
	}{
		{Fault{Kind: Flip, After: 3, Bit: 0}, "abceefghij", nil},
		{Fault{Kind: Duplicate, After: 2, Bytes: 3}, "abcdecdefghij", nil},
		{Fault{Kind: Swap, After: 1, Bytes: 2}, "adebcfghij", nil},
		{Fault{Kind: EOF, After: 4}, "abcd", nil},
		{Fault{Kind: HalfClose, After: 4}, "abcd", nil},
		{Fault{Kind: Flip, After: 30}, "abcdefghij", nil},
	} {
		p, agent, server := pair(t)
		p.Arm(Up, c.fault)
		got, err := sent(t, agent, server, "abcdefghij")
		require.NoError(t, err)
		require.Equal(t, c.want, got, "%+v", c.fault)
		require.Equal(t, c.fault.After < 10, p.Fired(Up) == 1)
	}
}

func TestReset(t *testing.T) {
	p, agent, server := pair(t)
	p.Arm(Up, Fault{Kind: Reset, After: 5})
	_, err := sent(t, agent, server, "abcdefghij")
	require.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = io.ReadAll(agent)
	require.ErrorIs(t, err, syscall.ECONNRESET)
	p.Refuse(true)
	c, err := net.Dial("tcp", p.Address())
	if err == nil {
		_, err = io.ReadAll(c)
		require.NoError(t, c.Close())
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestHalfCloseLetsAnswersPass(t *testing.T) {
	p, agent, server := pair(t)
	p.Arm(Up, Fault{Kind: HalfClose, After: 1})
	_, err := io.WriteString(agent, "ab")
	require.NoError(t, err)
	got, err := io.ReadAll(server)
	require.NoError(t, err)
	require.Equal(t, "a", string(got))
	_, err = io.WriteString(server, "still here")
	require.NoError(t, err)
	require.NoError(t, server.CloseWrite())
	got, err = io.ReadAll(agent)
	require.NoError(t, err)
	require.Equal(t, "still here", string(got))
}

func TestStallAndRate(t *testing.T) {
	p, agent, server := pair(t)
	p.Set(Up, Rule{Stall: true})
	_, err := io.WriteString(agent, "late")
	require.NoError(t, err)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	buf := make([]byte, 4)
	_, err = server.Read(buf)
	var timeout net.Error
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
	_, err = io.WriteString(server, "back") // the other direction passes
	require.NoError(t, err)
	_, err = io.ReadFull(agent, buf)
	require.NoError(t, err)
	p.Set(Up, Rule{})
	require.NoError(t, server.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = io.ReadFull(server, buf)
	require.NoError(t, err)
	require.Equal(t, "late", string(buf))

	p.Set(Up, Rule{Rate: 100_000, Delay: time.Millisecond})
	begin := time.Now()
	_, err = agent.Write(make([]byte, 20_000))
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, 20_000))
	require.NoError(t, err)
	require.Greater(t, time.Since(begin), 150*time.Millisecond)
}

// A proxy that stalls can be closed.
func TestCloseWhileStalled(t *testing.T) {
	p, agent, server := pair(t)
	_, err := io.WriteString(server, "!") // the connection stands
	require.NoError(t, err)
	_, err = io.ReadFull(agent, make([]byte, 1))
	require.NoError(t, err)
	p.Set(Up, Rule{Stall: true})
	_, err = io.WriteString(agent, "never")
	require.NoError(t, err)
	p.Close()
	_, err = io.ReadAll(server)
	require.ErrorIs(t, err, syscall.ECONNRESET)
}
