package fault

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/config"
	"drover/agent/run"
	"drover/agent/status"
	"drover/datapath/failpoint"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

const (
	agentVerb   = "agent-process"
	processLife = time.Minute     // of an agent that does not end by itself
	goesOn      = 8 * time.Second // from a killed agent to a guest that writes again; the limit of a freeze is 2 s
	diskSize    = 16 << 20
	mostKills   = 4
)

// agentProcess is the agent as a program: it ends by SIGTERM, or at a failpoint.
func agentProcess(file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	return run.Run(ctx, c, "test", slog.New(slog.NewTextHandler(os.Stderr, nil)), nil)
}

// process is an agent that runs as a process of its own.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

// spawn starts the agent as a process, to be killed at the place; empty: nowhere.
func (s *site) spawn(at, more string) *process {
	s.T.Helper()
	c := s.config
	file := filepath.Join(filepath.Dir(c.State), "agent.yaml")
	text := fmt.Sprintf("configServer: %s\nstate: %s\ntokenFile: %s\nsocket: %s\ninstance: %s\ntracker: scan\ndisks:\n", c.ConfigServer, c.State, c.TokenFile, c.Socket, c.Instance)
	for uuid, path := range c.Disks {
		text += fmt.Sprintf("  %s: %s\n", uuid, path)
	}
	require.NoError(s.T, os.WriteFile(file, []byte(text+more), 0o600))
	p := &process{t: s.T, done: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), processLife)
	p.cmd = exec.CommandContext(ctx, os.Args[0], agentVerb, file) //nolint:gosec // this program
	p.cmd.Env = append(os.Environ(), failpoint.Variable+"="+at)
	p.cmd.Stderr = &p.log
	require.NoError(s.T, p.cmd.Start())
	go func() {
		defer cancel()
		p.done <- p.cmd.Wait()
	}()
	s.T.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// killed waits until it was killed at its place.
func (p *process) killed() {
	p.t.Helper()
	<-p.done
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(p.t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL && p.cmd.ProcessState.ExitCode() == -1, "%s\n%s", p.cmd.ProcessState, p.log.String())
}

// stop asks it to end.
func (p *process) stop() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, <-p.done, "%s", &p.log)
}

func needsFailpoints(t *testing.T) {
	if !failpoint.Enabled {
		t.Skip("not built with the tag failpoint: run make kill-matrix")
	}
	t.Parallel()
}

// TestKilledInAnEnrolment: an agent that is killed at any step of its enrolment is enrolled
// by the next one, by itself, or with a new token when the first one is used up, which it
// says. There is never half an identity.
func TestKilledInAnEnrolment(t *testing.T) {
	spent := []string{failpoint.EnrolAnswered, failpoint.IdentityKey, failpoint.IdentityCA}
	for _, place := range failpoint.Enrolment {
		t.Run(place, func(t *testing.T) {
			needsFailpoints(t)
			s := newSite(t, time.Hour)
			s.Write(0, 1, []byte(strings.Repeat("a", rig.Block)))
			s.token()
			s.spawn(place+":1", "").killed()
			next := s.spawn("", "")
			if slices.Contains(spent, place) {
				st := s.shows("the need for a token", inState("not-enrolled"))
				require.Contains(t, s.shows("why", func(st status.Status) bool { return strings.Contains(st.Detail, "refused") }).Detail, "tokens work once", "%+v", st)
				s.token()
			}
			s.Await("complete", complete)
			s.right()
			s.whole()
			next.stop()

			require.NoError(t, os.Remove(s.config.TokenFile))
			last := s.spawn("", "")
			s.shows("streaming", inState("streaming"))
			last.stop()
		})
	}
}

// whole checks that the identity's folder has an identity and nothing else.
func (s *site) whole() {
	s.T.Helper()
	entries, err := os.ReadDir(filepath.Join(s.config.State, "identity"))
	require.NoError(s.T, err)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	require.Equal(s.T, []string{"ca.pem", "cert.pem", "key.pem"}, names)
}

// TestKilledInARenewal: of the old certificate and the new one, one is whole.
func TestKilledInARenewal(t *testing.T) {
	for _, place := range []string{failpoint.IdentityKey, failpoint.IdentityCA, failpoint.IdentityCert, failpoint.IdentityKept} {
		t.Run(place, func(t *testing.T) {
			needsFailpoints(t)
			s := newSite(t, life)
			s.token()
			s.spawn(place+":2", "").killed()
			next := s.spawn("", "")
			st := s.shows("an identity", func(st status.Status) bool { return st.State == "streaming" || st.State == "certificate-expired" })
			if st.State == "certificate-expired" { // this machine was slow
				s.token()
			}
			s.Await("a session", complete)
			s.right()
			next.stop()
		})
	}
}

