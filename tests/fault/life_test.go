package fault

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/controlapi"
	"drover/agent/doctor"
	"drover/agent/run"
	"drover/agent/status"
	pipe "drover/datapath/stream"
	"drover/tests/rig"
	"drover/worker/ca"
	"drover/worker/registry"
)

// life of the short certificates here.
const life = 5 * time.Second

// TestCase44CertificatesExpire: the configuration server is away until the agent's
// certificate has expired. The agent says so, keeps track of the changes, takes a new
// token up without a restart, and goes on without a resync.
func TestCase44CertificatesExpire(t *testing.T) {
	t.Parallel()
	s := streaming(t, life)
	first := s.shows("an identity", func(st status.Status) bool { return st.Identity.Name != "" && st.LastCut != nil }).Identity
	s.shows("a renewal in time", func(st status.Status) bool { return st.Identity.Expires.After(first.Expires) })

	s.stopControl()
	st := s.shows("an expired certificate", inState("certificate-expired"))
	require.Contains(t, st.Detail, "the certificate expired at "+st.Identity.Expires.Format(time.RFC3339))
	require.Contains(t, st.Detail, "issue a token with `drover-config-server token --role agent --instance "+rig.Instance)
	require.Contains(t, st.Problems[0], s.config.TokenFile)
	s.StopServer()
	s.StartServer() // a new session needs a certificate
	s.Await("no session", func(st pipe.Status) bool { return !st.Connected })
	s.Write(0, 7, []byte(strings.Repeat("b", rig.Block)))

	s.startControl()
	begun := strings.Count(s.log.String(), "session begins")
	s.token()
	s.Await("a session", func(st pipe.Status) bool { return st.Connected })
	s.right()
	s.shows("streaming", inState("streaming"))
	for n, line := range strings.Split(s.log.String(), "session begins")[1:] {
		if n >= begun {
			require.True(t, strings.HasPrefix(line, `" mode=delta`), "what changed meanwhile is known: %.60s", line)
		}
	}
	require.Nil(t, s.Status().Broken)
}

// TestTokensOfTheAgent: wrong and foreign tokens are refused with a clear word, and the
// agent takes the right one up without a restart.
func TestTokensOfTheAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t, life)
	s.startAgent()
	st := s.shows("no token", inState("not-enrolled"))
	require.Contains(t, st.Detail, "this machine is not enrolled; there is no token")
	require.Contains(t, st.Detail, s.config.TokenFile)
	s.puts("nonsense")
	s.says("the token is not of the form")
	s.puts(s.ca.Fingerprint() + ".wrong")
	s.says("the token is refused")
	s.puts(strings.Repeat("ab", 32) + ".secret")
	s.says("does not present the CA whose fingerprint is in the token")
	s.token()
	s.Await("complete", complete)

	// When it has expired, only the CA that is known may renew it.
	s.stopControl()
	s.shows("an expired certificate", inState("certificate-expired"))
	other, err := ca.Open(t.TempDir(), 0)
	require.NoError(t, err)
	s.puts(other.Fingerprint() + ".secret")
	s.says("the token is of another CA than the one trusted since the first enrolment")
	s.startControl()
	s.token()
	s.shows("streaming", inState("streaming"))
	s.right()
}

func (s *site) says(what string) {
	s.T.Helper()
	s.shows(what, func(st status.Status) bool { return strings.Contains(st.Detail, what) })
}

// TestAgentThatExpiredWhileItWasOff starts with an expired certificate.
func TestAgentThatExpiredWhileItWasOff(t *testing.T) {
	t.Parallel()
	s := newSite(t, life)
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	expires := s.shows("an identity", func(st status.Status) bool { return st.Identity.Name != "" }).Identity.Expires
	s.stopAgent()
	time.Sleep(time.Until(expires) + time.Second)
	s.startAgent()
	st := s.shows("an expired certificate", inState("certificate-expired"))
	require.Contains(t, st.Detail, "the token is refused", "the spent one is still there")
	require.Equal(t, s.AgentPeer().String(), st.Identity.Name)
	s.token()
	s.shows("streaming", inState("streaming"))
	s.right()
	require.Nil(t, s.Status().Broken)
}

// TestTwoAgentsOnOneState: the second refuses, and the first is not disturbed.
func TestTwoAgentsOnOneState(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour)
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	err := run.Run(t.Context(), s.config, "second", s.Log(), nil)
	require.ErrorContains(t, err, "another drover-agent runs on it")
	_, err = run.Enrol(t.Context(), s.config, "second", nil)
	require.ErrorContains(t, err, "another drover-agent runs on it")
	// One with a state of its own but the same socket works, and says what does not.
	second := *s.config
	second.State, second.TokenFile = t.TempDir(), filepath.Join(t.TempDir(), "none")
	first := s.config
	old := s.agent
	s.config = &second
	s.startAgent()
	require.Eventually(t, func() bool { return strings.Contains(s.log.String(), "another agent serves it") }, soon, often)
	s.stopAgent()
	s.config, s.agent = first, old
	s.shows("the first", inState("streaming"))
	s.right()
}

