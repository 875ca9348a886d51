package replication

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

const quick = 2 * time.Millisecond

func newHost(f *fakeStreams, s *fakeSignals) *Host {
	h := NewHost(HostConfig{
		Name: "ps-1", Role: ident.RoleProcessServer, Streams: f, Store: &fakeStore{points: points()}, Signals: s,
		CurrentKey: func(context.Context, ident.MachineID) (string, error) { return "k-1", nil },
	})
	h.beatEvery, h.basePoll, h.watchPoll = quick, quick, quick
	return h
}

func grantInput() api.GrantInput {
	return api.GrantInput{
		Machine: machine, Name: "app-1", Disks: []api.VMDisk{disk},
		Assignment: api.Assignment{Epoch: 3, Server: "ps-1", Role: ident.RoleProcessServer, Address: "h:1", Instance: "i-1"},
		Policy: api.Policy{
			Name: "gold", CutInterval: api.Duration(10 * time.Second), AppConsistentEvery: api.Duration(2 * time.Hour), Retention: replica.Retention{Keep: time.Hour},
			Resync: api.ResyncPolicy{AfterDisconnect: api.Duration(time.Hour)},
		},
		Target: api.Target{Network: "prod"}, Attached: true,
	}
}

func TestGrant(t *testing.T) {
	f := &fakeStreams{}
	h := newHost(f, nil)
	require.NoError(t, h.grant(t.Context(), grantInput()))
	g := f.grants[0]
	require.Equal(t, ident.Epoch(3), g.Epoch)
	require.Equal(t, "i-1", g.Instance)
	require.Equal(t, "k-1", g.Spec.KeyID)
	require.Equal(t, 10*time.Second, g.Cut)
	require.Equal(t, 2*time.Hour, g.App)
	require.Nil(t, g.Group)
	require.Equal(t, time.Hour, g.LossLimit)
	require.Equal(t, time.Hour, g.Retention.Keep)
	require.True(t, g.Attached)
	require.Len(t, g.Spec.Disks, 1)
	require.Equal(t, disk.ID, g.Spec.Disks[0].ID)
	require.Equal(t, "b-1", g.Spec.Disks[0].BackingUUID)
	require.JSONEq(t, `{"network":"prod","subnet":"","testNetwork":""}`, g.Spec.Documents["target"])
	require.Contains(t, g.Spec.Documents["policy"], `"gold"`)

	grouped := grantInput()
	grouped.Policy.ConsistencyGroup = &api.ConsistencyGroup{Name: "shop", ReadyWithin: api.Duration(time.Minute)}
	require.NoError(t, h.grant(t.Context(), grouped))
	require.Equal(t, &stream.Group{Name: "shop", Ready: time.Minute}, f.grants[1].Group)

	other := grantInput()
	other.Assignment.Server = "ps-2"
	require.Equal(t, api.CodeInvalid, code(t, h.grant(t.Context(), other)))
	old := grantInput()
	old.Assignment.Epoch = 2
	require.Equal(t, api.CodeFenced, code(t, h.grant(t.Context(), old)))
}

// completes makes the base pass complete at the given look.
func completes(at int) func(int, *stream.Status) {
	return func(looks int, st *stream.Status) {
		if looks < at || st.Phase != stream.PhaseBase {
			return
		}
		st.Complete, st.Phase, st.Points, st.LastPoint = true, stream.PhaseDelta, 1, 4
		st.BaseDataBytes, st.BaseWireBytes = 100, 120
		st.BaseStarted, st.BaseFinished = now, now.Add(3*time.Second)
		st.Disks = []stream.DiskProgress{{ID: disk.ID, Size: disk.Size}}
	}
}

