package quiesce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Bounds of a program.
const (
	DefaultTimeout = 10 * time.Second
	maxOutput      = 4 << 10 // bytes kept
	killWait       = time.Second
)

// The phases, as programs are told them.
const (
	phaseFreeze = "freeze"
	phaseThaw   = "thaw"
)

// runProgram runs a program directly, without a shell, and gives the beginning of what
// it printed.
func runProgram(ctx context.Context, argv []string, phase string, c Cut, timeout time.Duration) (string, error) {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the operator's own program, from the agent's configuration
	endTogether(cmd)
	cmd.WaitDelay = killWait
	cmd.Env = environment(phase, c)
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	name := filepath.Base(argv[0])
	switch {
	case err == nil:
		return text, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return text, fmt.Errorf("%s: %s took longer than %s and was killed", phase, name, timeout)
	}
	return text, fmt.Errorf("%s: %s: %w: %s", phase, name, err, text)
}

func environment(phase string, c Cut) []string {
	final := "0"
	if c.Final {
		final = "1"
	}
	return []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C", "DROVER_PHASE=" + phase, "DROVER_MACHINE=" + c.Machine.String(),
		fmt.Sprintf("DROVER_EPOCH=%d", c.Epoch), fmt.Sprintf("DROVER_SEQ=%d", c.Seq), "DROVER_FINAL=" + final,
	}
}

// limited keeps the beginning of a program's output.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
