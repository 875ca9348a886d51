package server_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/server"
	"drover/datapath/stream"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
)

// good checks that a refusal has done no harm: a session is served, a set applied.
func (r *running) good() {
	r.t.Helper()
	a := r.connect()
	a.delta(r.src.change(0, int64(a.tail.Seq)%100, r.noise(4096)))
	a.await(wire.Applied, a.tail.Seq)
	r.holds(a.tail.Seq, r.src)
}

// TestReleasesOfTheAgent: a session is had by an agent of the server's release and of the
// four before it, and by builds of none; others are told what to do, and none is harmed.
func TestReleasesOfTheAgent(t *testing.T) {
	r := newRig(t)
	s := r.granted(func(c *server.Config) { c.Version = "v1.6.0" })
	s.connect().base(r.src)
	for version, says := range map[string]string{
		"1.6.3": "", "1.6.0-2-gabcdef0": "", "v1.2.0": "", "": "", "unknown": "", "8eb91e5-dirty": "",
		"1.1.9": "upgrade the agent", "0.4.0": "upgrade the agent", "1.7.0": "upgrade the servers first", "2.0.0": "upgrade the servers first",
	} {
		h := r.greeting()
		h.AgentVersion = version
		_, refusal := s.hello(agentPeer, h)
		if says == "" {
			require.Nil(t, refusal, version)
			continue
		}
		require.NotNil(t, refusal, version)
		require.Equal(t, wire.CodeVersion, refusal.Code, version)
		require.Contains(t, refusal.Detail, "DRV-2105", version)
		require.Contains(t, refusal.Detail, says, version)
		require.Equal(t, time.Minute, refusal.RetryAfter, version)
	}
	s.good()
}

func TestHelloRefused(t *testing.T) {
	r := newRig(t)
	other := ident.NewMachineID("vc", "other")
	var denied atomic.Bool
	s := r.granted(func(c *server.Config) {
		c.Denied = func(p ident.Peer) bool { return p == agentPeer && denied.Load() }
	})
	s.connect().base(r.src)
	for _, c := range []struct {
		name string
		peer ident.Peer
		spy  func(h *wire.Hello)
		want wire.Code
	}{
		{"another machine's certificate", wiretest.Agent(other), func(*wire.Hello) {}, wire.CodeIdentity},
		{"a server's certificate", ident.Peer{Role: ident.RoleProcessServer, Name: machineID.String()}, func(*wire.Hello) {}, wire.CodeIdentity},
		{"another machine", agentPeer, func(h *wire.Hello) { h.Machine = other }, wire.CodeIdentity},
		{"a machine without a grant", wiretest.Agent(other), func(h *wire.Hello) { h.Machine = other }, wire.CodeUnknownMachine},
		{"a newer epoch", agentPeer, func(h *wire.Hello) { h.Epoch = 2 }, wire.CodeEpoch},
		{"other hardware", agentPeer, func(h *wire.Hello) { h.Instance = "a-clone" }, wire.CodeIdentity},
		{"a foreign disk", agentPeer, func(h *wire.Hello) { h.Disks[0].ID = ident.NewDiskID(other, "a") }, wire.CodeDisks},
		{"a disk more", agentPeer, func(h *wire.Hello) {
			h.Disks = append(h.Disks, changeset.Disk{ID: ident.NewDiskID(other, "a"), Size: 4096})
		}, wire.CodeDisks},
		{"a disk twice", agentPeer, func(h *wire.Hello) { h.Disks[1] = h.Disks[0] }, wire.CodeDisks},
		{"a disk less", agentPeer, func(h *wire.Hello) { h.Disks = h.Disks[:1] }, wire.CodeDisks},
		{"a disk that has grown", agentPeer, func(h *wire.Hello) { h.Disks[1].Size += 4096 }, wire.CodeDisks},
		{"a revoked certificate", agentPeer, func(*wire.Hello) { denied.Store(true) }, wire.CodeIdentity},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := r.greeting()
			c.spy(h)
			_, refusal := s.hello(c.peer, h)
			require.NotNil(t, refusal)
			require.Equal(t, c.want, refusal.Code, refusal.Detail)
			denied.Store(false)
			s.good()
		})
	}
	h := r.greeting() // as it is, but for the order of the disks and the case of the uuid
	h.Disks[0], h.Disks[1] = h.Disks[1], h.Disks[0]
	h.Instance = "4210a1b2-0000-0000-0000-000000000001"
	_, refusal := s.hello(agentPeer, h)
	require.Nil(t, refusal)
}

func TestHelloOfABrokenMachine(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	a.base(r.src)
	b := stream.Broken{Code: "DRV-3999", Cause: "the operator says so"}
	require.NoError(t, s.MarkBroken(t.Context(), machineID, 1, b))
	require.Equal(t, wire.CodeResyncRequired, a.ended().Code)
	require.NoError(t, s.MarkBroken(t.Context(), machineID, 1, stream.Broken{Code: "DRV-1", Cause: "later"}))
	_, refusal := s.hello(agentPeer, r.greeting())
	require.Equal(t, wire.CodeResyncRequired, refusal.Code)
	require.Contains(t, refusal.Detail, b.Cause)
	require.Equal(t, stream.PhaseBroken, s.status().Phase)
	require.Equal(t, b.Code, s.status().Broken.Code, "the first reason stays")
	_, err := s.Cut(t.Context(), machineID, 1, false)
	require.Error(t, err)
}