// TestKilledInAFreeze: whatever step of a freeze the agent is killed at, the guest goes on
// within the limit, the next agent ends what was begun, and its points are right.
func TestKilledInAFreeze(t *testing.T) {
	for _, place := range failpoint.Freeze {
		t.Run(place, func(t *testing.T) {
			needsFailpoints(t)
			s := newSite(t, time.Hour)
			mount := s.onDevice()
			calls, more := s.callsAround()
			s.token()
			s.spawn(fmt.Sprintf("%s:%d", place, 1+rand.IntN(mostKills)), more).killed()
			s.goesOn(mount)

			next := s.spawn("", more)
			s.Await("complete", complete)
			s.AfterNow()
			require.NoError(t, os.WriteFile(filepath.Join(mount, "last"), []byte(place), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), rig.Limit)
			defer cancel()
			p, err := s.Server.Cut(ctx, s.Machine, 1, true)
			require.NoError(t, err)
			require.Positive(t, p.Freeze, "%s", p.Note)
			loopDigest := s.Digest()
			require.Equal(t, loopDigest, s.DigestAt(p), "replica and frozen device")
			require.NoError(t, s.Server.Release(t.Context(), s.Machine, 1))
			next.stop()
			s.goesOn(mount)
			require.NoFileExists(t, filepath.Join(s.config.State, "frozen"))
			s.ended(calls)
		})
	}
}

// onDevice makes the site's disk a block device with a mounted file system.
func (s *site) onDevice() (mount string) {
	t := s.T
	t.Helper()
	require.NoError(t, os.Truncate(s.Path("a"), diskSize))
	s.Disks[0].Size = diskSize
	s.Device = loop.Attach(t, s.Path("a")).Path
	s.config.Disks["a"] = s.Device
	tool(t, "mke2fs", "-q", "-t", "ext4", s.Device)
	mount = t.TempDir()
	tool(t, "mount", s.Device, mount)
	t.Cleanup(func() { tool(t, "umount", mount) })
	s.App = time.Millisecond
	s.Grant(1, cut)
	s.assign()
	return mount
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(guest.Tool(name), args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// callsAround gives the files that a script and a program note their calls in, and the
// configuration that has them called.
func (s *site) callsAround() (calls []string, more string) {
	dir := s.T.TempDir()
	scripts := filepath.Join(dir, "scripts.d")
	require.NoError(s.T, os.Mkdir(scripts, 0o700))
	for _, file := range []string{"script", "program"} {
		calls = append(calls, filepath.Join(dir, file+".log"))
	}
	require.NoError(s.T, os.WriteFile(filepath.Join(scripts, "10-app"), []byte("#!/bin/sh\necho $1 >> "+calls[0]+"\n"), 0o700))
	program := filepath.Join(dir, "program")
	require.NoError(s.T, os.WriteFile(program, []byte("#!/bin/sh\necho $DROVER_PHASE >> "+calls[1]+"\n"), 0o700))
	return calls, fmt.Sprintf("scripts:\n  directory: %s\nquiesce:\n  pre: [%s]\n  post: [%s]\n", scripts, program, program)
}

// goesOn writes to the file system and syncs it, as an application would.
func (s *site) goesOn(mount string) {
	s.T.Helper()
	written := make(chan error, 1)
	go func() {
		f, err := os.Create(filepath.Join(mount, "after"))
		if err == nil {
			_, err = f.WriteString("after")
		}
		if err == nil {
			err = f.Sync()
		}
		_ = f.Close()
		written <- err
	}()
	select {
	case err := <-written:
		require.NoError(s.T, err)
	case <-time.After(goesOn):
		require.Fail(s.T, "the file system is still frozen")
	}
}

// ended checks that whoever was told to freeze was told to thaw, before the next time and
// at the end.
func (s *site) ended(calls []string) {
	s.T.Helper()
	for _, file := range calls {
		b, err := os.ReadFile(file)
		require.NoError(s.T, err)
		list := strings.Fields(string(b))
		require.Equal(s.T, "thaw", list[len(list)-1], "%s", file)
		for i := 1; i < len(list); i++ {
			require.False(s.T, list[i-1] == "freeze" && list[i] == "freeze", "%s: a freeze that was not ended: %v", file, list)
		}
	}
}
