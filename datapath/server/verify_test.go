package server_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/attest"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// verifying is a comparison that was asked for.
type verifying struct {
	id     uint64
	signed stream.SignedRecord
	err    chan error
	cancel context.CancelFunc
}

// verify asks for a comparison and waits until the agent is told.
func (r *running) verify(a *agent, order stream.VerifyOrder) *verifying {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	v := &verifying{err: make(chan error, 1), cancel: cancel}
	before := a.told()
	go func() {
		var err error
		v.signed, err = r.Verify(ctx, machineID, 1, order)
		v.err <- err
	}()
	r.t.Cleanup(cancel)
	require.Eventually(r.t, func() bool { v.id = a.told(); return v.id != 0 && v.id != before }, patience, often)
	return v
}

func (v *verifying) ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-v.err:
		return err
	case <-time.After(patience):
		require.FailNow(t, "the comparison goes on")
	}
	return nil
}

// told is the comparison that the agent was told of last.
func (a *agent) told() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.verifies
}

// ask sends a query and gives its answer; nil when there is none soon.
func (a *agent) ask(q *wire.VerifyQuery, limit time.Duration) []uint64 {
	a.t.Helper()
	a.say(q)
	select {
	case s := <-a.compared:
		require.Equal(a.t, q.ID, s.ID)
		return s.Sums.Sums
	case <-time.After(limit):
		return nil
	}
}

// cuts answers orders for cuts until it is stopped.
func (a *agent) cuts() (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		answered := 0
		for {
			if n := a.ordered(wire.OrderCut); n > answered {
				answered = n
				a.set(changeset.Delta, crash())
			}
			select {
			case <-end:
				return
			case <-time.After(often):
			}
		}
	}()
	return func() { close(end); <-done }
}

// level2 are the queries that cover all disks.
func (a *agent) level2(id uint64) (out []*wire.VerifyQuery) {
	for i, d := range disks {
		out = append(out, &wire.VerifyQuery{ID: id, Disk: i, Level: 2, Count: int(checksum.LevelLen(checksum.Blocks(d.Size), 2))})
	}
	return out
}

func protectedMachine(t *testing.T, change ...func(*server.Config)) (*running, *agent) {
	t.Helper()
	r := newRig(t).granted(change...)
	a := r.connect()
	a.base(r.src)
	return r, a
}

// honest compares as it must be done, and checks the record.
func (r *running) honest(a *agent, deep bool) {
	r.t.Helper()
	v := r.verify(a, stream.VerifyOrder{Deep: deep})
	for i, q := range a.level2(v.id) {
		want := make([]uint64, q.Count)
		require.NoError(r.t, checksum.Level(checksum.Memory(sumsOf(a.welcome.Disks[i].Seed, r.src.disks[i])), 2, 0, want))
		require.Equal(r.t, want, a.ask(q, patience))
	}
	stop := a.cuts()
	a.say(&wire.VerifyResult{ID: v.id, Disks: make([]wire.Compared, len(disks))})
	require.NoError(r.t, v.ends(r.t))
	stop()
	record, _, err := attest.Check(v.signed, r.ca.Pool)
	require.NoError(r.t, err)
	require.Equal(r.t, stream.VerdictEqual, record.Verdict)
	require.Equal(r.t, a.tail.Seq, record.Point)
	require.Eventually(r.t, func() bool {
		for _, p := range r.state().Points {
			if len(p.Holds) > 0 {
				return false
			}
		}
		return true
	}, patience, often, "nothing is held any more")
}

