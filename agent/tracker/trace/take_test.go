package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// tree makes a sysfs of these files: what is a directory ends with a slash.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o700))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return dir
}

func TestDevicesThatAreRefused(t *testing.T) {
	sys := tree(t, map[string]string{"dev/block/8:0/mq/": "", "dev/block/8:0/queue/scheduler": "none"})
	d, err := newDevice(sys, changes.Device{Path: "/dev/sda", Major: 8, Size: 1 << 20})
	require.NoError(t, err)
	require.False(t, d.ranges)
	_, err = newDevice(sys, changes.Device{Path: "/dev/sdb", Major: 8, Minor: 16, Size: 1 << 20})
	require.ErrorContains(t, err, "no block device 8:16")
	_, err = newDevice(sys, changes.Device{Path: "/dev/sda", Major: 8})
	require.ErrorContains(t, err, "a size of 0 bytes")
	// One that makes requests by the old way, before there was "mq", and takes discards of many ranges.
	sys = tree(t, map[string]string{"dev/block/8:0/queue/scheduler": "noop deadline [cfq]", "dev/block/8:0/queue/max_discard_segments": "256\n", "dev/block/8:0/diskseq": "7\n"})
	d, err = newDevice(sys, changes.Device{Major: 8, Size: 1 << 20})
	require.NoError(t, err)
	require.True(t, d.ranges)
	other := *d
	require.True(t, d.same(&other))
	other.seq = "8"
	require.False(t, d.same(&other), "another disk with the same number")
}

// offline is a source without a kernel, with a disk 8:0 that has 1000 blocks and a
// partition 259:3.
func offline(t *testing.T) (*Source, *device) {
	t.Helper()
	sys := tree(t, map[string]string{"devices/sda/mq/": "", "devices/sda/dev": "8:0\n", "devices/sda/queue/max_discard_segments": "256",
		"devices/sda/sda3/partition": "3", "devices/sdb/dev": "8:16\n", "devices/sdb/mq/": "", "dev/block/": ""})
	for number, name := range map[string]string{"8:0": "sda", "259:3": "sda/sda3", "8:16": "sdb"} {
		require.NoError(t, os.Symlink("../../devices/"+name, filepath.Join(sys, "dev/block", number)))
	}
	d, err := newDevice(sys, changes.Device{Path: "/dev/sda", Major: 8, Size: 1000 * checksum.BlockSize})
	require.NoError(t, err)
	return &Source{sys: sys, ring: &ring{}, devices: []*device{d}, byNumber: map[uint32]*device{number(8, 0): d}, seen: map[string]uint64{}}, d
}

// blocks gives the runs of blocks that a drain names.
func blocks(d *device) string {
	b := make(changes.Bitmap, changes.Words(d.Size))
	d.drain(0, b)
	var out []string
	for at := int64(0); ; {
		first, end := b.Next(at, 1<<40)
		if first == end {
			return strings.Join(out, " ")
		}
		out, at = append(out, fmt.Sprintf("%d-%d", first, end)), end
	}
}

func TestTake(t *testing.T) {
	s, d := offline(t)
	sda := number(8, 0)
	do := func(k kind, op byte, sector, sectors uint64) {
		s.take(record{kind: k, dev: sda, op: op, sector: sector, sectors: sectors})
	}
	do(issue, 'W', 80, 16)
	require.Equal(t, "10-12", blocks(d))
	require.Equal(t, "10-12", blocks(d), "it is under way")
	do(complete, 'W', 80, 9)
	require.Equal(t, "10-12", blocks(d), "a part is done, once more")
	require.Equal(t, "11-12", blocks(d), "the rest is under way")
	do(complete, 'W', 89, 7)
	require.Equal(t, "11-12", blocks(d))
	require.Empty(t, blocks(d))

	do(issue, 'W', 80, 8)
	do(requeue, 'W', 80, 8)
	require.Equal(t, "10-11", blocks(d))
	require.Empty(t, blocks(d), "it will be issued again")
	do(complete, 'W', 8000-8, 8)
	require.Equal(t, "999-1000", blocks(d), "issued before it was followed")

	do(issue, opRead, 80, 8)
	do(issue, opFlush, ^uint64(0), 0)
	do(issue, 'X', 79, 2)
	do(complete, 'X', 79, 2)
	require.Equal(t, "9-11", blocks(d), "an operation that is not known is a change")
	do(complete, 'W', 7999, 100)
	do(complete, 'W', 1<<40, 8)
	do(complete, 'W', ^uint64(0), 8)
	require.Equal(t, "999-1000", blocks(d), "the disk has grown")
	s.take(record{kind: issue, dev: number(8, 16), op: 'W', sector: 0, sectors: 8})
	require.Empty(t, blocks(d), "another disk")

	require.Empty(t, s.ring.gap.take())
	s.take(record{kind: issue, dev: sda, op: opOther, bytes: 512})
	require.Contains(t, s.ring.gap.take(), "a program sent /dev/sda a command of its own")
	for i := range uint64(maxFlights + 1) {
		do(issue, 'W', i, 1)
	}
	require.Contains(t, s.ring.gap.take(), "writes to /dev/sda are under way")
	require.EqualValues(t, maxFlights+4, s.seen["seen"])
}

// TestDiscardsOfManyRanges follows discards of a partition before they are requests.
func TestDiscardsOfManyRanges(t *testing.T) {
	s, d := offline(t)
	do := func(k kind, dev uint32, op byte, sector, sectors uint64) {
		s.take(record{kind: k, dev: dev, op: op, sector: sector, sectors: sectors})
	}
	part := number(259, 3)
	do(bioQueue, part, opDiscard, 80, 800)
	require.Equal(t, "10-110", blocks(d))
	require.Equal(t, "10-110", blocks(d), "nothing tells when it is done")
	do(bioQueue, number(8, 0), opDiscard, 0, 8)
	require.Equal(t, "0-1 10-110", blocks(d))
	do(bioQueue, number(8, 16), opDiscard, 88, 800)
	do(bioQueue, part, 'W', 88, 800)
	require.Equal(t, "0-1 10-110", blocks(d), "another disk, and a write")
	require.Empty(t, s.ring.gap.take())
	do(bioQueue, number(259, 9), opDiscard, 80, 8)
	require.Contains(t, s.ring.gap.take(), "a discard on a device 259:9 that is not known")
	d.ranges = false
	do(bioQueue, part, opDiscard, 4000, 8)
	require.Equal(t, "0-1 10-110", blocks(d), "its requests tell it all")
}

func TestFilters(t *testing.T) {
	one := []*device{{Device: changes.Device{Major: 8, Minor: 16}}}
	list := filters(one)
	require.Len(t, list, 4)
	require.True(t, strings.HasPrefix(list[0], `(dev == 8388624) && rwbs != "R" && `), list[0])
	require.Equal(t, "(dev == 8388624)", list[1])
	require.Equal(t, noFilter, list[3])
	var many []*device
	for range 500 {
		many = append(many, one[0])
	}
	list = filters(many)
	require.Len(t, list, 2, "no text of devices that is too long")
	require.True(t, strings.HasPrefix(list[0], `rwbs != "R"`))
}

func TestExplain(t *testing.T) {
	require.NoError(t, explain(nil))
	for why, err := range map[string]error{
		"tracing takes root":            fs.ErrPermission,
		"was built without tracefs":     unix.ENODEV,
		"trace events cannot be used: ": errors.New("something"),
	} {
		require.ErrorContains(t, explain(err), why)
	}
}
