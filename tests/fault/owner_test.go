package fault

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/status"
	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/tests/ports"
	"drover/tests/rig"
	"drover/worker/ca"
)

// TestCase36DiskWrittenWhileNoAgentRan: an old image was restored while the agent was off.
// The disks are compared once, what differs is sent, and nothing is resynchronised.
func TestCase36DiskWrittenWhileNoAgentRan(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour)
	for i := range int64(200) {
		s.Write(0, i, []byte(strings.Repeat(string(rune('a'+i%26)), rig.Block)))
	}
	old, err := os.ReadFile(s.Path("a"))
	require.NoError(t, err)
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	for _, at := range []int64{3, 77, 150} {
		s.Write(0, at, []byte(strings.Repeat("!", rig.Block)))
	}
	s.right()
	s.stopAgent()
	quiet(s.Rig)
	sent := s.Status().DataBytes

	require.NoError(t, os.WriteFile(s.Path("a"), old, 0o600))
	s.startAgent()
	s.right()
	require.Equal(t, int64(3*rig.Block), s.Status().DataBytes-sent, "what the old image has otherwise")
	require.Equal(t, uint32(1), s.Status().Generation, "no resync")
	require.Equal(t, 1, strings.Count(afterStop(s.log.String()), "the disks are compared with the replica"), "once")
}

// afterStop is what the last agent has logged.
func afterStop(log string) string { return log[strings.LastIndex(log, "agent runs"):] }

