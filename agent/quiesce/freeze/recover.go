//go:build linux

package freeze

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Left is a file system that may have been left frozen.
type Left struct {
	Device string   `json:"device"` // major:minor
	Points []string `json:"points"`
}

// Left names the file systems, for Recover.
func (s *Set) Left() (out []Left) {
	for _, fs := range s.FileSystems {
		out = append(out, Left{fs.Device.String(), fs.points()})
	}
	return out
}

// Recover thaws what an agent and its guard have left frozen, both having been
// killed, in reverse order. That one is not frozen, or not mounted, is no error.
func Recover(left []Left) (thawed int, err error) {
	for _, l := range slices.Backward(left) {
		was, e := l.thaw()
		if was {
			thawed++
		}
		err = errors.Join(err, e)
	}
	return thawed, err
}

// thaw thaws by the first mount that is still of the file system.
func (l Left) thaw() (was bool, err error) {
	for _, point := range l.Points {
		dir, e := openPoint(point, l.Device)
		if e != nil {
			if !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
			continue
		}
		e = thaw(int(dir.Fd()))
		_ = dir.Close() // it was only read
		if e != nil && !errors.Is(e, unix.EINVAL) {
			return false, fmt.Errorf("thaw %s: %w", point, e)
		}
		return e == nil, nil
	}
	return false, err
}
