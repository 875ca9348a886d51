package server_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

func TestNewerGrant(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	require.NoError(t, s.Grant(t.Context(), grant(1)), "the same again changes nothing")
	a.delta(r.src.change(0, 3, r.noise(4096)))
	require.NoError(t, s.Grant(t.Context(), grant(2)))
	require.Equal(t, wire.CodeStopped, a.ended().Code)
	r.holds(3, r.src) // what was acknowledged is finished first
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeEpoch, refusal.Code)
	require.ErrorIs(t, s.Grant(t.Context(), grant(1)), replica.ErrFenced)
	require.ErrorIs(t, s.StartBase(t.Context(), machineID, 1, "", false), replica.ErrFenced)
	require.ErrorIs(t, s.Release(t.Context(), machineID, 1), replica.ErrFenced)
	_, err := s.Cut(t.Context(), machineID, 1, false)
	require.ErrorIs(t, err, replica.ErrFenced)

	h := r.greeting()
	h.Epoch = 2
	b, refusal := s.hello(agentPeer, h)
	require.Nil(t, refusal)
	require.Equal(t, wire.ModeDelta, b.welcome.Mode)
	b.delta(r.src.change(0, 4, r.noise(4096)))
	b.await(wire.Applied, 4)
	r.holds(4, r.src)
	require.Equal(t, ident.Epoch(2), r.state().Points[2].Position.Epoch)
}

// other is a second server on the same store and cache.
func (r *rig) other() *running {
	return r.start(func(c *server.Config) { c.Name, c.StateDir = "ps2", filepath.Join(r.dir, "other") })
}

func TestAnotherServerFences(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	o := r.other()
	require.NoError(t, o.Grant(t.Context(), grant(2)))
	if a.set(changeset.Delta, crash(), write{disk: 0, block: 1, content: r.noise(4096)}) == nil {
		require.Equal(t, wire.CodeEpoch, a.ended().Code)
	}
	require.Len(t, r.state().Points, 1)
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeEpoch, refusal.Code)
	require.Nil(t, s.status().Broken, "it is not for this server to say that a resync is needed")
	require.ErrorIs(t, s.StartBase(t.Context(), machineID, 1, "", false), replica.ErrFenced)

	h := r.greeting()
	h.Epoch = 2
	b, refusal := o.hello(agentPeer, h)
	require.Nil(t, refusal)
	require.Equal(t, ident.Seq(2), b.welcome.Position.Seq)
	b.delta(r.src.change(0, 4, r.noise(4096)))
	b.await(wire.Applied, 3)
	r.holds(3, r.src)
	require.NoError(t, s.Revoke(t.Context(), machineID, 1))
	s = r.start(func(c *server.Config) { c.StateDir = filepath.Join(r.dir, "third") })
	require.ErrorIs(t, s.Grant(t.Context(), grant(1)), replica.ErrFenced)
	r.holds(3, r.src)
}

// cutting is a call of Cut in the background.
type cutting struct {
	point replica.Point
	err   error
	done  chan struct{}
	stop  context.CancelFunc
}

func (r *running) cut(final bool) *cutting {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	c := &cutting{done: make(chan struct{}), stop: cancel}
	go func() {
		defer close(c.done)
		defer cancel()
		c.point, c.err = r.Cut(ctx, machineID, 1, final)
	}()
	return c
}

func TestCut(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	c := s.cut(false)
	a.awaitOrder(wire.OrderCut, 1)
	c.stop() // nobody waits for it any more
	<-c.done
	require.ErrorIs(t, c.err, context.Canceled)
	for n := range 3 {
		c = s.cut(false)
		a.awaitOrder(wire.OrderCut, n+2)
		a.delta(r.src.change(0, int64(n), r.noise(4096)))
		<-c.done
		require.NoError(t, c.err)
		require.Equal(t, a.tail, c.point.Position)
		require.False(t, c.point.Final)
		r.holds(c.point.ID, r.src)
	}
	c = s.cut(false) // asked for while the agent is away
	a.close()
	a = s.connect()
	a.awaitOrder(wire.OrderCut, 1)
	a.delta()
	<-c.done
	require.NoError(t, c.err)
}

func final() changeset.Cut {
	c := crash()
	c.Final = true
	return c
}

