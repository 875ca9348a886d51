// Package quiesce stops a machine's applications for the moment of a cut: it runs
// the operator's programs before and after. They are run directly, never by a
// shell, and learn of the cut from their environment:
//
//	DROVER_PHASE    freeze or thaw
//	DROVER_MACHINE  machine id
//	DROVER_EPOCH    epoch and sequence number of the recovery point to be made;
//	DROVER_SEQ      0 when a freeze that was left behind is ended
//	DROVER_FINAL    1 when the machine stays frozen, for a planned failover
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

	"drover/datapath/ident"
)

// Bounds of a program.
const (
	DefaultTimeout = 10 * time.Second
	maxOutput      = 4 << 10 // bytes kept for the error
	killWait       = time.Second
)

// Cut is what the machine is frozen for.
type Cut struct {
	Machine ident.MachineID
	Epoch   ident.Epoch
	Seq     ident.Seq
	Final   bool
}

// Hooks freezes and thaws one machine. Its methods are called by one goroutine at
// a time.
type Hooks struct {
	// Pre and Post are programs with their arguments; without Pre nothing is frozen.
	Pre, Post []string
	// Timeout bounds each program, and how long the machine stays frozen for a cut
	// that is not final.
	Timeout time.Duration
	// Marker is a file that is there while the machine is frozen, so that a freeze
	// that a crash left behind is ended at the next start.
	Marker string
}

// Configured reports whether there is anything to freeze with.
func (h *Hooks) Configured() bool { return len(h.Pre) > 0 }

// Freeze runs the program before a cut. After an error the machine is thawed.
func (h *Hooks) Freeze(ctx context.Context, c Cut) error {
	if err := h.mark(); err != nil {
		return err
	}
	if err := h.run(ctx, h.Pre, "freeze", c); err != nil {
		return errors.Join(err, h.Thaw(ctx, c))
	}
	return nil
}

// Thaw runs the program after a cut, even when ctx has ended.
func (h *Hooks) Thaw(ctx context.Context, c Cut) error {
	err := h.run(context.WithoutCancel(ctx), h.Post, "thaw", c)
	if err == nil && h.Marker != "" {
		if e := os.Remove(h.Marker); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = fmt.Errorf("thaw: %w", e)
		}
	}
	return err
}

// Recover ends a freeze that an earlier run left behind.
func (h *Hooks) Recover(ctx context.Context, machine ident.MachineID) (bool, error) {
	if h.Marker == "" {
		return false, nil
	}
	if _, err := os.Stat(h.Marker); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return true, h.Thaw(ctx, Cut{Machine: machine})
}

func (h *Hooks) mark() error {
	if h.Marker == "" {
		return nil
	}
	f, err := os.OpenFile(h.Marker, os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

func (h *Hooks) run(ctx context.Context, argv []string, phase string, c Cut) error {
	if len(argv) == 0 {
		return nil
	}
	timeout := h.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the operator's own program, from the agent's configuration
	cmd.WaitDelay = killWait
	final := "0"
	if c.Final {
		final = "1"
	}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C", "DROVER_PHASE=" + phase, "DROVER_MACHINE=" + c.Machine.String(),
		fmt.Sprintf("DROVER_EPOCH=%d", c.Epoch), fmt.Sprintf("DROVER_SEQ=%d", c.Seq), "DROVER_FINAL=" + final,
	}
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: %s took longer than %s and was killed", phase, filepath.Base(argv[0]), timeout)
	}
	return fmt.Errorf("%s: %s: %w: %s", phase, filepath.Base(argv[0]), err, strings.TrimSpace(out.String()))
}

// limited keeps the beginning of a program's output.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
