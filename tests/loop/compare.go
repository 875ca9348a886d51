package loop

import (
	"bytes"
	"errors"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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
	buf := d.begin()
	for off := int64(0); off < d.Size; off += chunk {
		s.chunks = append(s.chunks, bytes.Clone(d.read(buf, off)))
	}
	return s
}

// begin writes out what the device's cache has, and gives a buffer to read to.
func (d *Device) begin() []byte {
	d.t.Helper()
	require.NoError(d.t, d.direct.Sync())
	return disk.Buffer(chunk)
}

// read gives the part of the device from off on, nil if it is all zeros. What is a hole
// of the file is not read.
func (d *Device) read(buf []byte, off int64) []byte {
	d.t.Helper()
	part := buf[:min(chunk, d.Size-off)]
	data, err := unix.Seek(int(d.back.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && data >= off+int64(len(part)) {
		return nil
	}
	require.NoError(d.t, err, "find data of %s", d.File)
	_, err = d.direct.ReadAt(part, off)
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
	buf, zeros := d.begin(), make([]byte, chunk)
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
		blocks = append(blocks, differ(old, now, off)...)
	}
	return blocks
}
