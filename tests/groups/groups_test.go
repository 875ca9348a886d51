package groups

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/quiesce"
	"drover/datapath/ident"
	"drover/datapath/replica"
	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

var many = flag.Int("rounds", 8, "in how many rounds the order of writes is looked at")

// TestDependentWrites: at every point of a round the machines have what was written in
// the order in which it was written, over all of them.
func TestDependentWrites(t *testing.T) {
	all := shop(t, &pipe.Group{Name: "shop"})
	for _, m := range all {
		m.StartAgent(1)
	}
	w := newWriter(all)
	awaitRounds(all, *many)
	w.stop()
	looked, apart, last := 0, 0, uint64(0)
	for _, points := range rounds(all) {
		var numbers []uint64
		for i, p := range points {
			numbers = append(numbers, all[i].numberAt(p))
			require.Equal(t, ident.FileSystemConsistent, p.Consistency, p.Note)
			require.Less(t, p.Freeze, freezeLimit+thawing)
			require.Equal(t, points[0].Time, p.Time)
		}
		require.Empty(t, inOrder(numbers), "%v at %s", numbers, points[0].Group.Round)
		looked++
		if numbers[0] != numbers[2] {
			apart++
		}
		require.GreaterOrEqual(t, numbers[0], last)
		last = numbers[0]
	}
	require.GreaterOrEqual(t, looked, *many)
	require.Positive(t, last, "the writer wrote")
	t.Logf("%d rounds, %d of them between two writes, %d numbers", looked, apart, last)
}

// TestWithoutAGroup: cuts of machines that do not know of each other have not the order of
// writes: the proof above can fail.
func TestWithoutAGroup(t *testing.T) {
	all := shop(t, nil)
	for _, m := range all {
		m.StartAgent(1)
	}
	for _, m := range all {
		m.Await("complete", func(st pipe.Status) bool { return st.Complete && st.Points > 0 })
	}
	newWriter(all)
	var numbers []uint64
	for _, m := range all { // one after the other, while the writer goes on
		numbers = append(numbers, m.numberAt(m.AfterNow()))
	}
	require.Equal(t, "a write is there and the one that it depends on is not", inOrder(numbers), "%v", numbers)
}

// TestOneHangs: a machine whose hook hangs is named; the others go on getting points, all
// freezes stay within their limit, and when it hangs no more there are points in common.
func TestOneHangs(t *testing.T) {
	all := shop(t, &pipe.Group{Name: "shop", Ready: 5 * time.Second, Frozen: 500 * time.Millisecond})
	hang, script := filepath.Join(all[0].Dir, "hang"), filepath.Join(all[0].Dir, "pre")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nwhile [ -e "+hang+" ]; do sleep 0.05; done\n"), 0o700))
	b := all[1]
	b.Hooks.Pre, b.Hooks.Timeout = []string{script}, rig.Limit
	for _, m := range all {
		m.StartAgent(1)
	}
	newWriter(all)
	awaitRounds(all, 2)
	require.NoError(t, os.WriteFile(hang, nil, 0o600))
	missed := all[0].Await("b is missed", func(st pipe.Status) bool { return misses(st, "b") && !st.Group.Since.IsZero() }).Group
	common := missed.Round
	for _, m := range []*machine{all[0], all[2]} {
		last := m.Status().LastPoint
		m.Await("points of the others", func(st pipe.Status) bool { return st.LastPoint >= last+4 })
		require.Equal(t, common, m.Status().Group.Round, "none in common")
	}
	require.NoError(t, os.Remove(hang))
	awaitRounds(all, 2)
	requireInOrder(t, all)
	requireShortFreezes(t, all)
}

// appEvery is how often scripts are due: a round that somebody misses on a busy machine is
// followed by another one soon.
const appEvery = 3 * time.Second

// TestScriptsOfAll: when scripts are due, those of all machines have run before any of them
// is frozen, and the points are application-consistent.
func TestScriptsOfAll(t *testing.T) {
	all := shop(t, &pipe.Group{Name: "shop"})
	calls := filepath.Join(all[0].Dir, "calls")
	for _, m := range all {
		dir := filepath.Join(m.Dir, "scripts-"+m.Name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		slow := map[string]string{"c": "[ $1 = thaw ] || sleep 0.3\n"}[m.Name]
		require.NoError(t, os.WriteFile(filepath.Join(dir, "10-app"), []byte("#!/bin/sh\n"+slow+"echo $1 >> "+calls+"\n"), 0o700))
		m.Hooks.Scripts = quiesce.Scripts{Dir: dir}
		m.App = appEvery
		m.Grant(1, cadence)
		m.StartAgent(1)
	}
	var points []replica.Point
	require.Eventually(t, func() bool {
		for _, p := range rounds(all) {
			if p[0].Group.Scripts {
				points = p
			}
		}
		return points != nil
	}, rig.Limit, 50*time.Millisecond, "a round with scripts")
	for _, p := range points {
		require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
		require.True(t, p.Group.Scripts)
	}
	for _, m := range all {
		m.StopAgent()
	}
	b, err := os.ReadFile(calls)
	require.NoError(t, err)
	said := strings.Fields(string(b))
	require.Contains(t, strings.Join(said, " "), "freeze freeze freeze thaw thaw thaw")
}

func requireInOrder(t *testing.T, all []*machine) {
	t.Helper()
	found := rounds(all)
	require.NotEmpty(t, found)
	for _, points := range found {
		requireRound(t, all, points)
	}
}

func requireRound(t *testing.T, all []*machine, points []replica.Point) {
	t.Helper()
	var numbers []uint64
	for i, p := range points {
		numbers = append(numbers, all[i].numberAt(p))
	}
	require.Empty(t, inOrder(numbers), "%v at %s", numbers, points[0].Group.Round)
}
