package quiesce

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
)

// scripts makes a directory of scripts, by name and what they do; each notes its calls
// in one log.
func scripts(t *testing.T, bodies ...string) (s Scripts, log string) {
	t.Helper()
	s.Dir = filepath.Join(t.TempDir(), "scripts.d")
	log = filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.Mkdir(s.Dir, 0o755))
	for i := 0; i < len(bodies); i += 2 {
		text := "#!/bin/sh\necho \"$1 $DROVER_PHASE ${0##*/}\" >> " + log + "\n" + bodies[i+1] + "\n"
		require.NoError(t, os.WriteFile(filepath.Join(s.Dir, bodies[i]), []byte(text), 0o755))
	}
	return s, log
}

func TestScriptsInOrder(t *testing.T) {
	s, log := scripts(t, "20-b", "", "10-a", "", "30-c", "")
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "README"), []byte("no script"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, ".10-a.swp"), nil, 0o755))
	h := &Hooks{Scripts: s, Marker: filepath.Join(t.TempDir(), "frozen")}
	x := held(t, h, Cut{Seq: 1, Scripts: true})
	require.True(t, x.Scripted())
	require.True(t, x.Loose(), "nothing is frozen by them: passes must agree")
	o, err := x.Thaw(t.Context())
	require.NoError(t, err)
	require.Equal(t, ident.ApplicationConsistent, o.Consistency)
	require.Equal(t, []string{"freeze freeze 10-a", "freeze freeze 20-b", "freeze freeze 30-c", "thaw thaw 30-c", "thaw thaw 20-b", "thaw thaw 10-a"}, lines(t, log))
}

// TestFailedScript: all are told to thaw, and the point is not application-consistent.
func TestFailedScript(t *testing.T) {
	for name, body := range map[string]string{"fails": "[ $1 = thaw ] || { echo no connection; exit 5; }", "hangs": "[ $1 = thaw ] || sleep 60"} {
		t.Run(name, func(t *testing.T) {
			s, log := scripts(t, "1", "", "2", body, "3", "")
			s.Timeout = time.Second
			pre, _ := program(t, "pre", "")
			var text bytes.Buffer
			s.Logger = slog.New(slog.NewTextHandler(&text, nil))
			h := &Hooks{Scripts: s, Freezer: nil, Pre: []string{pre}, Post: []string{pre}}
			x, err := h.Begin(t.Context(), Cut{Seq: 1, Scripts: true})
			require.NoError(t, err)
			require.ErrorContains(t, x.Freeze(t.Context(), 1), "freeze: 2")
			require.Equal(t, []string{"freeze freeze 1", "freeze freeze 2", "thaw thaw 3", "thaw thaw 2", "thaw thaw 1"}, lines(t, log))
			require.Contains(t, text.String(), "a script failed")
			if name == "fails" {
				require.Contains(t, text.String(), "no connection")
			}
		})
	}
}

// TestScriptsThatAreNotDue: a cut between is not application-consistent, though the
// programs of every cut succeed.
func TestScriptsThatAreNotDue(t *testing.T) {
	s, log := scripts(t, "1", "")
	pre, _ := program(t, "pre", "")
	h := &Hooks{Scripts: s, Pre: []string{pre}, Post: []string{pre}}
	o, err := held(t, h, Cut{Seq: 1}).Thaw(t.Context())
	require.NoError(t, err)
	require.Equal(t, ident.FileSystemConsistent, o.Consistency)
	require.NoFileExists(t, log)
	require.False(t, (&Hooks{Scripts: s}).CanHold(Cut{}))
}

func TestThawThatFails(t *testing.T) {
	s, _ := scripts(t, "1", "[ $1 = freeze ]")
	h := &Hooks{Scripts: s, Marker: filepath.Join(t.TempDir(), "frozen")}
	o, err := held(t, h, Cut{Seq: 1, Scripts: true}).Thaw(t.Context())
	require.ErrorContains(t, err, "thaw: 1: exit status 1")
	require.Equal(t, ident.FileSystemConsistent, o.Consistency)
	require.FileExists(t, h.Marker)
}

