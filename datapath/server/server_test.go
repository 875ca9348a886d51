package server_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/vfs/crashfs"
	"drover/datapath/wire"
)

func TestBaseCopyThenDelta(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	require.Equal(t, stream.PhaseWaiting, s.status().Phase)
	a := s.connect()
	require.Equal(t, wire.ModeCopy, a.welcome.Mode)
	require.True(t, a.welcome.Position.IsZero())
	require.Equal(t, uint32(1), a.welcome.Generation)
	require.Equal(t, "key-1", a.welcome.KeyID)
	require.Equal(t, stream.PhaseBase, s.status().Phase)
	a.say(&wire.Progress{Disk: 0, Done: 4096, Total: disks[0].Size})
	a.base(r.src)
	a.await(wire.Stored, 2)
	first := r.src.clone()
	r.holds(2, first)

	a.delta(r.src.change(0, 3, r.noise(2*4096)), r.src.zero(1, 30, 10*4096+512))
	a.delta(r.src.change(1, 40, r.noise(512)), r.src.change(0, 4, r.noise(4096)))
	a.await(wire.Applied, 4)
	r.holds(2, first)
	r.holds(4, r.src)
	require.Len(t, r.state().Points, 3)

	st := s.status()
	require.Equal(t, stream.PhaseDelta, st.Phase)
	require.True(t, st.Complete)
	require.True(t, st.Connected)
	require.Equal(t, []ident.Position{a.tail, a.tail, a.tail}, []ident.Position{st.Spooled, st.Stored, st.Applied})
	require.Equal(t, ident.Seq(4), st.LastPoint)
	require.Equal(t, 3, st.Points)
	require.Equal(t, disks[0].ID, st.Disks[0].ID)
	require.Equal(t, int64(4096), st.Disks[0].Done)
	base := st.Disks[0].Bytes + st.Disks[1].Bytes
	require.Equal(t, base, st.BaseDataBytes)
	require.Equal(t, base+3*4096+512, st.DataBytes)
	require.Greater(t, st.WireBytes, st.DataBytes)
	require.Positive(t, st.CacheBytes)
	require.False(t, st.BaseFinished.Before(st.BaseStarted))
	require.False(t, st.StoredTime.IsZero())
	require.Equal(t, crash().Freeze, st.FreezeLast)
	require.Eventually(t, func() bool { return s.status().BacklogSets == 0 }, patience, often)
}

func TestReconnectGoesOn(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	a.say(a.begin(2), a.data(r.src.clone().change(0, 1, r.noise(4096)))) // never ended: it does not exist
	a.close()
	b := s.connect()
	require.Equal(t, wire.ModeDelta, b.welcome.Mode)
	require.Equal(t, a.tail, b.welcome.Position)
	b.delta(r.src.change(0, 9, r.noise(4096)))
	b.await(wire.Applied, 3)
	r.holds(3, r.src)
}

func TestBaseBrokenOffIsCompared(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	require.Nil(t, a.set(1, crash(), r.src.whole(0)...))
	a.await(wire.Applied, 1)
	require.Empty(t, r.state().Points, "half a base copy is no recovery point")
	a.close()
	b := s.connect()
	require.Equal(t, wire.ModeCompare, b.welcome.Mode)
	require.Equal(t, a.tail, b.welcome.Position)
}

// A part of the base that is acknowledged and not applied yet may hold anything where the
// source has zeros by now.
func TestSetOnItsWayIsNoEmptyReplica(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	r.cache.away.Store(true)
	a := s.connect()
	require.Equal(t, wire.ModeCopy, a.welcome.Mode)
	require.Nil(t, a.set(changeset.Base, changeset.Cut{SourceTime: time.Now()}, r.src.whole(0)...))
	a.close()
	require.True(t, r.state().Empty, "nothing is applied")
	require.Equal(t, wire.ModeCompare, s.connect().welcome.Mode)
	r.cache.away.Store(false)
}

