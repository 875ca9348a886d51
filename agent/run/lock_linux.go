package run

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"drover/agent/private"
)

// lockState makes this the only agent on a state directory, until release is called or
// the process ends. It is a lock on the directory itself: a full disk does not matter.
func lockState(dir string) (release func(), err error) {
	if err := private.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another drover-agent runs on it; stop that one first (`systemctl stop drover-agent`), or give each a `state` of its own")
		}
		return nil, errors.Join(fmt.Errorf("lock the state directory %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing ends the lock
}
