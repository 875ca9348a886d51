package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/session"
	"drover/datapath/server"
	pipe "drover/datapath/stream"
	"drover/tests/fault/proxy"
	"drover/tests/rig"
)

// TestMain is also the agent that is killed, and the guard process of its freezes.
func TestMain(m *testing.M) {
	rig.Guard()
	if len(os.Args) > 2 && os.Args[1] == agentVerb {
		if err := agentProcess(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const (
	idle      = 1500 * time.Millisecond // of both sides, where a test waits for it
	handshake = time.Second             // of the server, likewise
	cut       = 20 * time.Millisecond
	soon      = 10 * time.Second
	often     = 2 * time.Millisecond
)

// line is a rig whose agent reaches its server through a proxy.
type line struct {
	*rig.Rig
	*proxy.Proxy
	rnd *rand.Rand
}

// newLine starts all, with random content on half of the disk, and waits for the first
// recovery point.
func newLine(t *testing.T, idle, cut time.Duration, size int64) *line {
	t.Helper()
	r := rig.New(t, size)
	r.IdleTimeout = idle
	r.Configure = func(c *server.Config) { c.HandshakeTimeout = handshake }
	l := &line{Rig: r, rnd: rand.New(rand.NewPCG(20261123, 1))}
	l.burst(int(size / rig.Block / 2))
	r.StartServer()
	p, err := proxy.New(r.Address)
	require.NoError(t, err)
	t.Cleanup(func() { r.StopAgent(); r.StopServer(); p.Close() })
	l.Proxy, r.Via = p, p.Address()
	r.Grant(1, cut)
	r.StartAgent(1)
	r.Await("complete", complete)
	return l
}

func complete(st pipe.Status) bool { return st.Complete && st.Points > 0 }

// burst writes random blocks to random places.
func (l *line) burst(blocks int) {
	for range blocks {
		l.Write(0, l.rnd.Int64N(l.Disks[0].Size/rig.Block), noise(l.rnd, rig.Block))
	}
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32()) //nolint:gosec // any bytes
	}
	return b
}

// right checks that the replica is the source, without a resync.
func (l *line) right() {
	l.T.Helper()
	p := l.AfterNow()
	require.Equal(l.T, l.Digest(), l.DigestAt(p), "the replica is the source")
	st := l.Status()
	require.Nil(l.T, st.Broken)
	require.Equal(l.T, uint32(1), st.Generation, "nothing here needs a resync")
}

// fires waits until the armed fault has happened for the nth time.
func (l *line) fires(d proxy.Direction, n int) {
	l.T.Helper()
	require.Eventually(l.T, func() bool { return l.Fired(d) == n }, soon, often, "the fault did not happen")
}

// lag is the current RPO.
func lag(st pipe.Status) time.Duration { return st.ServerTime.Sub(st.StoredTime) }

// refusal gives the first refusal among the errors, or nil.
func refusal(errs []error) *session.Refused {
	for _, err := range errs {
		var r *session.Refused
		if errors.As(err, &r) {
			return r
		}
	}
	return nil
}

// identities are files that a server makes before it hears of anybody.
var identities = map[string]bool{"spool.json": true, "store.json": true, "places.json": true}

// files lists what lies under a folder of the rig, but for those.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !identities[d.Name()] {
			out = append(out, path)
		}
		return err
	})
	require.NoError(t, err)
	return out
}
