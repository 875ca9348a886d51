package scan

import (
	"context"
	"errors"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

const (
	// chunkBytes is how much is read at once; a run of it fits in one extent.
	chunkBytes = changeset.MaxExtentBytes
	// ahead is how many chunks are read before they are looked at.
	ahead = 4
)

// chunk is a part of a disk that was read. A hole has no data.
type chunk struct {
	offset, length int64
	data           []byte
	scratch        *[]uint64
}

func (c chunk) sums(seed uint64) []uint64 {
	*c.scratch = checksum.SumAll((*c.scratch)[:0], seed, c.offset, c.data)
	return *c.scratch
}

// read gives the disk to use, chunk by chunk in order. One goroutine reads ahead
// while the caller's sums; it has ended when read returns.
func read(ctx context.Context, d tracker.Disk, size int64, use func(chunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	full, free := make(chan chunk, ahead), make(chan []byte, ahead)
	for range ahead {
		free <- nil // made when needed, so that a disk of holes costs nothing
	}
	failed := make(chan error, 1)
	go func() {
		defer close(full)
		failed <- readAhead(ctx, d, size, full, free)
	}()
	scratch := make([]uint64, 0, chunkBytes/checksum.BlockSize)
	var err error
	for c := range full {
		if err == nil {
			c.scratch = &scratch
			if err = use(c); err != nil {
				cancel()
			}
		}
		if c.data != nil {
			free <- c.data[:cap(c.data)] // there is room: it came from there
		}
	}
	cancel()
	readErr := <-failed
	if err != nil {
		return err
	}
	return readErr
}

func readAhead(ctx context.Context, d tracker.Disk, size int64, full chan<- chunk, free <-chan []byte) error {
	for off := int64(0); off < size; {
		start, end, err := d.NextData(off)
		if err != nil {
			return err
		}
		if start > off {
			if err := deliver(ctx, full, chunk{offset: off, length: start - off}); err != nil {
				return err
			}
		}
		for off = start; off < end; {
			var buf []byte
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case buf = <-free:
			}
			if buf == nil {
				buf = disk.Buffer(chunkBytes)
			}
			c := chunk{offset: off, length: min(chunkBytes, end-off)}
			c.data = buf[:c.length]
			if _, err := d.ReadAt(c.data, off); err != nil {
				return err
			}
			if err := deliver(ctx, full, c); err != nil {
				return err
			}
			off += c.length
		}
	}
	return nil
}

var errStopped = errors.New("scan stopped")

func deliver(ctx context.Context, full chan<- chunk, c chunk) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-ctx.Done():
		return errors.Join(errStopped, context.Cause(ctx))
	case full <- c:
		return nil
	}
}
