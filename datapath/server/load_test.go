package server_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/stream"
)

func TestLoad(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	require.Len(t, s.Load().Agents, 1, "it should stream, and does not")
	a := s.connect()
	a.base(r.src)
	l := s.Load()
	require.Equal(t, "web-1", l.Agents[0].Name)
	require.Less(t, l.Agents[0].Silent, patience)
	require.Positive(t, l.DrainedBytes)
	require.Equal(t, int64(64<<20), l.SpoolLimit)
	require.DirExists(t, l.SpoolDir)

	r.cache.away.Store(true)
	a.delta(write{disk: 0, block: 0, content: r.noise(8192)})
	require.Eventually(t, func() bool { return s.Load().BacklogBytes > 8192 }, patience, often)
	require.GreaterOrEqual(t, s.Load().SpoolUsed, s.Load().BacklogBytes)
	r.cache.away.Store(false)
	require.Eventually(t, func() bool { return s.Load().BacklogBytes == 0 && s.Load().DrainedBytes > l.DrainedBytes }, patience, often)

	require.NoError(t, s.MarkBroken(t.Context(), machineID, 1, stream.Broken{Code: "DRV-3003", Cause: "test"}))
	require.Empty(t, s.Load().Agents, "a machine that waits for its resync is not missed")
}