// A bad message ends the session; the set it belongs to does not exist.
func TestMessageRefused(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	s.connect().base(r.src)
	block := func(n int) write { return write{disk: 0, block: 1, content: r.noise(n)} }
	for _, c := range []struct {
		name string
		want wire.Code
		say  func(a *agent) []wire.Message
	}{
		{"a set further on", wire.CodeGap, func(a *agent) []wire.Message {
			return []wire.Message{&wire.Begin{Seq: a.tail.Seq + 2, Prev: a.tail.Digest, Kind: changeset.Delta}}
		}},
		{"a set again", wire.CodeGap, func(a *agent) []wire.Message {
			return []wire.Message{&wire.Begin{Seq: a.tail.Seq, Prev: a.tail.Digest, Kind: changeset.Delta}}
		}},
		{"a set after another", wire.CodeGap, func(a *agent) []wire.Message {
			return []wire.Message{&wire.Begin{Seq: a.tail.Seq + 1, Prev: ident.Digest{1}, Kind: changeset.Delta}}
		}},
		{"a base set of a complete base", wire.CodeGap, func(a *agent) []wire.Message { return []wire.Message{a.begin(changeset.Base)} }},
		{"a set inside a set", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), a.begin(changeset.Delta)}
		}},
		{"too few extents", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), a.data(block(4096)), &wire.End{Seq: a.tail.Seq + 1, Extents: 2, Cut: crash()}}
		}},
		{"the end of another set", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), &wire.End{Seq: a.tail.Seq + 2, Cut: crash()}}
		}},
		{"an end alone", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{&wire.End{Seq: a.tail.Seq + 1, Cut: crash()}}
		}},
		{"a delta that completes a base", wire.CodeBadFrame, func(a *agent) []wire.Message {
			cut := crash()
			cut.Complete = true
			return []wire.Message{a.begin(changeset.Delta), &wire.End{Seq: a.tail.Seq + 1, Cut: cut}}
		}},
		{"a wrong checksum", wire.CodeBadFrame, func(a *agent) []wire.Message {
			d := a.data(block(2 * 4096)).(*wire.Data)
			d.Extents[0].Sums[1]++
			return []wire.Message{a.begin(changeset.Delta), d}
		}},
		{"data meant for another place", wire.CodeBadFrame, func(a *agent) []wire.Message {
			d := a.data(block(4096)).(*wire.Data)
			d.Extents[0].Offset += checksum.BlockSize
			return []wire.Message{a.begin(changeset.Delta), d}
		}},
		{"part of a block", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), a.data(block(512))}
		}},
		{"data past the disk's end", wire.CodeDisks, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), a.data(write{disk: 0, block: disks[0].Size / 4096, content: r.noise(4096)})}
		}},
		{"zeros past the disk's end", wire.CodeDisks, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), a.data(write{disk: 1, block: 40, zeros: 4096})}
		}},
		{"data of no disk", wire.CodeDisks, func(a *agent) []wire.Message {
			d := a.data(block(4096)).(*wire.Data)
			d.Disk, d.Extents[0].Disk = 2, 2
			return []wire.Message{a.begin(changeset.Delta), d}
		}},
		{"data outside a set", wire.CodeBadFrame, func(a *agent) []wire.Message { return []wire.Message{a.data(block(4096))} }},
		{"zeros outside a set", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.data(write{disk: 0, zeros: 4096})}
		}},
		{"a query inside a set", wire.CodeBadFrame, func(a *agent) []wire.Message {
			return []wire.Message{a.begin(changeset.Delta), &wire.SumsQuery{Count: 1}}
		}},
		{"a query past the disk's end", wire.CodeBadFrame, func(*agent) []wire.Message {
			return []wire.Message{&wire.SumsQuery{First: disks[0].Size / 4096, Count: 1}}
		}},
		{"progress of no disk", wire.CodeBadFrame, func(*agent) []wire.Message { return []wire.Message{&wire.Progress{Disk: 9}} }},
		{"another hello", wire.CodeBadFrame, func(*agent) []wire.Message { return []wire.Message{r.greeting()} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.connect()
			points := len(r.state().Points)
			a.say(c.say(a)...)
			a.say(&wire.Ping{Time: time.Now()}) // what waits in the buffer goes
			refusal := a.ended()
			require.Equal(t, c.want, refusal.Code, refusal.Detail)
			require.Len(t, r.state().Points, points)
			s.good()
		})
	}
}

func TestDeltaBeforeTheBaseIsComplete(t *testing.T) {
	r := newRig(t)
	s := r.granted()
	a := s.connect()
	refusal := a.set(changeset.Delta, crash(), write{disk: 0, block: 1, content: r.noise(4096)})
	require.NotNil(t, refusal)
	require.Equal(t, wire.CodeGap, refusal.Code)
	s.connect().base(r.src)
	s.good()
}