// TestScriptsOfAnAgentThatDied are told to thaw at the next start.
func TestScriptsOfAnAgentThatDied(t *testing.T) {
	s, log := scripts(t, "1", "", "2", "")
	h := &Hooks{Scripts: s, Marker: filepath.Join(t.TempDir(), "frozen")}
	held(t, h, Cut{Seq: 1, Scripts: true})
	was, err := h.Recover(t.Context(), ident.MachineID{})
	require.NoError(t, err)
	require.True(t, was)
	require.Equal(t, []string{"thaw thaw 2", "thaw thaw 1"}, lines(t, log)[2:])
	require.NoFileExists(t, h.Marker)
}

func TestScriptsThatOthersMayChange(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"directory for all":   {func(t *testing.T, dir string) { require.NoError(t, os.Chmod(dir, 0o777)) }, "chmod go-w"},
		"parent for a group":  {func(t *testing.T, dir string) { require.NoError(t, os.Chmod(filepath.Dir(dir), 0o775)) }, "chmod go-w"},
		"script for a group":  {func(t *testing.T, dir string) { require.NoError(t, os.Chmod(filepath.Join(dir, "1"), 0o775)) }, "chmod go-w"},
		"a link out":          {func(t *testing.T, dir string) { require.NoError(t, os.Symlink("/bin/true", filepath.Join(dir, "2"))) }, "not a link"},
		"not a file":          {func(t *testing.T, dir string) { require.NoError(t, makePipe(filepath.Join(dir, "2"))) }, "no regular file"},
		"another's script":    {func(t *testing.T, dir string) { chown(t, filepath.Join(dir, "1")) }, "chown root"},
		"another's directory": {func(t *testing.T, dir string) { chown(t, dir) }, "chown root"},
		"too many": {func(t *testing.T, dir string) {
			for i := range maxScripts {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "x"+strings.Repeat("x", i)), nil, 0o755))
			}
		}, "at most 64"},
	} {
		t.Run(name, func(t *testing.T) {
			s, log := scripts(t, "1", "")
			c.spoil(t, s.Dir)
			_, err := s.List()
			require.ErrorContains(t, err, c.want)
			pre, _ := program(t, "pre", "")
			h := &Hooks{Scripts: s, Pre: []string{pre}}
			x, err := h.Begin(t.Context(), Cut{Scripts: true})
			require.NoError(t, err)
			require.ErrorContains(t, x.Freeze(t.Context(), 1), c.want)
			require.NoFileExists(t, log, "nothing was run")
		})
	}
}

func TestLinkedDirectory(t *testing.T) {
	s, _ := scripts(t, "1", "")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(s.Dir, link))
	_, err := Scripts{Dir: link}.List()
	require.ErrorContains(t, err, "is a link")
	list, err := Scripts{Dir: filepath.Join(link, "none")}.List()
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestGate(t *testing.T) {
	var out bytes.Buffer
	g := NewGate(&out)
	log := slog.New(slog.NewJSONHandler(g, nil))
	log.Info("before")
	g.Close()
	log.Info("while")
	require.NotContains(t, out.String(), "while")
	g.Open()
	require.Equal(t, 2, strings.Count(out.String(), "\n"))
	g.Close()
	for range 2000 {
		log.Info("many", "text", strings.Repeat("x", 100))
	}
	require.Equal(t, 2, strings.Count(out.String(), "\n"))
	g.Open()
	g.Open()
	require.Less(t, out.Len(), gateRoom+1000)
	require.Regexp(t, `"msg":"lines of this log were dropped while the file systems were frozen","lines":\d+}\n$`, out.String())
	log.Info("after")
	require.True(t, strings.HasSuffix(strings.TrimSpace(out.String()), `"msg":"after"}`))
	var none *Gate
	none.Close()
	none.Open()
}
