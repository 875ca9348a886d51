package stream

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/agent/quiesce"
	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/tests/lab/guest"
	"drover/tests/loop"
	"drover/tests/rig"
)

// TestMain is also the guard process of freezes.
func TestMain(m *testing.M) {
	rig.Guard()
	goleak.VerifyTestMain(m)
}

// TestApplicationConsistentPoints: scripts at their cadence and when a cut is ordered;
// all other cuts are consistent for the file systems.
func TestApplicationConsistentPoints(t *testing.T) {
	r := rig.New(t, 16<<20)
	mount := mounted(t, r)
	dir := filepath.Join(r.Dir, "scripts.d")
	require.NoError(t, os.Mkdir(dir, 0o700))
	script := filepath.Join(dir, "10-app")
	good := "#!/bin/sh\necho $1 >> " + mount + "/calls\n"
	require.NoError(t, os.WriteFile(script, []byte(good), 0o700))
	r.Hooks.Freezer, r.Hooks.Scripts = &freeze.Freezer{Limit: 20 * time.Second}, quiesce.Scripts{Dir: dir}
	r.App = time.Hour
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	r.StartAgent(1)
	r.Await("points", func(st pipe.Status) bool { return st.LastPoint > 4 })
	for i, p := range r.Points() {
		if i == 0 {
			require.Equal(t, ident.ApplicationConsistent, p.Consistency, "they are due at once, and then not for an hour")
		} else {
			require.Equal(t, ident.FileSystemConsistent, p.Consistency, p.Note)
		}
	}
	require.Equal(t, ident.ApplicationConsistent, r.AfterNow().Consistency, "ordered")
	r.App = time.Millisecond
	r.Grant(2, 20*time.Millisecond)
	r.StopAgent()
	r.StartAgent(2)
	last := r.Status().LastPoint
	r.Await("more points", func(st pipe.Status) bool { return st.LastPoint > last+3 })
	for _, p := range r.Points() {
		if p.ID > last+1 {
			require.Equal(t, ident.ApplicationConsistent, p.Consistency, p.Note)
		}
	}
	require.NoError(t, os.WriteFile(script, []byte(good+"[ $1 = thaw ] || { echo it is busy; exit 1; }\n"), 0o700))
	p := r.AfterNow()
	require.Equal(t, ident.FileSystemConsistent, p.Consistency)
	require.Contains(t, p.Note, "it is busy")
	r.StopAgent()
	b, err := os.ReadFile(filepath.Join(mount, "calls"))
	require.NoError(t, err)
	for i, c := range strings.Fields(string(b)) {
		require.Equal(t, []string{"freeze", "thaw"}[i%2], c)
	}
}

// TestFrozenByAnother: the agent does not touch somebody else's freeze. What it makes
// then is a point as good as two passes that agree, and it says so.
func TestFrozenByAnother(t *testing.T) {
	r := rig.New(t, 16<<20)
	mount := mounted(t, r)
	r.Hooks.Freezer = &freeze.Freezer{Limit: 20 * time.Second}
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	run(t, "fsfreeze", "--freeze", mount)
	p := r.AfterNow()
	run(t, "fsfreeze", "--unfreeze", mount) // fails if it is not frozen any more
	require.Equal(t, ident.CrashConsistent, p.Consistency)
	require.Contains(t, p.Note, "frozen already")
	require.Equal(t, ident.FileSystemConsistent, r.AfterNow().Consistency)
}

// TestRawDeviceBesideAFileSystem: a device that somebody writes to without a file
// system makes a point crash-consistent, if passes agree while all else is frozen.
func TestRawDeviceBesideAFileSystem(t *testing.T) {
	r := rig.New(t, 16<<20, 4<<20)
	mounted(t, r)
	raw := loop.Attach(t, r.Path("b")).Path
	r.Hooks.Freezer = &freeze.Freezer{Limit: 20 * time.Second}
	r.Devices = map[string]string{"b": raw}
	r.StartServer()
	r.Grant(1, 50*time.Millisecond)
	r.StartAgent(1)
	r.Await("complete", complete)
	require.Equal(t, ident.FileSystemConsistent, r.AfterNow().Consistency, "nobody writes to it")

	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	require.NoError(t, err)
	idle := exec.Command(guest.Tool("sleep"), "600")
	idle.ExtraFiles = []*os.File{f}
	require.NoError(t, idle.Start())
	t.Cleanup(func() { _ = idle.Process.Kill(); _ = idle.Wait() })
	require.NoError(t, f.Close())
	p := r.AfterNow()
	require.Equal(t, ident.CrashConsistent, p.Consistency)
	require.Contains(t, p.Note, "(sleep) writes to")
}
