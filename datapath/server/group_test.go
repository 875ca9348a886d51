package server_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
)

// member is a machine of a group, and its agent.
type member struct {
	*agent
	r    *running
	id   ident.MachineID
	name string
}

// groupGrant is of a machine with one small disk.
func groupGrant(name string, change ...func(*stream.Grant)) stream.Grant {
	id := ident.NewMachineID("vc", name)
	g := stream.Grant{Epoch: 1, Instance: instance, Cut: 300 * time.Millisecond, Retention: replica.DefaultRetention(),
		Group: &stream.Group{Name: "shop", Ready: 10 * time.Second, Frozen: 10 * time.Second},
		Spec: replica.Spec{Machine: id, Name: name, KeyID: "key-1", Disks: []replica.Disk{
			{Disk: changeset.Disk{ID: ident.NewDiskID(id, "a"), Size: 64 << 10}, Name: "Hard disk 1"}}}}
	for _, f := range change {
		f(&g)
	}
	return g
}

// join grants a machine, connects its agent and copies its disk.
func (r *running) join(g stream.Grant) *member {
	r.t.Helper()
	require.NoError(r.t, r.Grant(r.t.Context(), g))
	m := &member{r: r, id: g.Spec.Machine, name: g.Spec.Name}
	m.connect()
	cut := crash()
	cut.Complete = true
	refusal := m.set(changeset.Base, cut)
	require.Nil(r.t, refusal, "%+v", refusal)
	m.await(wire.Applied, m.tail.Seq)
	return m
}

func (m *member) connect() {
	m.r.t.Helper()
	h := &wire.Hello{Machine: m.id, Epoch: 1, AgentVersion: "test", Instance: instance, SourceTime: time.Now(),
		Disks: []changeset.Disk{{ID: ident.NewDiskID(m.id, "a"), Size: 64 << 10}}}
	a, refusal := m.r.hello(wiretest.Agent(m.id), h)
	require.Nil(m.r.t, refusal, "%+v", refusal)
	m.agent = a
}

// step waits for a step of any round.
func (m *member) step(want wire.Step) wire.Barrier {
	m.r.t.Helper()
	for {
		select {
		case b := <-m.barriers:
			if b.Step == want {
				return b
			}
		case <-time.After(patience):
			require.FailNow(m.r.t, "no step", "%s waits for step %d", m.name, want)
		}
	}
}

// next gives the next step, whatever it is.
func (m *member) next() wire.Barrier {
	m.r.t.Helper()
	select {
	case b := <-m.barriers:
		return b
	case <-time.After(patience):
		require.FailNow(m.r.t, "no step", m.name)
		return wire.Barrier{}
	}
}

func (m *member) reach(b wire.Barrier) { m.say(&wire.Reached{Round: b.Round, Step: b.Step}) }

func (m *member) miss(b wire.Barrier, why string) {
	m.say(&wire.Reached{Round: b.Round, Step: b.Step, Missed: why})
}

// cut sends a set that claims to be of the round; 0: of none.
func (m *member) cut(round ident.Round) replica.Point {
	m.r.t.Helper()
	cut := crash()
	cut.Consistency = ident.FileSystemConsistent
	if round != 0 {
		cut.Group = &changeset.Group{Round: round}
	}
	refusal := m.set(changeset.Delta, cut)
	require.Nil(m.r.t, refusal, "%+v", refusal)
	m.await(wire.Applied, m.tail.Seq)
	reader, err := m.r.store.OpenReader(m.r.t.Context(), m.id)
	require.NoError(m.r.t, err)
	defer func() { require.NoError(m.r.t, reader.Close()) }()
	st, err := reader.State(m.r.t.Context())
	require.NoError(m.r.t, err)
	return st.Points[len(st.Points)-1]
}

func (m *member) group() stream.GroupStatus {
	m.r.t.Helper()
	st, err := m.r.Status(m.id)
	require.NoError(m.r.t, err)
	require.NotNil(m.r.t, st.Group)
	return *st.Group
}

