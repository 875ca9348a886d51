package replication

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// inRound is a point of a round of the group, made n minutes ago.
func inRound(id ident.Seq, round ident.Round, ago time.Duration, members int, c ident.Consistency) replica.Point {
	p := replica.Point{ID: id, Time: now.Add(-ago), Consistency: c}
	if round != 0 {
		p.Group = &changeset.Group{Name: "shop", Round: round, Members: members}
	}
	return p
}

// grouped is a store in which round 2 is the newest that machine and other have, and
// round 1 the newest for applications; left was of the group when it had three machines.
func grouped() (w world, other, left ident.MachineID) {
	other, left = ident.NewMachineID("vc", "other"), ident.NewMachineID("vc", "left")
	const fs, app = ident.FileSystemConsistent, ident.ApplicationConsistent
	w = newWorld()
	w.store.points = []replica.Point{inRound(2, 9, 9*time.Minute, 3, app), inRound(3, 1, 3*time.Minute, 2, app), inRound(5, 2, 2*time.Minute, 2, fs),
		inRound(6, 3, time.Minute, 2, app), inRound(8, 0, 0, 0, app)}
	w.store.others = map[ident.MachineID][]replica.Point{
		other: {inRound(10, 9, 9*time.Minute, 3, app), inRound(14, 1, 3*time.Minute, 2, app), inRound(15, 2, 2*time.Minute, 2, app), inRound(17, 0, 0, 0, app)},
		left:  {inRound(20, 9, 9*time.Minute, 3, app), inRound(21, 0, 0, 0, fs)},
	}
	return w, other, left
}

func TestChooseCommonPoints(t *testing.T) {
	for choice, want := range map[api.PointChoice][2]ident.Seq{api.PointLatestMulti: {5, 15}, api.PointLatestMultiApp: {3, 14}} {
		w, other, left := grouped()
		got, err := w.ChooseCommonPoints(t.Context(), api.ChooseCommonInput{
			Machines: []ident.MachineID{machine, left, other}, Choice: choice, Owner: "plan-1", Hold: api.Duration(time.Hour),
		})
		require.NoError(t, err)
		require.Len(t, got, 2, "one has left the group")
		require.Equal(t, machine, got[0].Machine)
		require.Equal(t, want[0], got[0].Point)
		require.Equal(t, want[1], got[1].Point)
		require.Equal(t, got[0].Round, got[1].Round)
		require.Equal(t, "shop", got[0].Group)
		for _, p := range w.store.points {
			require.Equal(t, p.ID == want[0], len(p.Holds) == 1)
		}
		one, err := w.ChoosePoint(t.Context(), api.ChoosePointInput{Machine: machine, Choice: choice, Owner: "o"})
		require.NoError(t, err)
		require.Equal(t, want[0], one.ID)
	}
	w, _, _ := grouped()
	_, err := w.ChooseCommonPoints(t.Context(), api.ChooseCommonInput{Choice: api.PointLatest, Owner: "o", Hold: 1})
	require.Equal(t, api.CodeInvalid, code(t, err))
	w.store.others = nil
	_, err = w.ChoosePoint(t.Context(), api.ChoosePointInput{Machine: machine, Choice: api.PointLatestMulti, Owner: "o"})
	require.Equal(t, api.CodeNoPoint, code(t, err), "no round is whole")
}

func TestReplicateTellsOfTheGroup(t *testing.T) {
	// What the machine's own reason is, look by look, and for how long rounds are missed.
	type look struct {
		why   string
		lasts time.Duration
	}
	looks := []look{{"", 0}, {"x", time.Minute}, {"x", 3 * time.Minute}, {"y", 4 * time.Minute}, {"", 5 * time.Minute}, {"", 0}}
	f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Phase: stream.PhaseDelta}}
	s := &fakeSignals{fail: 1}
	h := newHost(f, s)
	h.beatEvery = time.Hour // so that only the watch looks
	f.next = func(n int, st *stream.Status) {
		i := (n - 1) / 3
		if i >= len(looks) {
			st.Broken = &stream.Broken{Code: api.CodeSessionLost, Cause: "lost"}
			return
		}
		st.ServerTime, st.Group = now, &stream.GroupStatus{Name: "shop", Members: 3, Why: looks[i].why}
		if looks[i].lasts > 0 {
			st.Group.Since = now.Add(-looks[i].lasts)
		}
	}
	_, err := replicate(t, h, nil)
	require.NoError(t, err)
	var told []bool
	for _, e := range s.events {
		require.Equal(t, api.CodeGroupMissed, e.Problem.Code)
		told = append(told, e.Cleared)
	}
	require.Equal(t, []bool{true, false, true}, told)
	require.Contains(t, s.events[1].Problem.Cause, "x")
	require.Contains(t, s.events[1].Problem.Evidence, "group shop, 3 machines")
}