func TestFinalCut(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.awaitOrder(wire.OrderRelease, 1) // a fresh session thaws what may be frozen
	a.base(r.src)
	c := s.cut(true)
	a.awaitOrder(wire.OrderFinalCut, 1)
	a.delta(r.src.change(0, 7, r.noise(4096))) // a cut that was under way is not it
	require.Nil(t, a.set(changeset.Delta, final(), r.src.change(0, 8, r.noise(4096))))
	<-c.done
	require.NoError(t, c.err)
	require.True(t, c.point.Final)
	require.Equal(t, a.tail, c.point.Position)
	r.holds(4, r.src)

	s.stop()
	s = r.start(func(*server.Config) {})
	a = s.connect()
	again, err := s.Cut(t.Context(), machineID, 1, true)
	require.NoError(t, err)
	require.Equal(t, c.point.Position, again.Position)
	require.Zero(t, a.ordered(wire.OrderFinalCut))
	require.Zero(t, a.ordered(wire.OrderRelease), "the source stays frozen")
	require.NoError(t, s.Release(t.Context(), machineID, 1))
	a.awaitOrder(wire.OrderRelease, 1)
	a.delta(r.src.change(0, 9, r.noise(4096)))
	a.close()
	a = s.connect()
	a.awaitOrder(wire.OrderRelease, 1)
	c = s.cut(true)
	a.awaitOrder(wire.OrderFinalCut, 1)
	require.Nil(t, a.set(changeset.Delta, final()))
	<-c.done
	require.NoError(t, c.err)
	require.Equal(t, ident.Seq(6), c.point.ID)
}

// A final cut that could not be spooled holds nothing: it is asked for again.
func TestFinalCutThatFailed(t *testing.T) {
	r := newRig(t)
	r.src = &source{disks: [][]byte{r.noise(4096), r.noise(4096)}}
	s := r.granted(limitSpool(100 << 10))
	a := s.connect()
	a.base(r.src)
	c := s.cut(true)
	a.awaitOrder(wire.OrderFinalCut, 1)
	refusal := a.set(changeset.Delta, final(), write{disk: 0, block: 8, content: r.noise(128 << 10)})
	require.NotNil(t, refusal)
	require.Equal(t, wire.CodeFull, refusal.Code)
	c.stop()
	<-c.done
	require.Error(t, c.err)
	a = s.connect()
	a.awaitOrder(wire.OrderRelease, 1)
	c = s.cut(true)
	a.awaitOrder(wire.OrderFinalCut, 1)
	require.Nil(t, a.set(changeset.Delta, final()))
	<-c.done
	require.NoError(t, c.err)
	require.True(t, c.point.Final)
}

func TestAgentAwayTooLong(t *testing.T) {
	r := newRig(t)
	s := r.start()
	g := grant(1)
	g.LossLimit = 300 * time.Millisecond
	require.NoError(t, s.Grant(t.Context(), g))
	a := s.connect()
	a.base(r.src)
	before := r.src.clone()
	a.close()
	require.Eventually(t, func() bool { return s.status().Broken != nil }, patience, often)
	require.Equal(t, "DRV-3001", s.status().Broken.Code)
	s.stop()
	s = r.start()
	st := s.status()
	require.Equal(t, stream.PhaseBroken, st.Phase)
	require.Equal(t, "DRV-3001", st.Broken.Code)
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeResyncRequired, refusal.Code)

	require.NoError(t, s.StartBase(t.Context(), machineID, 1, "the agent was away", false))
	b := s.connect()
	require.Nil(t, s.status().Broken)
	require.Equal(t, wire.ModeCompare, b.welcome.Mode)
	require.Equal(t, uint32(2), b.welcome.Generation)
	require.NoError(t, s.StartBase(t.Context(), machineID, 1, "again", false), "one is under way")
	require.Equal(t, uint32(2), s.status().Generation)
	r.sameSums(b)

	changed := r.src.change(0, 77, r.noise(4096))
	cut := crash()
	cut.Complete = true
	require.Nil(t, b.set(changeset.Base, cut, changed))
	b.await(wire.Applied, 3)
	r.holds(3, r.src)
	r.holds(2, before) // a resync costs no point
	r.sameSums(b)
	s.good()
}

// sameSums compares all disks by their checksums, as an agent does.
func (r *rig) sameSums(a *agent) {
	r.t.Helper()
	for i, d := range a.welcome.Disks {
		blocks := int((d.Size + 4095) / 4096)
		require.Equal(r.t, sumsOf(d.Seed, r.src.disks[i]), a.query(&wire.SumsQuery{Disk: i, Count: blocks}))
		require.Len(r.t, a.query(&wire.SumsQuery{Disk: i, Level: 1, First: 1, Count: 2}), 2)
	}
}