func shop(t *testing.T, n int, change ...func(*stream.Grant)) (*running, []*member) {
	t.Helper()
	r := newRig(t).start(func(c *server.Config) { c.SpoolLimit = 256 << 20 })
	var all []*member
	for i := range n { // all of them before one has a base: no round waits for answers before
		require.NoError(t, r.Grant(t.Context(), groupGrant(fmt.Sprintf("vm-%d", i), change...)))
	}
	for i := range n {
		all = append(all, r.join(groupGrant(fmt.Sprintf("vm-%d", i), change...)))
	}
	return r, all
}

// TestGroupRound: every step is ordered when all have reached the one before; the points
// are of one round and one time, and the group has a point in common once all have it.
func TestGroupRound(t *testing.T) {
	_, all := shop(t, 3)
	a, b, c := all[0], all[1], all[2]
	require.Positive(t, a.welcome.GroupWait)
	first := inStep(t, all, wire.StepReady)
	round := first[a].Round
	a.reach(first[a])
	b.reach(first[b])
	require.Never(t, func() bool { return len(a.barriers) > 0 }, 50*time.Millisecond, often, "c is not ready")
	c.reach(first[c])
	for _, m := range all {
		s := m.next()
		require.Equal(t, wire.Barrier{Round: round, Step: wire.StepFreeze, Within: 10 * time.Second}, s)
	}
	for _, m := range []*member{a, c} {
		m.reach(wire.Barrier{Round: round, Step: wire.StepFreeze})
	}
	require.Never(t, func() bool { return len(a.barriers)+len(c.barriers) > 0 }, 50*time.Millisecond, often, "b is not frozen")
	before := time.Now()
	b.reach(wire.Barrier{Round: round, Step: wire.StepFreeze})
	for _, m := range all {
		require.Equal(t, wire.Barrier{Round: round, Step: wire.StepTogether}, m.next())
	}
	pa, pb := a.cut(round), b.cut(round)
	require.Empty(t, a.group().Round, "not all have it")
	pc := c.cut(round)
	want := &changeset.Group{Name: "shop", Round: round, Members: 3}
	for _, p := range []replica.Point{pa, pb, pc} {
		require.Equal(t, want, p.Group)
		require.Equal(t, pa.Time, p.Time, "one moment, one time")
		require.WithinRange(t, p.Time, before, time.Now())
	}
	for _, m := range all {
		g := m.group()
		require.Equal(t, "shop", g.Name)
		require.Equal(t, 3, g.Members)
		require.Equal(t, round, g.Round)
		require.True(t, pa.Time.Equal(g.Time))
		require.Empty(t, g.Missed)
	}
}

// inStep takes all to the same step of the same round; rounds from before all were there
// have come to nothing.
func inStep(t *testing.T, all []*member, step wire.Step) map[*member]wire.Barrier {
	t.Helper()
	at := map[*member]wire.Barrier{}
	for _, m := range all {
		at[m] = m.step(step)
	}
	for _, m := range all {
		require.Equal(t, at[all[0]].Round, at[m].Round)
	}
	return at
}

// TestGroupScripts: when they are due, all send first, then all run theirs, then all
// freeze; the points say that the scripts of all were run.
func TestGroupScripts(t *testing.T) {
	_, all := shop(t, 2, func(g *stream.Grant) { g.App = time.Hour })
	for _, step := range []wire.Step{wire.StepSend, wire.StepReady, wire.StepFreeze} {
		for m, b := range inStep(t, all, step) {
			require.True(t, b.Scripts)
			m.reach(b)
		}
	}
	b := inStep(t, all, wire.StepTogether)[all[0]]
	for _, m := range all {
		require.Equal(t, &changeset.Group{Name: "shop", Round: b.Round, Members: 2, Scripts: true}, m.cut(b.Round).Group)
	}
	require.False(t, all[0].step(wire.StepReady).Scripts, "not for an hour")
}

// TestGroupScriptsThatFail: a round that comes to nothing after they were run is tried
// again after a while, one in which nobody has run them at the next cadence.
func TestGroupScriptsThatFail(t *testing.T) {
	_, all := shop(t, 2, func(g *stream.Grant) { g.App = time.Hour })
	for m, b := range inStep(t, all, wire.StepSend) {
		m.miss(b, "not yet")
	}
	for _, m := range all {
		require.False(t, m.step(wire.StepAlone).Scripts)
	}
	for m, b := range inStep(t, all, wire.StepSend) {
		m.reach(b)
	}
	for m, b := range inStep(t, all, wire.StepReady) {
		m.miss(b, "not ready")
	}
	for _, m := range all {
		require.True(t, m.step(wire.StepAlone).Scripts, "they have run them")
		b := m.next()
		require.Equal(t, wire.StepReady, b.Step)
		require.False(t, b.Scripts)
	}
}

