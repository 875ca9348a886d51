package replication

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/datapath/attest"
	"drover/datapath/cachestore"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

type world struct {
	*Control
	registry *fakeRegistry
	store    *fakeStore
	cache    *fakeCache
}

func newWorld() world {
	w := world{
		registry: &fakeRegistry{assignments: map[ident.MachineID]controlapi.Assignment{}},
		store:    &fakeStore{}, cache: &fakeCache{},
	}
	w.Control = NewControl(ControlConfig{Registry: w.registry, Store: w.store, Cache: w.cache, Now: func() time.Time { return now }})
	return w
}

func TestChooseServer(t *testing.T) {
	live := now.Add(-time.Second)
	a := Server{Name: "ps-a", Address: "a:9443", LastSeen: live, Assigned: 2}
	b := Server{Name: "ps-b", Address: "b:9443", LastSeen: live, Assigned: 1}
	c := Server{Name: "ps-c", Address: "c:9443", LastSeen: live, Assigned: 1}
	d := Server{Name: "ps-d", Address: "d:9443", LastSeen: live, Assigned: 9, Groups: map[string]int{"shop": 2}}
	silent := Server{Name: "ps-s", Address: "s:9443", LastSeen: now.Add(-serverSilence - time.Second)}
	new := Server{Name: "ps-n"}
	for name, tc := range map[string]struct {
		servers []Server
		avoid   []string
		want    string
	}{
		"fewest machines":          {[]Server{a, b}, nil, "ps-b"},
		"same number: by name":     {[]Server{c, b, a}, nil, "ps-b"},
		"silent and new are out":   {[]Server{silent, new, a}, nil, "ps-a"},
		"avoided":                  {[]Server{a, b}, []string{"ps-b"}, "ps-a"},
		"avoided, but no other":    {[]Server{b, silent}, []string{"ps-b"}, "ps-b"},
		"all avoided: fewest wins": {[]Server{a, b}, []string{"ps-a", "ps-b"}, "ps-b"},
		"where its group is":       {[]Server{a, d, b}, nil, "ps-d"},
		"its group, but avoided":   {[]Server{a, d, b}, []string{"ps-d"}, "ps-b"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.registry.servers = tc.servers
			w.registry.assignments[machine] = controlapi.Assignment{Epoch: 7}
			got, err := w.ChooseServer(t.Context(), api.ChooseServerInput{Machine: machine, Role: ident.RoleProcessServer, Group: "shop", Avoid: tc.avoid})
			require.NoError(t, err)
			require.Equal(t, tc.want, got.Server)
			require.Equal(t, ident.RoleProcessServer, got.Role)
			require.NotEmpty(t, got.Address)
			require.Equal(t, ident.Epoch(7), got.Epoch)
		})
	}
	w := newWorld()
	w.registry.servers = []Server{silent}
	_, err := w.ChooseServer(t.Context(), api.ChooseServerInput{Role: ident.RoleProcessServer})
	require.Equal(t, api.CodeNoServer, code(t, err))
}

func TestAssign(t *testing.T) {
	w := newWorld()
	in := api.AssignInput{
		Machine:    machine,
		Assignment: api.Assignment{Epoch: 3, Server: "ps-1", Role: ident.RoleProcessServer, Address: "h:9443", Instance: "i-1"},
		Disks:      []api.VMDisk{disk},
	}
	require.NoError(t, w.Assign(t.Context(), in))
	got := w.registry.assignments[machine]
	require.Equal(t, controlapi.Assignment{
		Version: 1, Action: controlapi.ActionReplicate, Machine: machine, Epoch: 3, Instance: "i-1", Server: "ps-1",
		Role: ident.RoleProcessServer, Address: "h:9443",
		Disks: []controlapi.Disk{{ID: disk.ID, BackingUUID: "b-1", Size: 1 << 20}},
	}, got)

	in.Assignment.Epoch = 2
	require.Equal(t, api.CodeFenced, code(t, w.Assign(t.Context(), in)))
	in.Disks = nil
	require.Equal(t, api.CodeInvalid, code(t, w.Assign(t.Context(), in)))

	require.NoError(t, w.Unassign(t.Context(), api.UnassignInput{Machine: machine, Reason: "failed over"}))
	got = w.registry.assignments[machine]
	require.Equal(t, controlapi.ActionStandby, got.Action)
	require.Equal(t, ident.Epoch(3), got.Epoch)
	require.Equal(t, "failed over", got.Reason)
	require.False(t, got.Reach)
	require.NoError(t, w.Unassign(t.Context(), api.UnassignInput{Machine: ident.NewMachineID("vc", "other")}))

	way := api.Assignment{Server: "mt-1", Role: ident.RoleMasterTarget, Address: "mt-1:9443", Via: "relay:9443", Instance: "i-2", Epoch: 9}
	require.NoError(t, w.Unassign(t.Context(), api.UnassignInput{Machine: machine, Reason: "the way is tried", Reach: &way}))
	require.Equal(t, controlapi.Assignment{Version: got.Version + 1, Action: controlapi.ActionStandby, Machine: machine, Epoch: 3, Reason: "the way is tried", Reach: true,
		Instance: "i-2", Server: "mt-1", Role: ident.RoleMasterTarget, Address: "mt-1:9443", Via: "relay:9443"}, w.registry.assignments[machine],
		"it owns nothing yet")
}