// TestStateDirectoryFull: the agent goes on, renews its certificate in memory, says so,
// and keeps it once there is room.
func TestStateDirectoryFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	t.Parallel()
	s := newSite(t, life)
	require.NoError(t, os.MkdirAll(s.config.State, 0o700))
	if err := unix.Mount("tmpfs", s.config.State, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("mounting is not allowed here: %v", err)
	}
	t.Cleanup(func() { s.stopAgent(); require.NoError(t, unix.Unmount(s.config.State, 0)) })
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	first := s.shows("an identity", func(st status.Status) bool { return st.Identity.Kept }).Identity
	ballast := filepath.Join(s.config.State, "ballast")
	_ = os.WriteFile(ballast, make([]byte, 1<<20), 0o600) // until it is full
	var room unix.Statfs_t
	require.NoError(t, unix.Statfs(s.config.State, &room))
	require.Zero(t, room.Bavail)

	st := s.shows("a renewal that is not kept", func(st status.Status) bool { return st.Identity.Expires.After(first.Expires) && !st.Identity.Kept })
	require.Contains(t, st.Problems[0], "make room there")
	require.Contains(t, s.log.String(), "no space left on device")
	time.Sleep(time.Until(first.Expires))
	s.StopServer()
	s.StartServer()
	s.Await("a session with the certificate in memory", func(st pipe.Status) bool { return st.Connected })
	s.right()
	require.NoError(t, os.Remove(ballast))
	s.shows("it is kept", func(st status.Status) bool { return st.Identity.Kept && len(st.Problems) == 0 })
	s.right()
}

// TestCase32WrongTokens: a token that is shown from other machines again and again is
// locked, and each try is in the log.
func TestCase32WrongTokens(t *testing.T) {
	s := newSite(t, time.Hour)
	secret, err := s.reg.IssueToken(registry.TokenSpec{Peer: s.AgentPeer(), Instance: rig.Instance})
	require.NoError(t, err)
	for range registry.MaxWrong {
		_, err = s.reg.SpendToken(secret, "4c4c4544-0042-3510-8054-000000000000", nil)
		require.ErrorIs(t, err, registry.ErrTokenInstance)
	}
	_, err = s.reg.SpendToken(secret, rig.Instance, nil)
	require.ErrorIs(t, err, registry.ErrTokenLocked)
}

// TestDoctorAndStatusOfALivingAgent: what a person in the guest is told, by the real
// servers' and the agent's own words.
func TestDoctorAndStatusOfALivingAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour)
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	s.right()
	st := s.shows("everything", func(st status.Status) bool {
		return st.State == "streaming" && st.LastCut != nil && len(st.Disks) > 0 && st.Counters["passes_total"] > 0 && len(st.Preflight) > 0 && !st.Control.LastAnswer.IsZero()
	})
	require.Equal(t, s.AgentPeer().String(), st.Identity.Name)
	require.Equal(t, rig.ServerPeer.Name, st.Assignment.Server)
	require.InDelta(t, 0, st.Control.Offset, 60)
	require.True(t, strings.HasPrefix(st.Position, "1/"), st.Position)

	examine := func() map[string]controlapi.Finding {
		out := map[string]controlapi.Finding{}
		for _, f := range doctor.Examine(t.Context(), doctor.Options{File: s.config.TokenFile, Config: s.config}) {
			if old, again := out[f.Check]; !again || old.Level == controlapi.LevelOK {
				out[f.Check] = f
			}
		}
		return out
	}
	got := examine()
	for _, check := range []string{"configuration", "identity", "keys", "state", "agent", "configuration-server", "clock", "process-server", "disks", "memory", "programs"} {
		require.Equal(t, controlapi.LevelOK, got[check].Level, "%s: %s", check, got[check].What)
	}
	require.Contains(t, got["disks"].What+got["agent"].What, "streaming")

	require.NoError(t, os.Chmod(filepath.Join(s.config.State, "identity", "key.pem"), 0o640))
	s.StopServer()
	require.NoError(t, os.Rename(s.Path("a"), s.Path("a")+".away"))
	got = examine()
	require.Contains(t, got["keys"].Advice, "chmod 600")
	require.Equal(t, controlapi.LevelFail, got["process-server"].Level)
	require.Contains(t, got["process-server"].What, "connection refused")
	require.Equal(t, controlapi.LevelFail, got["disks"].Level, got["disks"].What)
	s.stopControl()
	got = examine()
	require.Equal(t, controlapi.LevelFail, got["configuration-server"].Level)
	require.NoError(t, os.Rename(s.Path("a")+".away", s.Path("a")))
}
