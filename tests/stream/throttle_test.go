package stream

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/datapath/throttle"
	"drover/tests/rig"
)

// noise fills a disk with what cannot be compressed.
func noise(r *rig.Rig, disk int) {
	r.T.Helper()
	d := r.Disks[disk]
	b := make([]byte, d.Size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(r.T.Name() + d.ID.String()))).Read(b)
	require.NoError(r.T, os.WriteFile(r.Path(d.BackingUUID), b, 0o600))
}

// TestThrottleOfAMachine: the policy's limit holds the agent back, and another
// policy counts at once, in the running session.
func TestThrottleOfAMachine(t *testing.T) {
	const size, limit = 12 << 20, 2 << 20
	r := rig.New(t, size)
	noise(r, 0)
	r.Throttle = []throttle.Rule{{Limit: limit}}
	r.StartServer()
	r.Grant(1, 100*time.Millisecond)
	r.StartAgent(1)
	begin := r.Await("data", func(st pipe.Status) bool { return st.WireBytes > 0 })
	from := time.Now()
	time.Sleep(2 * time.Second)
	st, took := r.Status(), time.Since(from).Seconds()
	// Status counts whole extents, of up to 1 MiB.
	require.InDelta(t, limit*took, st.WireBytes-begin.WireBytes, 1.3*(1<<20))
	require.False(t, st.Complete)

	r.Throttle = nil
	r.Grant(1, 100*time.Millisecond)
	st = r.Await("complete", complete)
	require.Less(t, time.Since(from), 5*time.Second, "at the old limit it takes 6 s")
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
}

// TestThrottleIsSharedEqually: machines with one disk or many, under one limit of
// the server.
func TestThrottleIsSharedEqually(t *testing.T) {
	const size, limit, lasts = 48 << 20, 12 << 20, 4 * time.Second
	first := rig.New(t, size)
	s, err := throttle.Compile([]throttle.Rule{{Limit: limit}})
	require.NoError(t, err)
	first.Configure = func(c *server.Config) { c.Throttle = s }
	first.StartServer()
	machines := []*rig.Rig{first}
	for i, disks := range []int64{2, 6} {
		sizes := make([]int64, disks)
		for j := range sizes {
			sizes[j] = size / disks
		}
		machines = append(machines, first.Another(fmt.Sprint("other ", i), sizes...))
	}
	for _, m := range machines {
		for i := range m.Disks {
			noise(m, i)
		}
		m.Grant(1, time.Second)
		m.StartAgent(1)
	}
	before := make([]int64, len(machines))
	for i, m := range machines {
		before[i] = m.Await("data", func(st pipe.Status) bool { return st.WireBytes > 1<<20 }).WireBytes
	}
	time.Sleep(lasts)
	share := limit * lasts.Seconds() / float64(len(machines))
	for i, m := range machines {
		// Status counts whole extents, of up to 1 MiB.
		require.InDelta(t, share, m.Status().WireBytes-before[i], 0.1*share+1.5*(1<<20), "machine %d", i)
	}
}

// TestFreezeIsShortOnAThrottledLine: many changes take seconds to send, more come
// meanwhile, and yet little is left for the time when the machine is frozen.
func TestFreezeIsShortOnAThrottledLine(t *testing.T) {
	const size, limit, patience = 64 << 20, 12 << 20, 700 * time.Millisecond
	r := rig.New(t, size)
	freeze, freezes := hook(r, "freeze", "")
	thaw, _ := hook(r, "thaw", "")
	r.Hooks.Pre, r.Hooks.Post, r.Hooks.Timeout = []string{freeze}, []string{thaw}, patience
	r.Throttle = []throttle.Rule{{Limit: limit}}
	r.StartServer()
	r.Grant(1, time.Hour) // cuts are made when they are asked for
	r.StartAgent(1)
	r.Await("complete", complete)
	r.AfterNow()
	noise(r, 0) // 5 s on this line
	began := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		data := make([]byte, 16*rig.Block)
		for at := int64(0); ; at = (at + 16) % (size / rig.Block) { // 6 MiB/s
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			_, _ = rand.NewChaCha8([32]byte{byte(at), byte(at >> 8)}).Read(data)
			r.Write(0, at, data)
		}
	}()
	defer func() { close(stop); <-stopped }()
	p := r.AfterNow()
	require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
	points := map[ident.Seq]bool{}
	for _, q := range r.Points() {
		points[q.ID] = true
	}
	for _, call := range calls(r, freezes) {
		seq, err := strconv.ParseUint(strings.Fields(call)[1], 10, 64)
		require.NoError(t, err)
		require.True(t, points[ident.Seq(seq)] || ident.Seq(seq) > p.ID, "the freeze for set %d was in vain", seq)
	}
	require.Less(t, time.Since(began), 25*time.Second)
	require.Greater(t, time.Since(began), 2*time.Second, "the line was throttled")
}
