package freespace

import (
	"errors"

	"drover/agent/disk"
)

// Taker makes no maps on Windows.
type Taker struct{}

// Take fails.
func (*Taker) Take([]*disk.Disk) (Map, []string, error) {
	return nil, nil, errors.New("maps of free blocks are not made on Windows")
}