func TestRestart(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	r.cache.away.Store(true)
	a.delta(r.src.change(0, 9, r.noise(4096)))
	a.delta(r.src.change(1, 9, r.noise(4096)))
	require.Equal(t, 2, s.status().BacklogSets)
	s.stop()
	require.Equal(t, wire.CodeStopped, a.ended().Code)
	require.Equal(t, ident.Seq(2), r.state().Position.Seq)

	r.cache.away.Store(false)
	s = r.start()
	b := s.connect()
	require.Equal(t, wire.ModeDelta, b.welcome.Mode)
	require.Equal(t, a.tail, b.welcome.Position)
	b.await(wire.Stored, 4) // told of what was acknowledged before
	b.await(wire.Applied, 4)
	r.holds(4, r.src)
	b.delta(r.src.zero(0, 200, 4096))
	b.await(wire.Applied, 5)
	r.holds(5, r.src)
	require.Len(t, r.state().Points, 4)
	require.Eventually(t, func() bool { return s.status().BacklogSets == 0 }, patience, often)
}

func TestRestartWithoutAnAgentAppliesTheSpool(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	r.cache.away.Store(true)
	a.delta(r.src.change(0, 9, r.noise(4096)))
	s.stop()
	r.cache.away.Store(false)
	s = r.start()
	require.Eventually(t, func() bool { return s.status().LastPoint == 3 }, patience, often)
	r.holds(3, r.src)
}

func TestNewSessionReplacesTheOld(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	b := s.connect()
	require.Equal(t, wire.CodeStopped, a.ended().Code)
	require.True(t, s.status().Connected)
	b.delta(r.src.change(0, 9, r.noise(4096)))
	b.await(wire.Applied, 3)
}

func TestStopWithoutHello(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	conn, err := wire.Dial(t.Context(), nil, s.addr, r.ca.Client(agentPeer, serverPeer))
	require.NoError(t, err)
	s.stop() // an agent that says nothing does not hold it up
	require.NoError(t, conn.Close())
}

func TestSpoolFull(t *testing.T) {
	r := newRig(t)
	s := r.granted(limitSpool(100 << 10))
	a := s.connect()
	refusal := a.set(1, crash(), r.src.whole(0)...) // 512 KiB of noise
	require.NotNil(t, refusal)
	require.Equal(t, wire.CodeFull, refusal.Code)
	require.Positive(t, refusal.RetryAfter)

	b := s.connect() // what was not ended left no trace
	require.Equal(t, wire.ModeCopy, b.welcome.Mode)
	r.cache.away.Store(true)
	require.Nil(t, b.set(1, crash(), write{disk: 0, block: 8, content: r.noise(60 << 10)}))
	refusal = b.set(1, crash(), write{disk: 0, block: 0, content: r.noise(4096)})
	require.NotNil(t, refusal)
	require.Equal(t, wire.CodeFull, refusal.Code)

	r.cache.away.Store(false) // now there will be room
	require.Eventually(t, func() bool { return s.status().Applied.Seq == 1 && s.status().BacklogSets == 0 }, patience, often)
	c := s.connect()
	require.Equal(t, wire.ModeCompare, c.welcome.Mode)
	require.Nil(t, c.set(1, crash(), write{disk: 0, block: 0, content: r.noise(4096)}))
	c.await(wire.Applied, 2)
}

