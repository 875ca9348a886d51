package push

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
	"drover/workflows/fault"
)

// answers is a guest that answers commands; nothing can be changed in it.
type answers struct {
	reach
	says map[string]string
	room int64
}

func (a answers) free(context.Context, string) (int64, error) { return a.room, nil }

func (a answers) exists(context.Context, string) (bool, error) { return false, nil }

func (a answers) run(_ context.Context, command string) (string, error) {
	text, known := a.says[command]
	if !known {
		return "", errors.New(command + ": not found")
	}
	return text, nil
}

// TestPreflight: what could not work is refused, with the reason.
func TestPreflight(t *testing.T) {
	agents := t.TempDir()
	for _, name := range []string{"drover-agent-linux-amd64", service} {
		require.NoError(t, os.WriteFile(filepath.Join(agents, name), make([]byte, 1000), 0o600))
	}
	at := func(off time.Duration) string { return strconv.FormatInt(time.Now().Add(off).Unix(), 10) + "\n" }
	for name, c := range map[string]struct {
		change func(*answers)
		want   string
	}{
		"fine":          {func(*answers) {}, ""},
		"seconds":       {func(a *answers) { a.says["date +%s"] = at(-30 * time.Second) }, ""},
		"behind":        {func(a *answers) { a.says["date +%s"] = at(-time.Hour) }, "its clock is off by -"},
		"ahead":         {func(a *answers) { a.says["date +%s"] = at(6 * time.Minute) }, "its clock is off by "},
		"no date":       {func(a *answers) { delete(a.says, "date +%s") }, "look what time it is there"},
		"no time":       {func(a *answers) { a.says["date +%s"] = "now" }, "look what time it is there"},
		"another OS":    {func(a *answers) { a.says["uname -sm"] = "FreeBSD amd64\n" }, "there are agents for Linux"},
		"another CPU":   {func(a *answers) { a.says["uname -sm"] = "Linux riscv64\n" }, "x86_64 and aarch64"},
		"no agent":      {func(a *answers) { a.says["uname -sm"] = "Linux aarch64\n" }, "has no agent for aarch64"},
		"not root":      {func(a *answers) { a.says["id -u"] = "1000\n" }, "is not root"},
		"without space": {func(a *answers) { a.room = 2999 }, "are free in /usr/bin"},
	} {
		t.Run(name, func(t *testing.T) {
			there := answers{says: map[string]string{"uname -sm": "Linux x86_64\n", "id -u": "0\n", "date +%s": at(0)}, room: 3000}
			c.change(&there)
			g := &guest{reach: there, a: &Activities{config: Config{Agents: agents}}, in: api.PushInput{Name: "db-1", Credentials: "guests"}}
			_, _, _, err := g.preflight(t.Context())
			if c.want == "" {
				require.NoError(t, err)
				require.Len(t, g.out.Steps, 1)
				require.Contains(t, g.out.Steps[0].Result, "clock off by")
				return
			}
			require.Equal(t, api.CodeInvalid, fault.Code(err))
			require.ErrorContains(t, err, "push to db-1: ")
			require.ErrorContains(t, err, c.want)
		})
	}
}

// TestClock: how far it is off at least, whenever between question and answer it was read.
func TestClock(t *testing.T) {
	for off, want := range map[time.Duration]time.Duration{0: 0, time.Minute: time.Minute, -time.Minute: -time.Minute} {
		g := &guest{reach: answers{says: map[string]string{"date +%s": strconv.FormatInt(time.Now().Add(off).Unix(), 10)}}}
		got, err := g.clock(t.Context())
		require.NoError(t, err)
		require.InDelta(t, want.Seconds(), got.Seconds(), 1.5)
	}
}
