package loop

import (
	"bytes"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
	"drover/datapath/checksum"
)

const chunk = 4 << 20

// Snapshot is what is on a device at one moment: the caller sees to it that nobody
// writes meanwhile. Parts that are all zeros take no memory.
type Snapshot struct {
	size   int64
	chunks [][]byte
}

// Snapshot reads the whole device around the page cache.
func (d *Device) Snapshot() *Snapshot {
	d.t.Helper()
	s := &Snapshot{size: d.Size}
	buf := disk.Buffer(chunk)
	for off := int64(0); off < d.Size; off += chunk {
		s.chunks = append(s.chunks, bytes.Clone(d.read(buf, off)))
	}
	return s
}

// read gives the part of the device from off on, nil if it is all zeros.
func (d *Device) read(buf []byte, off int64) []byte {
	d.t.Helper()
	part := buf[:min(chunk, d.Size-off)]
	_, err := d.direct.ReadAt(part, off)
	require.NoError(d.t, err, "read %s at %d", d.Path, off)
	if checksum.IsZero(part) {
		return nil
	}
	return part
}

// Changed reads the device and gives the numbers of the blocks (of
// checksum.BlockSize) that are not as they are in the snapshot, in order. The snapshot
// then has what is on the device now.
func (d *Device) Changed(s *Snapshot) (blocks []int64) {
	d.t.Helper()
	require.Equal(d.t, s.size, d.Size, "size of %s", d.Path)
	buf, zeros := disk.Buffer(chunk), make([]byte, chunk)
	for i, old := range s.chunks {
		off := int64(i) * chunk
		now := d.read(buf, off)
		if bytes.Equal(old, now) {
			continue
		}
		s.chunks[i] = bytes.Clone(now)
		n := int(min(chunk, d.Size-off))
		if old == nil {
			old = zeros[:n]
		}
		if now == nil {
			now = zeros[:n]
		}
		for at := 0; at < n; at += checksum.BlockSize {
			end := min(at+checksum.BlockSize, n)
			if !bytes.Equal(old[at:end], now[at:end]) {
				blocks = append(blocks, (off+int64(at))/checksum.BlockSize)
			}
		}
	}
	return blocks
}
