package quiesce

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

// program writes an executable that notes its environment; it is the only place
// where a shell is used, as an operator's own program would.
func program(t *testing.T, name, body string) (path, log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	path = filepath.Join(dir, name)
	text := "#!/bin/sh\necho \"$DROVER_PHASE $DROVER_MACHINE $DROVER_EPOCH $DROVER_SEQ $DROVER_FINAL $SECRET\" >> " + log + "\n" + body + "\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	return path, log
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// held begins and freezes.
func held(t *testing.T, h *Hooks, c Cut) *Hold {
	t.Helper()
	require.True(t, h.CanHold(c))
	x, err := h.Begin(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, x.Freeze(t.Context(), c.Seq))
	return x
}

func TestFreezeAndThaw(t *testing.T) {
	t.Setenv("SECRET", "not for hooks")
	pre, log := program(t, "hook", "")
	h := &Hooks{Pre: []string{pre}, Post: []string{pre}, Marker: filepath.Join(t.TempDir(), "frozen")}
	c := Cut{Machine: ident.NewMachineID("v", "m"), Epoch: 3, Seq: 7, Final: true}
	x, err := h.Begin(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, x.Freeze(t.Context(), 8), "the number is known only now")
	require.FileExists(t, h.Marker)
	require.False(t, x.Loose())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o, err := x.Thaw(ctx)
	require.NoError(t, err, "a machine is thawed whatever was cancelled")
	require.Equal(t, Outcome{Consistency: ident.ApplicationConsistent}, o)
	require.NoFileExists(t, h.Marker)
	m := c.Machine.String()
	require.Equal(t, []string{"freeze " + m + " 3 8 1", "thaw " + m + " 3 8 1"}, trim(lines(t, log)))
}

func trim(in []string) []string {
	for i := range in {
		in[i] = strings.TrimSpace(in[i])
	}
	return in
}

func TestFailedFreezeIsThawed(t *testing.T) {
	pre, _ := program(t, "pre", "echo no lock >&2; exit 3")
	post, log := program(t, "post", "")
	h := &Hooks{Pre: []string{pre}, Post: []string{post}, Marker: filepath.Join(t.TempDir(), "frozen")}
	x, err := h.Begin(t.Context(), Cut{Seq: 1})
	require.NoError(t, err)
	err = x.Freeze(t.Context(), 1)
	require.ErrorContains(t, err, "freeze: pre: exit status 3: no lock")
	require.Len(t, lines(t, log), 1)
	require.NoFileExists(t, h.Marker)
}

// TestHungProgramIsKilled: with what it has started.
func TestHungProgramIsKilled(t *testing.T) {
	pre, log := program(t, "pre", "sleep 60 & echo $! >&2; wait")
	h := &Hooks{Pre: []string{pre}, Timeout: 300 * time.Millisecond}
	x, err := h.Begin(t.Context(), Cut{})
	require.NoError(t, err)
	begin := time.Now()
	err = x.Freeze(t.Context(), 1)
	require.ErrorContains(t, err, "took longer than 300ms")
	require.Less(t, time.Since(begin), 30*time.Second)
	require.Len(t, lines(t, log), 1)
}

func TestPostThatFails(t *testing.T) {
	pre, _ := program(t, "pre", "")
	post, _ := program(t, "post", "exit 4")
	h := &Hooks{Pre: []string{pre}, Post: []string{post}, Marker: filepath.Join(t.TempDir(), "frozen")}
	x := held(t, h, Cut{Seq: 1})
	o, err := x.Thaw(t.Context())
	require.ErrorContains(t, err, "exit status 4")
	require.Equal(t, ident.FileSystemConsistent, o.Consistency)
	require.Contains(t, o.Note, "exit status 4")
	require.FileExists(t, h.Marker, "the next start tries again")
}

func TestRecoverEndsAFreezeLeftBehind(t *testing.T) {
	post, log := program(t, "post", "")
	h := &Hooks{Pre: []string{post}, Post: []string{post}, Marker: filepath.Join(t.TempDir(), "frozen")}
	was, err := h.Recover(t.Context(), ident.MachineID{})
	require.NoError(t, err)
	require.False(t, was)
	require.NoError(t, os.WriteFile(h.Marker, nil, 0o600))
	was, err = h.Recover(t.Context(), ident.MachineID{})
	require.NoError(t, err)
	require.True(t, was)
	require.NoFileExists(t, h.Marker)
	require.Contains(t, lines(t, log)[0], "thaw")
}

func TestNothingConfigured(t *testing.T) {
	h := &Hooks{}
	require.False(t, h.CanHold(Cut{Scripts: true}))
	x, err := h.Begin(t.Context(), Cut{Scripts: true})
	require.NoError(t, err)
	require.Nil(t, x)
}