func TestRevoke(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	r.cache.away.Store(true)
	a.delta(r.src.change(0, 3, r.noise(4096)))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Revoke(short, machineID, 1), context.DeadlineExceeded, "it waits for what was acknowledged")
	require.Equal(t, wire.CodeStopped, a.ended().Code)
	require.NoError(t, s.Revoke(t.Context(), machineID, 0), "an older one changes nothing")
	s.stop()

	s = r.start()
	r.cache.away.Store(false)
	require.NoError(t, s.Revoke(t.Context(), machineID, 1))
	r.holds(3, r.src)
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeUnknownMachine, refusal.Code)
	require.NoError(t, s.Revoke(t.Context(), machineID, 1))
	s.stop()
	s = r.start()
	_, err := s.Status(machineID)
	require.ErrorIs(t, err, replica.ErrNotFound)
	require.NoError(t, s.Grant(t.Context(), grant(1)))
	s.good()
}

func TestDamagedSpool(t *testing.T) {
	for name, damage := range map[string]func(path string, b []byte) error{
		"end lost":     func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)-3], 0o600) },
		"empty":        func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"data changed": func(path string, b []byte) error { b[len(b)/2] ^= 1; return os.WriteFile(path, b, 0o600) },
		"gone":         func(path string, _ []byte) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.granted()
			a := s.connect()
			a.base(r.src)
			r.cache.away.Store(true)
			a.delta(r.src.change(0, 3, r.noise(64<<10)))
			a.delta(r.src.change(0, 5, r.noise(4096)))
			s.stop()
			r.cache.away.Store(false)
			files, err := filepath.Glob(filepath.Join(r.dir, "state", "spool", machineID.String(), "*.cs"))
			require.NoError(t, err)
			require.Len(t, files, 2)
			b, err := os.ReadFile(files[0])
			require.NoError(t, err)
			require.NoError(t, damage(files[0], b))

			s = r.start()
			require.Eventually(t, func() bool { return s.status().Broken != nil }, patience, often)
			require.Equal(t, "DRV-3002", s.status().Broken.Code)
			require.Equal(t, ident.Seq(2), r.state().Position.Seq)
			_, refusal := s.hello(agentPeer, r.greeting())
			require.Equal(t, wire.CodeResyncRequired, refusal.Code)
			require.NoError(t, s.Grant(t.Context(), grant(1)))

			require.NoError(t, s.StartBase(t.Context(), machineID, 1, "damage", true))
			c := s.connect()
			cut := crash()
			cut.Complete = true
			require.Nil(t, c.set(changeset.Base, cut, r.src.whole(0)...))
			c.await(wire.Applied, 3)
			r.holds(3, r.src)
			s.good()
		})
	}
}

// A grant that meets a revocation wins or loses, but the machine is there once.
func TestGrantMeetsRevoke(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	s.connect().base(r.src)
	for range 10 {
		done := make(chan error, 16)
		for range cap(done) / 2 {
			go func() { done <- s.Revoke(context.Background(), machineID, 1) }()
			go func() { done <- s.Grant(context.Background(), grant(1)) }()
		}
		for range cap(done) {
			require.NoError(t, <-done)
		}
		_, err := s.Status(machineID)
		_, noFile := os.Stat(filepath.Join(r.dir, "state", "grants", machineID.String()+".json"))
		require.Equal(t, err == nil, noFile == nil, "what is granted is granted on disk too")
	}
	require.NoError(t, s.Grant(t.Context(), grant(1)))
	s.good()
}

// After its stop a server touches no replica: another process may have them.
func TestStoppedServer(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	s.stop()
	require.Error(t, s.Grant(t.Context(), grant(1)))
	require.Error(t, s.StartBase(t.Context(), machineID, 1, "", false))
	require.Error(t, s.Revoke(t.Context(), machineID, 1))
	s = r.start()
	s.connect()
}

// What is frozen for a final cut stays so, whatever else is asked for meanwhile: the
// agent has one order, and its answer is everybody's.
func TestFinalCutIsAskedForOnce(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	first := s.cut(true)
	a.awaitOrder(wire.OrderFinalCut, 1)
	second, plain := s.cut(true), s.cut(false)
	time.Sleep(20 * often)
	require.Nil(t, a.set(changeset.Delta, final()))
	for _, c := range []*cutting{first, second} {
		<-c.done
		require.NoError(t, c.err)
		require.Equal(t, a.tail, c.point.Position)
	}
	require.Equal(t, 1, a.ordered(wire.OrderFinalCut))
	require.Zero(t, a.ordered(wire.OrderCut))
	require.NoError(t, s.Release(t.Context(), machineID, 1))
	a.delta(r.src.change(0, 1, r.noise(4096)))
	<-plain.done
	require.NoError(t, plain.err)
	require.Equal(t, a.tail, plain.point.Position, "a cut that is not final is one after the release")
}