// TestVerifyNonsense: whatever an agent asks or says, the comparison ends with a reason,
// the session goes on, and the next comparison is as good as any.
func TestVerifyNonsense(t *testing.T) {
	r, a := protectedMachine(t)
	whole := func(id uint64) {
		for _, q := range a.level2(id) {
			require.NotNil(t, a.ask(q, patience))
		}
	}
	result := func(id uint64, of ...wire.Compared) *wire.VerifyResult { return &wire.VerifyResult{ID: id, Disks: of} }
	for what, c := range map[string]struct {
		do   func(id uint64)
		want string
	}{
		"another disk":     {func(id uint64) { a.say(&wire.VerifyQuery{ID: id, Disk: 2, Count: 1}) }, "asked for disk 2 of 2"},
		"past the end":     {func(id uint64) { a.say(&wire.VerifyQuery{ID: id, First: 250, Count: 8}) }, "the disk has 256 blocks"},
		"far past the end": {func(id uint64) { a.say(&wire.VerifyQuery{ID: id, First: 1 << 34, Level: 0, Count: 8192}) }, "the disk has 256 blocks"},
		"a part left out":  {func(id uint64) { a.say(&wire.VerifyQuery{ID: id, First: 3, Level: 1, Count: 1}) }, "left out blocks 0 to 48 of disk 0"},
		"nothing compared": {func(id uint64) { a.say(result(id, wire.Compared{}, wire.Compared{})) }, "compared 0 blocks of 256 of disk 0"},
		"one disk compared": {func(id uint64) {
			a.ask(a.level2(id)[0], patience)
			a.say(result(id, wire.Compared{}, wire.Compared{}))
		}, "compared 0 blocks of 41 of disk 1"},
		"too few disks": {func(id uint64) { whole(id); a.say(result(id, wire.Compared{})) }, "compared 1 disks of 2"},
		"too many bytes": {func(id uint64) {
			whole(id)
			a.say(result(id, wire.Compared{}, wire.Compared{Differed: 42 * 4096}))
		}, "more bytes of disk 1"},
		"too much busy": {func(id uint64) { whole(id); a.say(result(id, wire.Compared{Busy: 1 << 40}, wire.Compared{})) }, "more bytes of disk 0"},
		"places past the end": {func(id uint64) {
			whole(id)
			a.say(result(id, wire.Compared{}, wire.Compared{Differed: 4096, First: []int64{41 * 4096}}))
		}, "past the end of disk 1"},
		"failed": {func(id uint64) { a.say(&wire.VerifyResult{ID: id, Failed: "EIO", Disks: make([]wire.Compared, 2)}) }, "the agent could not compare: EIO"},
	} {
		t.Run(what, func(t *testing.T) {
			v := r.verify(a, stream.VerifyOrder{Deep: true})
			c.do(v.id)
			require.ErrorContains(t, v.ends(t), c.want)
			require.Nil(t, a.ask(&wire.VerifyQuery{ID: v.id, Count: 1}, 20*time.Millisecond), "it is over")
		})
	}
	r.honest(a, true)
	r.honest(a, false)
	docs, err := r.store.Documents(t.Context())
	require.NoError(t, err)
	signed, err := attest.Parse(docs[attest.Document(machineID)])
	require.NoError(t, err)
	record, _, err := attest.Check(signed, r.ca.Pool)
	require.NoError(t, err)
	require.Equal(t, record.Short(), *r.status().Verified)
	r.stop()
	again := r.start()
	require.Equal(t, record.Short(), *again.status().Verified, "also after a restart")
}

// TestVerifyOfOthers: what nobody has asked for is not answered and does nothing.
func TestVerifyOfOthers(t *testing.T) {
	r, a := protectedMachine(t)
	a.say(&wire.VerifyResult{ID: 77, Disks: make([]wire.Compared, 2)})
	require.Nil(t, a.ask(&wire.VerifyQuery{ID: 77, Settle: true, Count: 1}, 20*time.Millisecond))
	v := r.verify(a, stream.VerifyOrder{})
	a.say(&wire.VerifyResult{ID: v.id + 2, Disks: make([]wire.Compared, 2)})
	require.Nil(t, a.ask(&wire.VerifyQuery{ID: v.id + 2, Count: 1}, 20*time.Millisecond))
	require.NotNil(t, a.ask(&wire.VerifyQuery{ID: v.id, Count: 1}, patience))
	v.cancel()
	require.ErrorIs(t, v.ends(t), context.Canceled)
	r.honest(a, false)
	for _, rate := range []int64{-1, 1, stream.MinVerifyRate - 1} {
		_, err := r.Verify(t.Context(), machineID, 1, stream.VerifyOrder{Rate: rate})
		require.ErrorContains(t, err, "a rate of")
	}
	_, err := r.Verify(t.Context(), machineID, 2, stream.VerifyOrder{})
	require.ErrorContains(t, err, "epoch")
}

// TestVerifyFlood: questions that do not wait for their answers end the session, not the
// server, and the comparison goes on in the next one.
func TestVerifyFlood(t *testing.T) {
	r, a := protectedMachine(t)
	v := r.verify(a, stream.VerifyOrder{})
	for range 100 { // the first of them waits for a cut that never comes
		a.say(&wire.VerifyQuery{ID: v.id, Settle: true, Count: 1})
	}
	require.Equal(t, wire.CodeBadFrame, a.ended().Code)
	b := r.connect()
	require.Eventually(t, func() bool { return b.told() == v.id }, patience, often, "it is told again")
	for _, q := range b.level2(v.id) {
		require.NotNil(t, b.ask(q, patience))
	}
	b.tail = b.welcome.Position
	stop := b.cuts()
	b.say(&wire.VerifyResult{ID: v.id, Disks: make([]wire.Compared, len(disks))})
	require.NoError(t, v.ends(t))
	stop()
}