// TestGroupMissed: who does not come in time, says that it cannot, or goes away, is
// named; the others are let go on at once, and nobody's cut is of the group.
func TestGroupMissed(t *testing.T) {
	ready := func(g *stream.Grant) { g.Group.Ready, g.Group.Frozen = time.Second, time.Second }
	for name, c := range map[string]struct {
		step wire.Step // that b does not reach
		do   func(b *member, s wire.Barrier)
		why  string
	}{
		"says so before":    {wire.StepReady, func(b *member, s wire.Barrier) { b.miss(s, "a file system hangs") }, "a file system hangs"},
		"says so when last": {wire.StepFreeze, func(b *member, s wire.Barrier) { b.miss(s, "not all of it") }, "not all of it"},
		"silent before":     {wire.StepReady, func(*member, wire.Barrier) {}, "was not ready to freeze within 1s"},
		"silent when last":  {wire.StepFreeze, func(*member, wire.Barrier) {}, "was not frozen within 1s"},
		"gone before":       {wire.StepReady, func(b *member, _ wire.Barrier) { b.close() }, "session ended"},
		"gone when last":    {wire.StepFreeze, func(b *member, _ wire.Barrier) { b.close() }, "session ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, all := shop(t, 3, ready)
			at := inStep(t, all, wire.StepReady)
			if c.step == wire.StepFreeze {
				for _, m := range all {
					m.reach(at[m])
				}
				at = inStep(t, all, wire.StepFreeze)
			}
			b := all[1]
			for _, m := range []*member{all[0], all[2]} {
				m.reach(at[m])
			}
			c.do(b, at[b])
			for _, m := range []*member{all[0], all[2]} {
				s := m.next()
				require.Equal(t, wire.StepAlone, s.Step)
				require.Nil(t, m.cut(s.Round).Group, "the claim of a round that came to nothing")
			}
			g := all[0].group()
			require.NotEmpty(t, g.Missed)
			require.Equal(t, "vm-1", g.Missed[0].Name)
			require.Len(t, g.Missed, 1)
			require.Zero(t, g.Round)
			require.NotZero(t, g.Since)
		})
	}
}

// TestGroupDoesNotWaitForTheSilent: a machine that has not answered delays the others
// once; until it sends something their rounds end at once. Then it is waited for again.
func TestGroupDoesNotWaitForTheSilent(t *testing.T) {
	_, all := shop(t, 2, func(g *stream.Grant) { g.Group.Ready = 500 * time.Millisecond })
	a, b := all[0], all[1]
	at := inStep(t, all, wire.StepReady)
	a.reach(at[a])
	require.Equal(t, wire.StepAlone, a.next().Step)
	for range 3 {
		require.Equal(t, wire.StepAlone, a.next().Step, "no other step comes before it")
	}
	require.Contains(t, a.group().Missed[0].Why, "did not answer")
	b.cut(0)
	at = map[*member]wire.Barrier{a: a.step(wire.StepReady)}
	at[b] = b.step(wire.StepReady)
	for at[b].Round != at[a].Round {
		at[b] = b.step(wire.StepReady)
	}
	b.reach(at[b])
	a.reach(at[a])
	for m, s := range inStep(t, all, wire.StepFreeze) {
		m.reach(s)
	}
	round := inStep(t, all, wire.StepTogether)[a].Round
	a.cut(round)
	b.cut(round)
	require.Equal(t, round, a.group().Round)
	require.Empty(t, a.group().Missed)
	require.Zero(t, a.group().Since)
}

