package choose

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/datapath/changeset"
)

// source follows devices up to a size.
type source struct {
	changes.Source
	name   string
	most   int64
	closed int
}

func (s *source) Name() string { return s.name }

func (s *source) Follow(devices []changes.Device) ([]bool, error) {
	for _, d := range devices {
		if d.Size > s.most {
			return nil, errors.New(d.Path + " is too large")
		}
	}
	return make([]bool, len(devices)), nil
}

func (s *source) Memory(_ int, _ string, n int) ([]byte, bool, error) {
	return make([]byte, n), false, nil
}

func (s *source) Gap() (string, error) { return "", nil }

func (s *source) Counters() (map[string]uint64, error) { return map[string]uint64{"seen": 7}, nil }

func (s *source) Close() error { s.closed++; return nil }

type disk struct {
	tracker.Disk
	size int64
}

func (d disk) Device() (changes.Device, error) { return changes.Device{Path: "sda", Size: d.size}, nil }

type image struct{ tracker.Disk }

func TestBestThatWorks(t *testing.T) {
	best, second := &source{name: "best", most: 10 << 20}, &source{name: "second", most: 20 << 20}
	var refuse error
	track := New(slog.New(slog.DiscardHandler),
		Candidate{"best", func() (changes.Source, error) { return best, refuse }},
		Candidate{"second", func() (changes.Source, error) { return second, nil }})
	require.Contains(t, track.Why(), "none yet")
	attach := func(d tracker.Disk) {
		t.Helper()
		kept, err := track.Attach([]tracker.Disk{d})
		require.NoError(t, err)
		require.False(t, kept)
	}
	attach(disk{size: 1 << 20})
	require.Equal(t, "best", track.Name())
	require.Equal(t, "best", track.Why())
	kept, err := track.Attach([]tracker.Disk{disk{size: 1 << 20}})
	require.NoError(t, err)
	require.True(t, kept, "the same disks again")
	track.Begin([]changeset.Disk{{Size: 1 << 20}})
	track.Keep([]byte("note"), true)
	require.Equal(t, map[string]uint64{"seen": 7}, track.Counted())

	attach(disk{size: 15 << 20})
	require.Equal(t, "second", track.Name())
	require.Equal(t, "second (best: sda is too large)", track.Why())
	require.Equal(t, 2, best.closed, "the one in use, and the one that was tried")

	attach(image{})
	require.Equal(t, "scan", track.Name())
	require.Contains(t, track.Why(), "no block device")
	require.Equal(t, 1, second.closed, "the one in use; none was tried")
	track.Keep(nil, true)
	require.Empty(t, track.Counted())
	require.NoError(t, track.Close())

	refuse = errors.New("the kernel has no BTF")
	attach(disk{size: 1 << 20})
	require.Equal(t, "second (best: the kernel has no BTF)", track.Why())
}
