package ebpf

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/tests/loop"
)

func gap(t *testing.T, s *Source) string {
	t.Helper()
	why, err := s.Gap()
	require.NoError(t, err)
	return why
}

// TestRingOverflows holds that ranges that find no room are a gap, told once.
func TestRingOverflows(t *testing.T) {
	need(t)
	d := loop.New(t, 64*mega)
	s := open(t, "")
	follow(t, s, d)
	for range 3500 {
		require.NoError(t, d.Discard(0, 33*mega))
	}
	require.Contains(t, gap(t, s), "no room in the kernel's ring")
	noGap(t, s)
	require.Equal(t, int64(33*mega/4096), drained(t, s, 0).Count(), "what was in it")
	require.NoError(t, d.Discard(0, 33*mega))
	noGap(t, s)
	c, err := s.Counters()
	require.NoError(t, err)
	require.NotZero(t, c["ranges_lost"])
}

// TestGrownDisk holds that a disk of another size is a gap, and a write behind the old
// end too.
func TestGrownDisk(t *testing.T) {
	need(t)
	d := loop.New(t, mega)
	s := open(t, "")
	follow(t, s, d)
	d.Grow(2 * mega)
	require.Contains(t, gap(t, s), "had 1048576 bytes and has 2097152")
	noGap(t, s)
	require.NoError(t, d.Write(mega-512, ones(512)))
	noGap(t, s)
	require.NoError(t, d.Write(mega-512, ones(1024)))
	require.Contains(t, gap(t, s), "behind what was the end of "+d.Path)
	covers(t, drained(t, s, 0), []int64{mega/4096 - 1})
	require.Equal(t, []bool{false}, follow(t, s, d), "of another size")
	require.NoError(t, d.Write(2*mega-512, ones(512)))
	covers(t, drained(t, s, 0), []int64{2*mega/4096 - 1})
}

// TestGapsOfPrograms holds that what the kernel or the programs count is told. A missed
// end of a write is none but where the write may have begun before tracking.
func TestGapsOfPrograms(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, mega)
	s := open(t, dir)
	follow(t, s, d)
	s.programs.told.issue-- // as if one was missed since
	require.Contains(t, gap(t, s), "for 1 writes (recursion)")
	noGap(t, s)
	s.programs.told.complete--
	require.Contains(t, gap(t, s), "may have begun before")
	s.disks[0].sure = 0
	noGap(t, s)
	s.programs.told.complete--
	noGap(t, s)
	s.disks[0].passthrough += 3
	require.Contains(t, gap(t, s), "(passthrough), 3 of them")
	noGap(t, s)
	s.disks[0].chains++
	require.Contains(t, gap(t, s), "too many ranges")
}

// TestGapIsToldAgain holds that a process that dies after it was told of a gap is told
// again.
func TestGapIsToldAgain(t *testing.T) {
	dir := bpffs(t)
	d := loop.New(t, mega)
	s := open(t, dir)
	follow(t, s, d)
	s.disks[0].passthrough++
	require.Contains(t, gap(t, s), "passthrough")
	require.NoError(t, s.Close())
	s = open(t, dir)
	require.Equal(t, []bool{true}, follow(t, s, d))
	require.Contains(t, gap(t, s), "passthrough")
	noGap(t, s)
	require.NoError(t, s.Close())
	s = open(t, dir)
	require.Equal(t, []bool{true}, follow(t, s, d))
	noGap(t, s)
}
