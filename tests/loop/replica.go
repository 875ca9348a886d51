package loop

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// Replica is a copy of a device that is kept by what a source of changes says, as the
// agent keeps one.
type Replica struct {
	t    testing.TB
	disk *disk.Disk
	data []byte
}

// NewReplica copies the whole device.
func NewReplica(t testing.TB, d *Device) *Replica {
	t.Helper()
	open, err := disk.Open(d.Path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, open.Close()) })
	r := &Replica{t, open, disk.Buffer(int(d.Size))}
	r.read(r.data, 0)
	return r
}

func (r *Replica) read(p []byte, off int64) {
	r.t.Helper()
	_, err := r.disk.ReadAt(p, off)
	require.NoError(r.t, err)
}

// Take reads the blocks that a bitmap has.
func (r *Replica) Take(b changes.Bitmap) {
	r.t.Helper()
	const run = 256
	for at := int64(0); ; {
		first, end := b.Next(at, run)
		if first == end {
			return
		}
		off := first * checksum.BlockSize
		r.read(r.data[off:min(end*checksum.BlockSize, int64(len(r.data)))], off)
		at = end
	}
}

// Differs gives the blocks in which the replica is not as the device is now.
func (r *Replica) Differs() (blocks []int64) {
	r.t.Helper()
	now := disk.Buffer(len(r.data))
	r.read(now, 0)
	return differ(r.data, now, 0)
}

// differ gives the numbers of the blocks that differ between two parts of a disk.
func differ(old, now []byte, off int64) (blocks []int64) {
	for at := 0; at < len(now); at += checksum.BlockSize {
		end := min(at+checksum.BlockSize, len(now))
		if !bytes.Equal(old[at:end], now[at:end]) {
			blocks = append(blocks, (off+int64(at))/checksum.BlockSize)
		}
	}
	return blocks
}