// TestVerifySessionEnds: nothing of a comparison keeps a session, the server or a hold.
func TestVerifySessionEnds(t *testing.T) {
	r, a := protectedMachine(t)
	v := r.verify(a, stream.VerifyOrder{})
	require.NotNil(t, a.ask(a.level2(v.id)[0], patience))
	require.NotEmpty(t, r.state().Points[0].Holds)
	a.say(&wire.VerifyQuery{ID: v.id, Settle: true, Count: 1}) // waits for a cut
	require.Eventually(t, func() bool { return r.status().Verify.Waits != "the agent, which reads its disks" }, patience, often)
	require.Contains(t, r.status().Verify.Waits, "a recovery point; ")
	begun := time.Now()
	a.close()
	b := r.connect()
	require.Less(t, time.Since(begun), patience/2)
	require.Eventually(t, func() bool { return b.told() == v.id }, patience, often)
	require.Empty(t, r.state().Points[0].Holds)
	b.say(&wire.VerifyQuery{ID: v.id, Settle: true, Count: 1})
	r.stop()
	require.ErrorContains(t, v.ends(t), "stopping")
}

// TestVerifyIsMarked: a replica that cannot be mended is marked for resync by the server
// itself, and who asked has the record.
func TestVerifyIsMarked(t *testing.T) {
	for what, result := range map[string]*wire.VerifyResult{
		"not mended": {Disks: []wire.Compared{{Differed: 8192, Mended: 4096, First: []int64{0}}, {}}},
		"too much":   {TooMuch: true, Disks: []wire.Compared{{Differed: 8192, First: []int64{0}}, {}}},
	} {
		t.Run(what, func(t *testing.T) {
			r, a := protectedMachine(t)
			v := r.verify(a, stream.VerifyOrder{})
			for _, q := range a.level2(v.id) {
				require.NotNil(t, a.ask(q, patience))
			}
			stop := a.cuts()
			result.ID = v.id
			a.say(result)
			require.NoError(t, v.ends(t))
			stop()
			record, _, err := attest.Check(v.signed, r.ca.Pool)
			require.NoError(t, err)
			require.Equal(t, stream.VerdictDifferent, record.Verdict)
			require.Equal(t, wire.CodeResyncRequired, a.ended().Code)
			require.Eventually(t, func() bool { return r.status().Broken != nil }, patience, often)
			require.Equal(t, "DRV-3401", r.status().Broken.Code)
			_, err = r.Verify(t.Context(), machineID, 1, stream.VerifyOrder{})
			require.ErrorContains(t, err, "marked for resync")
		})
	}
}

// TestVerifyComesNoFurther: an agent that says nothing, or is not there, does not hold
// a comparison for ever.
func TestVerifyComesNoFurther(t *testing.T) {
	r, a := protectedMachine(t, func(c *server.Config) { c.VerifyPatience = 300 * time.Millisecond })
	require.ErrorContains(t, r.verify(a, stream.VerifyOrder{}).ends(t), "no further for 300ms: it waits for the agent, which reads its disks")
	v := r.verify(a, stream.VerifyOrder{})
	a.say(&wire.VerifyQuery{ID: v.id, Settle: true, Count: 1})
	require.ErrorContains(t, v.ends(t), "waits for a recovery point; ")
	a.close()
	require.Eventually(t, func() bool { return !r.status().Connected }, patience, often)
	_, err := r.Verify(t.Context(), machineID, 1, stream.VerifyOrder{})
	require.ErrorContains(t, err, "waits for the agent, which is not connected")
	require.Nil(t, r.status().Verify)
}

// TestVerifyAndResync: a comparison is of one base copy.
func TestVerifyAndResync(t *testing.T) {
	r, a := protectedMachine(t)
	v := r.verify(a, stream.VerifyOrder{})
	require.NotNil(t, a.ask(a.level2(v.id)[0], patience))
	require.NoError(t, r.StartBase(t.Context(), machineID, 1, "test", false))
	require.ErrorContains(t, v.ends(t), "a resync began")
	require.Nil(t, r.status().Verify)
	_, err := r.Verify(t.Context(), machineID, 1, stream.VerifyOrder{})
	require.ErrorContains(t, err, "not complete")
}

// TestVerifyAndRevoke: the owner is another one.
func TestVerifyAndRevoke(t *testing.T) {
	r, a := protectedMachine(t)
	v := r.verify(a, stream.VerifyOrder{})
	require.NoError(t, r.Revoke(t.Context(), machineID, 1))
	require.ErrorContains(t, v.ends(t), "was closed here")
}
