// Package ports finds addresses on loopback that tests and the demo can give to
// servers which are started later, and again after a crash.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports are below the range that Linux takes outgoing connections' ports from
// (32768 and up), so that none of those can sit on a port between two starts of its
// server.
const (
	first = 20000
	last  = 32000
	tries = 1000
)

var (
	mu    sync.Mutex
	given = map[int]bool{}
)

// Free gives an address that nobody listens on and that was not given before.
func Free() (string, error) {
	mu.Lock()
	defer mu.Unlock()
	for range tries {
		port := first + rand.IntN(last-first) //nolint:gosec // any will do
		if given[port] {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		given[port] = true
		return address, l.Close()
	}
	return "", errors.New("find a free port: none")
}
