package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"

	"drover/agent/private"
)

// lockFile is what is locked: a folder cannot be.
const lockFile = "agent.lock"

// lockState makes this the only agent on a state directory, until release is called or
// the process ends.
func lockState(dir string) (release func(), err error) {
	if err := private.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if err != nil {
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			err = errors.New("another drover-agent runs on it; stop that one first (`sc stop drover-agent`), or give each a `state` of its own")
		}
		return nil, errors.Join(fmt.Errorf("lock the state directory %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing ends the lock
}