func TestBaseOfNewGeneration(t *testing.T) {
	f := &fakeStreams{next: completes(8)}
	e := env(t, newHost(f, nil).Activities())
	beats := make(chan stream.Status, 1000)
	e.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		var st stream.Status
		if details.Get(&st) == nil {
			select {
			case beats <- st:
			default:
			}
		}
	})
	in := api.BaseInput{GrantInput: grantInput(), Cause: "resync", NewGeneration: true}
	got, err := run[api.Transfer](t, e, api.ActBase, in)
	require.NoError(t, err)
	require.Equal(t, api.Transfer{DiskBytes: disk.Size, DataBytes: 100, WireBytes: 120, Took: api.Duration(3 * time.Second), Cause: "resync"}, got)
	require.Len(t, f.grants, 1, "it was granted because there was no grant")
	require.Equal(t, []string{"resync"}, f.bases)
	require.NotEmpty(t, beats)
	require.Equal(t, machine, (<-beats).Machine)
}

func TestBaseIsBegunOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		status stream.Status
		mark   baseMark
		bases  int
	}{
		"under way since an earlier try": {stream.Status{Generation: 2, Phase: stream.PhaseBase}, baseMark{Wanted: 2}, 0},
		"completed in the meantime":      {stream.Status{Generation: 2, Phase: stream.PhaseDelta, Complete: true, Points: 2}, baseMark{Wanted: 2}, 0},
		"announced but not begun":        {stream.Status{Generation: 1, Phase: stream.PhaseDelta, Complete: true, Points: 1}, baseMark{Wanted: 2}, 1},
		"announced but not begun at all": {stream.Status{Phase: stream.PhaseWaiting}, baseMark{Wanted: 1}, 1},
		"broken since":                   {stream.Status{Generation: 2, Phase: stream.PhaseBroken, Broken: &stream.Broken{Code: api.CodeSessionLost}}, baseMark{Wanted: 2}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tc.status.Machine, tc.status.Epoch = machine, 3
			f := &fakeStreams{status: &tc.status, next: completes(6)}
			e := env(t, newHost(f, nil).Activities())
			e.SetHeartbeatDetails(pulse{Base: &tc.mark})
			_, err := run[api.Transfer](t, e, api.ActBase, api.BaseInput{GrantInput: grantInput(), Cause: "resync", NewGeneration: true})
			require.NoError(t, err)
			require.Len(t, f.bases, tc.bases)
		})
	}
}

func TestBaseWaitsForItsOwnGeneration(t *testing.T) {
	// Complete, but of the generation before: that is not the end of this pass.
	f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Generation: 4, Complete: true, Points: 3, Phase: stream.PhaseDelta}}
	f.next = completes(12)
	e := env(t, newHost(f, nil).Activities())
	_, err := run[api.Transfer](t, e, api.ActBase, api.BaseInput{GrantInput: grantInput(), Cause: "resync", NewGeneration: true})
	require.NoError(t, err)
	require.Equal(t, uint32(5), f.status.Generation)
}

func TestBaseThatBreaks(t *testing.T) {
	for broken, want := range map[string]string{
		api.CodeSessionLost: api.CodeSessionLost, api.CodeReplicaDamaged: api.CodeReplicaDamaged, "DRV-0": api.CodeResyncFailed,
	} {
		f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Phase: stream.PhaseBase}}
		f.next = func(looks int, st *stream.Status) {
			if looks > 5 {
				st.Broken = &stream.Broken{Code: broken, Cause: "gone", Since: now}
			}
		}
		e := env(t, newHost(f, nil).Activities())
		_, err := run[api.Transfer](t, e, api.ActBase, api.BaseInput{GrantInput: grantInput()})
		require.Equal(t, want, code(t, err))
	}
}

func TestBaseOfAnotherOwner(t *testing.T) {
	f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Phase: stream.PhaseBase}}
	f.next = func(looks int, st *stream.Status) {
		if looks > 5 {
			st.Epoch = 4
		}
	}
	e := env(t, newHost(f, nil).Activities())
	_, err := run[api.Transfer](t, e, api.ActBase, api.BaseInput{GrantInput: grantInput()})
	require.Equal(t, api.CodeFenced, code(t, err))
}