// TestFailedOverCopy: the same agent in the target, with the same disks under other names,
// is told where to stream, and does. The old one, which woke up and hears of nothing, is
// refused, and stands by when it hears.
func TestFailedOverCopy(t *testing.T) {
	t.Parallel()
	s := streaming(t, time.Hour)

	// The target's machine: a copy of the disk, with the agent and its identity on it.
	dir := t.TempDir()
	c := *s.config
	c.State, c.Socket, c.Instance = filepath.Join(dir, "state"), filepath.Join(s.state, "copy.sock"), "c10d0000-0042-3510-8054-b7c04f4e4d31"
	c.Disks = map[string]string{"cloud-a": filepath.Join(dir, "disk")}
	copied := &site{Rig: s.Rig, state: s.state, address: s.address, ca: s.ca, reg: s.reg, config: &c}
	require.NoError(t, os.CopyFS(c.State, os.DirFS(s.config.State)))
	b, err := os.ReadFile(s.Path("a"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(c.Disks["cloud-a"], b, 0o600))

	// The old side hears nothing of it while the new owner is made.
	s.stopControl()
	s.Copy = c.Instance
	s.Grant(2, cut)
	s.shows("a refusal", func(st status.Status) bool { return st.State == "refused" && strings.Contains(st.Detail, "epoch") })
	s.Write(0, 5, []byte(strings.Repeat("old", rig.Block/3+1)[:rig.Block])) // goes nowhere any more
	require.NoError(t, s.reg.SetAssignment(controlapi.Assignment{Action: controlapi.ActionReplicate, Machine: s.Machine, Epoch: 2, Instance: c.Instance,
		Server: rig.ServerPeer.Name, Role: rig.ServerPeer.Role, Address: s.Address,
		Disks: []controlapi.Disk{{ID: s.Disks[0].ID, BackingUUID: "cloud-a", Size: s.Disks[0].Size}}}))
	s.startControl()
	copied.startAgent()
	t.Cleanup(copied.stopAgent)
	copied.shows("streaming", inState("streaming"))
	require.Contains(t, s.shows("standing by", inState("standby")).Detail, "another copy of this machine")

	f, err := os.OpenFile(c.Disks["cloud-a"], os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("written in the target"), 9*rig.Block)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	point := s.AfterNow()
	d, err := s.Reader().OpenDisk(t.Context(), point.ID, s.Disks[0].ID)
	require.NoError(t, err)
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	require.NoError(t, err)
	require.NoError(t, d.Close())
	want, err := os.ReadFile(c.Disks["cloud-a"])
	require.NoError(t, err)
	require.True(t, slices.Equal(want, got), "the replica is the target's disk, with nothing of the old side")
	require.Equal(t, uint32(1), s.Status().Generation, "no resync")
}

// TestMovesByAssignment: a machine is given to another process server, on the same store.
// The agent goes there by itself, and sends what changed.
func TestMovesByAssignment(t *testing.T) {
	t.Parallel()
	s := streaming(t, time.Hour)

	s.StopServer() // it is lost; what it had spooled may be, too
	s.Write(0, 7, []byte(strings.Repeat("b", rig.Block)))
	s.Server = s.secondServer()
	s.Grant(2, cut)
	begun := time.Now()
	require.NoError(t, s.reg.SetAssignment(controlapi.Assignment{Action: controlapi.ActionReplicate, Machine: s.Machine, Epoch: 2, Instance: rig.Instance,
		Server: "ps-2", Role: ident.RoleProcessServer, Address: s.Address, Disks: slices.Clone(s.Disks)}))
	s.Await("a session there", func(st pipe.Status) bool { return st.Connected })
	t.Logf("moved in %s", time.Since(begun).Round(time.Millisecond))
	s.right()
	st := s.Status()
	require.Equal(t, uint32(1), st.Generation, "no resync")
	require.Nil(t, st.Broken)
	require.LessOrEqual(t, st.DataBytes, int64(2*rig.Block), "what changed; a set that arrived and was not acknowledged may be compared")
}

// secondServer is a process server of its own, on the store and cache of the first.
func (s *site) secondServer() *server.Server {
	t := s.T
	t.Helper()
	store, err := file.Open(s.StoreDir())
	require.NoError(t, err)
	cache, err := cachestore.NewDirectory(filepath.Join(s.Dir, "cache"))
	require.NoError(t, err)
	long, err := ca.Open(s.state, time.Hour)
	require.NoError(t, err)
	cert, err := long.Server(ident.Peer{Role: ident.RoleProcessServer, Name: "ps-2"}, nil)
	require.NoError(t, err)
	out, err := server.New(server.Config{Name: "ps-2", StateDir: filepath.Join(s.Dir, "second"), Store: store, Cache: cache, SpoolLimit: 1 << 30,
		Logger: s.Log().With("side", "second server"),
		TLS:    &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: cert.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: long.Pool()},
		Keys: func(context.Context, ident.MachineID, string) (changeset.Key, error) {
			return changeset.Key{ID: "k", Secret: [32]byte{7}}, nil
		}})
	require.NoError(t, err)
	s.Address, err = ports.Free()
	require.NoError(t, err)
	l, err := net.Listen("tcp", s.Address)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- out.Serve(ctx, l) }()
	t.Cleanup(func() {
		s.stopAgent()
		cancel()
		require.NoError(t, <-done)
		require.NoError(t, store.Close())
	})
	return out
}

// TestServerAwayForLong: nothing queues up in the agent while no server answers; it knows
// what changed, says since when, and sends that and nothing else.
func TestServerAwayForLong(t *testing.T) {
	t.Parallel()
	s := streaming(t, time.Hour)
	before := s.Points()
	s.StopServer()
	s.shows("that it does not stream", func(st status.Status) bool { return st.State == "connecting" })
	for round := range int64(40) { // the same blocks again and again, and a few others
		for _, at := range []int64{1, 2, 3, 10 + round} {
			s.Write(0, at, []byte(strings.Repeat(string(rune('A'+round%26)), rig.Block)))
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.StartServer()
	s.Grant(1, cut)
	s.Await("a session", func(st pipe.Status) bool { return st.Connected })
	s.right()
	require.LessOrEqual(t, s.Status().DataBytes, int64(2*(3+40)*rig.Block), "each block as it is now, not each write")
	require.Equal(t, uint32(1), s.Status().Generation, "no resync")
	require.Contains(t, ids(s.Points()), before[0].ID, "the points from before")
}

func ids(points []replica.Point) (out []ident.Seq) {
	for _, p := range points {
		out = append(out, p.ID)
	}
	return out
}