// TestNothingIsAcknowledgedBeforeItIsDurable: whatever call of a commit fails, the agent
// is not told that the server has the set, and a restart does not have it.
func TestNothingIsAcknowledgedBeforeItIsDurable(t *testing.T) {
	for _, c := range []struct {
		name string
		rule crashfs.Rule
	}{
		{"a write", crashfs.Rule{Op: crashfs.Write, Name: "*.tmp", Err: syscall.EIO}},
		{"half a write", crashfs.Rule{Op: crashfs.Write, Name: "*.tmp", Err: syscall.EIO, Short: true}},
		{"the sync", crashfs.Rule{Op: crashfs.Sync, Name: "*.tmp", Err: syscall.EIO}},
		{"the name", crashfs.Rule{Op: crashfs.Name, Name: "*.cs", Err: syscall.EIO}},
		{"the name's sync", crashfs.Rule{Op: crashfs.SyncDir, Err: syscall.EIO}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			fs := crashfs.New()
			on := func(c *server.Config) { c.FS, c.StateDir = fs, "/state" }
			require.NoError(t, durable.MkdirAll(fs, "/state", 0o700))
			s := r.granted(on)
			a := s.connect()
			a.base(r.src)
			was := a.tail
			c.rule.Times = 1
			fs.Inject(c.rule)
			refusal := a.set(changeset.Delta, crash(), r.src.change(0, 1, r.noise(4096)))
			require.NotNil(t, refusal)
			require.Equal(t, wire.CodeInternal, refusal.Code)
			_, acked := a.acked(wire.Spooled, was.Seq+1)
			require.False(t, acked)
			s.stop()
			fs = fs.Crash(1) // and with the power everything that was not synced

			s = r.start(on)
			b := s.connect()
			if c.rule.Op == crashfs.SyncDir { // all was done but the last step
				require.LessOrEqual(t, b.welcome.Position.Seq, was.Seq+1)
			} else {
				require.Equal(t, was, b.welcome.Position)
			}
			b.delta(r.src.change(0, 1, r.noise(4096)))
			b.await(wire.Applied, b.tail.Seq)
			r.holds(b.tail.Seq, r.src)
		})
	}
}

func TestUnknownMachine(t *testing.T) {
	r := newRig(t)
	s := r.start()
	_, err := s.Status(machineID)
	require.ErrorIs(t, err, replica.ErrNotFound)
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeUnknownMachine, refusal.Code)
	require.NoError(t, s.Revoke(t.Context(), machineID, 7), "absent is revoked")
	require.ErrorIs(t, s.StartBase(t.Context(), machineID, 1, "", false), replica.ErrNotFound)
}

// Case 33 of the faults, on the agent's side: its clock jumps between two Pings. A cut
// is never from the future, and points stay in their order.
func TestCutFromTheFuture(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	for _, by := range []time.Duration{24 * time.Hour, 200 * 365 * 24 * time.Hour, -time.Hour, 0} {
		cut := crash()
		cut.SourceTime = cut.SourceTime.Add(by)
		require.Nil(t, a.set(changeset.Delta, cut, r.src.change(0, 1, r.noise(4096))))
		a.await(wire.Applied, a.tail.Seq)
		points := r.state().Points
		p := points[len(points)-1]
		require.Equal(t, a.tail.Seq, p.ID, "points are in the order of their numbers")
		require.False(t, p.Time.After(time.Now()), "%s ahead: the point is of %s", by, p.Time)
		require.Equal(t, by > 0, p.Note != "", p.Note)
		require.False(t, s.status().StoredTime.After(time.Now()))
	}
	cut := crash()
	cut.ClockOffset = 1<<63 - 1
	require.Nil(t, a.set(changeset.Delta, cut, r.src.change(0, 1, r.noise(4096))))
	a.await(wire.Applied, a.tail.Seq)
	points := r.state().Points
	require.False(t, points[len(points)-1].Time.After(time.Now()))
}

// A source whose clock is ahead of the server's, and says so, has its points and its lag
// by the server's clock.
func TestClockThatIsKnownToBeAhead(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	cut := crash()
	now := cut.SourceTime
	cut.SourceTime, cut.ClockOffset = now.Add(5*time.Hour), -5*time.Hour-time.Minute
	require.Nil(t, a.set(changeset.Delta, cut, r.src.change(0, 1, r.noise(4096))))
	a.await(wire.Applied, a.tail.Seq)
	points := r.state().Points
	require.WithinDuration(t, now.Add(-time.Minute), points[len(points)-1].Time, time.Millisecond)
	require.WithinDuration(t, now.Add(-time.Minute), s.status().StoredTime, time.Millisecond)
	require.Empty(t, points[len(points)-1].Note)
}