// TestGroupClaims: a cut is of a round only if that round was one of this machine.
func TestGroupClaims(t *testing.T) {
	_, all := shop(t, 2)
	a, b := all[0], all[1]
	require.Nil(t, a.cut(4711).Group, "of no round there was")
	var round ident.Round
	for _, step := range []wire.Step{wire.StepReady, wire.StepFreeze, wire.StepTogether} {
		for m, s := range inStep(t, all, step) {
			round = s.Round
			m.reach(s)
		}
	}
	require.Nil(t, a.cut(0).Group, "it had gone on alone")
	require.NotNil(t, b.cut(round).Group)
	require.Empty(t, a.group().Round, "a has it not")
	for _, step := range []wire.Step{wire.StepReady, wire.StepFreeze, wire.StepTogether} {
		for m, s := range inStep(t, all, step) {
			m.reach(s)
		}
	}
	require.Nil(t, a.cut(round).Group, "of the round before")
}

// TestGroupAbsent: a machine without an agent, without a base or marked for resync is
// named at once, and the others are told at every cadence to go on alone.
func TestGroupAbsent(t *testing.T) {
	r := newRig(t).start()
	require.NoError(t, r.Grant(t.Context(), groupGrant("vm-1")))
	a := r.join(groupGrant("vm-0"))
	why := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool {
			a.step(wire.StepAlone)
			g := a.group()
			return g.Members == 2 && len(g.Missed) == 1 && g.Missed[0] == stream.Missing{Machine: ident.NewMachineID("vc", "vm-1"), Name: "vm-1", Why: want}
		}, patience, often, "%+v", a.group())
	}
	why("its agent is not connected")
	b := &member{r: r, id: ident.NewMachineID("vc", "vm-1"), name: "vm-1"}
	b.connect()
	why("its base copy is not complete")
	require.NoError(t, r.MarkBroken(t.Context(), b.id, 1, stream.Broken{Code: "DRV-3002", Cause: "test"}))
	b.ended()
	why("its agent is not connected")
	require.NoError(t, r.Revoke(t.Context(), b.id, 1))
	a.step(wire.StepReady)
	require.Equal(t, 1, a.group().Members, "it is of the group no more")
}

// TestGroupTooLarge: more machines than can be frozen together are no group, and all of
// them stay protected.
func TestGroupTooLarge(t *testing.T) {
	r := newRig(t).start()
	for i := range changeset.MaxMembers {
		require.NoError(t, r.Grant(t.Context(), groupGrant(fmt.Sprintf("vm-%d", i+1))))
	}
	a := r.join(groupGrant("vm-0"))
	require.Eventually(t, func() bool {
		a.step(wire.StepAlone)
		g := a.group()
		return g.Members == changeset.MaxMembers+1 && len(g.Missed) == stream.MaxMissing && g.Others == changeset.MaxMembers+1-stream.MaxMissing
	}, patience, often)
	require.Contains(t, a.group().Missed[0].Why, "65 machines on this server, at most 64")
}

func TestGroupGrantRefused(t *testing.T) {
	r := newRig(t).start()
	for _, g := range []stream.Group{{}, {Name: "../x"}, {Name: "a", Ready: time.Millisecond}, {Name: "a", Ready: time.Hour}, {Name: "a", Frozen: time.Minute}} {
		require.ErrorContains(t, r.Grant(t.Context(), groupGrant("vm-0", func(x *stream.Grant) { x.Group = &g })), "consistency group")
	}
}

// TestGroupJoinsAndLeaves: a machine that streams joins and leaves a group by its grant;
// its agent learns of it with a new session. A grant that changes nothing ends none.
func TestGroupJoinsAndLeaves(t *testing.T) {
	r := newRig(t).start()
	a := r.join(groupGrant("vm-0", func(g *stream.Grant) { g.Group = nil }))
	require.Zero(t, a.welcome.GroupWait)
	for _, change := range []func(*stream.Grant){func(*stream.Grant) {}, func(g *stream.Grant) { g.Group = nil }} {
		require.NoError(t, r.Grant(t.Context(), groupGrant("vm-0", change)))
		require.Equal(t, wire.CodeStopped, a.ended().Code)
		a.connect()
		require.NoError(t, r.Grant(t.Context(), groupGrant("vm-0", change)))
		a.cut(0)
		g := groupGrant("vm-0", change)
		require.Equal(t, g.Group != nil, a.welcome.GroupWait > 0)
		st, err := r.Status(a.id)
		require.NoError(t, err)
		require.Equal(t, g.Group != nil, st.Group != nil)
	}
}