func replicate(t *testing.T, h *Host, prepare func(*testsuite.TestActivityEnvironment)) (api.ReplicateResult, error) {
	t.Helper()
	e := env(t, h.Activities())
	if prepare != nil {
		prepare(e)
	}
	return run[api.ReplicateResult](t, e, api.ActReplicate, api.ReplicateInput{
		GrantInput: grantInput(), RPOThreshold: api.Duration(time.Minute), Workflow: "machine-1",
	})
}

func TestReplicateTellsOfTheRPO(t *testing.T) {
	// The age of the newest stored data, look by look, until the stream breaks.
	ages := []time.Duration{0, 0, 61 * time.Second, 62 * time.Second, 50 * time.Second, 44 * time.Second, 50 * time.Second, 70 * time.Second}
	f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Phase: stream.PhaseDelta}}
	s := &fakeSignals{fail: 1}
	h := newHost(f, s)
	h.beatEvery = time.Hour // so that only the watch looks
	f.next = func(looks int, st *stream.Status) {
		i := (looks - 1) / 3 // each age holds for three looks
		if i >= len(ages) {
			st.Broken = &stream.Broken{Code: api.CodeSessionLost, Cause: "lost"}
			return
		}
		st.ServerTime, st.StoredTime = now, now.Add(-ages[i])
	}
	got, err := replicate(t, h, nil)
	require.NoError(t, err)
	require.Equal(t, api.CodeSessionLost, got.Broken.Code)
	require.Equal(t, got.Broken, got.Status.Broken)
	var cleared []bool
	for _, e := range s.events {
		require.Equal(t, api.CodeRPO, e.Problem.Code)
		require.Equal(t, "process server ps-1", e.Problem.Component)
		cleared = append(cleared, e.Cleared)
	}
	require.Equal(t, []bool{true, false, true, false}, cleared, "50 s is neither over nor well within")
}

func TestReplicateEndsWithoutTouchingTheStream(t *testing.T) {
	f := &fakeStreams{status: &stream.Status{Machine: machine, Epoch: 3, Phase: stream.PhaseDelta}}
	stop := make(chan struct{})
	close(stop)
	_, err := replicate(t, newHost(f, &fakeSignals{}), func(e *testsuite.TestActivityEnvironment) { e.SetWorkerStopChannel(stop) })
	require.Equal(t, api.CodeServerLost, code(t, err), "worth another try")
	require.NotNil(t, f.status)

	f.next = func(looks int, _ *stream.Status) {
		if looks > 5 {
			f.status = nil
		}
	}
	_, err = replicate(t, newHost(f, &fakeSignals{}), nil)
	require.Equal(t, api.CodeFenced, code(t, err), "withdrawn")
}

func TestFinalCut(t *testing.T) {
	f := &fakeStreams{}
	e := env(t, newHost(f, nil).Activities())
	point, err := run[replica.Point](t, e, api.ActFinalCut, api.FenceInput{Machine: machine, Epoch: 3})
	require.NoError(t, err)
	require.True(t, point.Final)

	f.cutWait = true
	stop := make(chan struct{})
	close(stop)
	e = env(t, newHost(f, nil).Activities())
	e.SetWorkerStopChannel(stop)
	_, err = run[replica.Point](t, e, api.ActFinalCut, api.FenceInput{Machine: machine, Epoch: 3})
	require.Equal(t, api.CodeServerLost, code(t, err))

	listed, err := run[[]replica.Point](t, e, api.ActHostListPoints, machine)
	require.NoError(t, err)
	require.Len(t, listed, 3)
	_, err = run[any](t, e, api.ActRelease, api.FenceInput{Machine: machine, Epoch: 3})
	require.NoError(t, err)
	_, err = run[any](t, e, api.ActRevoke, api.FenceInput{Machine: machine, Epoch: 3})
	require.NoError(t, err)
}