func TestFence(t *testing.T) {
	w := newWorld()
	require.NoError(t, w.Fence(t.Context(), api.FenceInput{Machine: machine, Epoch: 4}))
	require.Equal(t, ident.Epoch(4), w.store.epoch)
	require.Equal(t, ident.Epoch(4), w.cache.epoch)
	require.Equal(t, api.CodeFenced, code(t, w.Fence(t.Context(), api.FenceInput{Machine: machine, Epoch: 3})))
	w.store.epoch = 0
	require.Equal(t, api.CodeFenced, code(t, w.Fence(t.Context(), api.FenceInput{Machine: machine, Epoch: 3})), "by the cache")
}

func points() []replica.Point {
	return []replica.Point{
		{ID: 3, Consistency: ident.CrashConsistent, Time: now.Add(-3 * time.Minute)},
		{ID: 5, Consistency: ident.ApplicationConsistent, Time: now.Add(-2 * time.Minute)},
		{ID: 8, Consistency: ident.CrashConsistent, Time: now.Add(-time.Minute)},
	}
}

func TestChoosePoint(t *testing.T) {
	for name, tc := range map[string]struct {
		choice api.PointChoice
		id     ident.Seq
		want   ident.Seq
		code   string
	}{
		"latest":            {choice: api.PointLatest, want: 8},
		"latest processed":  {choice: api.PointLatestProcessed, want: 8},
		"latest app":        {choice: api.PointLatestApp, want: 5},
		"custom":            {choice: api.PointCustom, id: 3, want: 3},
		"custom, not there": {choice: api.PointCustom, id: 4, code: api.CodeNoPoint},
		"unknown choice":    {choice: "oldest", code: api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.store.points = points()
			got, err := w.ChoosePoint(t.Context(), api.ChoosePointInput{
				Machine: machine, Choice: tc.choice, PointID: tc.id, Owner: "failover-1", Hold: api.Duration(time.Hour),
			})
			if tc.code != "" {
				require.Equal(t, tc.code, code(t, err))
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got.ID)
			require.Equal(t, []replica.Hold{{Owner: "failover-1", Expires: now.Add(time.Hour)}}, got.Holds)
			require.NoError(t, w.ReleasePoint(t.Context(), api.ReleasePointInput{Machine: machine, Point: got.ID, Owner: "failover-1"}))
			for _, p := range w.store.points {
				require.Empty(t, p.Holds)
			}
		})
	}
}

// TestReleaseAllOfAnOwner: whoever does not know what it holds lets go of all of it.
func TestReleaseAllOfAnOwner(t *testing.T) {
	w := newWorld()
	w.store.points = points()
	for owner, id := range map[string]ident.Seq{"mine": 3, "other": 5} {
		_, err := w.ChoosePoint(t.Context(), api.ChoosePointInput{Machine: machine, Choice: api.PointCustom, PointID: id, Owner: owner})
		require.NoError(t, err)
	}
	require.NoError(t, w.ReleasePoint(t.Context(), api.ReleasePointInput{Machine: machine, Owner: "mine"}))
	held := map[ident.Seq]int{}
	for _, p := range w.store.points {
		held[p.ID] = len(p.Holds)
	}
	require.Equal(t, 0, held[3])
	require.Equal(t, 1, held[5])
}

func TestChoosePointWithout(t *testing.T) {
	in := api.ChoosePointInput{Machine: machine, Choice: api.PointLatest, Owner: "o"}
	w := newWorld()
	_, err := w.ChoosePoint(t.Context(), in)
	require.Equal(t, api.CodeNoPoint, code(t, err), "no point")

	w.store.absent = true
	_, err = w.ChoosePoint(t.Context(), in)
	require.Equal(t, api.CodeNoPoint, code(t, err), "no replica")
	got, err := w.ListPoints(t.Context(), machine)
	require.NoError(t, err)
	require.Empty(t, got)
	require.NoError(t, w.ReleasePoint(t.Context(), api.ReleasePointInput{Machine: machine, Point: 1, Owner: "o"}))

	w = newWorld()
	w.store.points, w.store.lose = points(), 8
	_, err = w.ChoosePoint(t.Context(), in)
	require.Equal(t, api.CodeInternal, code(t, err), "retention was quicker: worth another try")

	in.Owner = ""
	_, err = w.ChoosePoint(t.Context(), in)
	require.Equal(t, api.CodeInvalid, code(t, err))
}

func TestRemoveReplica(t *testing.T) {
	w := newWorld()
	w.store.points = points()
	w.cache.names = []cachestore.Name{{Machine: machine, Seq: 1, Epoch: 1}, {Machine: machine, Seq: 2, Epoch: 1}}
	w.store.points[0].Holds = []replica.Hold{{Owner: "test"}}
	in := api.FenceInput{Machine: machine, Epoch: 2}
	require.Equal(t, api.CodeBusy, code(t, w.RemoveReplica(t.Context(), in)))
	require.Len(t, w.cache.names, 2, "nothing is removed while a point is held")

	w.store.points[0].Holds = nil
	require.NoError(t, w.RemoveReplica(t.Context(), in))
	require.True(t, w.store.removed)
	require.Empty(t, w.cache.names)
	require.Equal(t, []string{attest.Document(machine)}, w.store.forgotten)
	require.Equal(t, []ident.MachineID{machine}, w.registry.dropped)
	require.NoError(t, w.RemoveReplica(t.Context(), in), "a second time")
}
