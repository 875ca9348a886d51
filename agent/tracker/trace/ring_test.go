package trace

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// file opens a file with these bytes, as a CPU's ring or its counters.
func file(t *testing.T, b []byte) int {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, b, 0o600))
	fd, err := unix.Open(name, unix.O_RDONLY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(fd)) })
	return fd
}

// rings makes a ring for each list of pages.
func rings(t *testing.T, d *description, cpus ...[][]byte) *ring {
	t.Helper()
	r := &ring{about: d}
	for n, pages := range cpus {
		var all []byte
		for _, p := range pages {
			all = append(all, p...)
		}
		r.cpus = append(r.cpus, &cpu{n: n, pipe: file(t, all), raw: make([]byte, d.page.size)})
	}
	return r
}

func read(t *testing.T, r *ring, until uint64) (sectors []uint64) {
	t.Helper()
	require.NoError(t, r.read(until, func(e record) { sectors = append(sectors, e.sector) }))
	return sectors
}

func TestMerge(t *testing.T) {
	d := describeSample(t, "5.10")
	page := func(times ...uint64) []byte {
		m := d.newPage(times[0])
		for _, at := range times {
			m.event(at, d.eventBytes(record{kind: issue, sector: at, sectors: 8}, "W"))
		}
		return m.done(0)
	}
	r := rings(t, d, [][]byte{page(10, 40), page(50, 90)}, [][]byte{page(20, 30, 60)}, nil, [][]byte{page(35)})
	require.Equal(t, []uint64{10, 20, 30, 35, 40}, read(t, r, 49), "what is later waits")
	require.Empty(t, read(t, r, 49))
	require.Equal(t, []uint64{50, 60}, read(t, r, 60))
	require.Equal(t, []uint64{90}, read(t, r, 1000))
	require.Empty(t, read(t, r, 1000))
	require.EqualValues(t, 4, r.pages)
	require.EqualValues(t, 4, r.cpus[0].seen)
	require.Empty(t, r.gap.take())
}

func TestDamageIsAGap(t *testing.T) {
	d := describeSample(t, "5.10")
	good := func(at uint64) *maker {
		return d.newPage(at).event(at, d.eventBytes(record{kind: issue, sector: at, sectors: 8}, "W"))
	}
	r := rings(t, d, [][]byte{good(1).entry(4, 0).done(0), good(2).event(3, []byte{0x43, 4, 0, 0}).done(0), good(4).done(missedEvents)})
	require.Equal(t, []uint64{2, 4}, read(t, r, 10), "what can be read is")
	why := r.gap.take()
	require.Contains(t, why, "CPU 0: a page of the trace ring that cannot be read")
	require.Contains(t, why, "an event of 4 bytes")
	require.Contains(t, why, "says that it has lost events")
	require.EqualValues(t, 2, r.gap.lost)
	require.Empty(t, r.gap.take())
	for range 2 * maxReasons {
		r.gap.add(1, "again")
	}
	require.Len(t, r.gap.reasons, maxReasons)
}

// TestCountedButNotGiven has the kernel count events that never come.
func TestCountedButNotGiven(t *testing.T) {
	d := describeSample(t, "5.10")
	r := rings(t, d, [][]byte{d.newPage(1).event(1, d.eventBytes(record{kind: issue, sector: 7, sectors: 8}, "W")).done(0)})
	r.cpus[0].stats = file(t, []byte("entries: 3\noverrun: 0\ncommit overrun: 0\ndropped events: 5\n"))
	require.NoError(t, r.count())
	require.Equal(t, []uint64{7}, read(t, r, 10))
	why := r.gap.take()
	require.Contains(t, why, "lost 5 events")
	require.Contains(t, why, "does not give 2 events that it has counted")
	require.Empty(t, read(t, r, 10))
	require.Empty(t, r.gap.take(), "it is told once")
}
