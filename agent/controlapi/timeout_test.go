package controlapi

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOwnTimeout(t *testing.T) {
	c := NewClient("https://cs.test:443", nil).WithDialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	defer c.Close() // and with it the connection that is still being made
	c.timeout = 10 * time.Millisecond
	_, err := c.Heartbeat(t.Context(), Heartbeat{})
	require.ErrorContains(t, err, "no answer from https://cs.test:443 within 10ms")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
