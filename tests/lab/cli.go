package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// CLIError is a `drover` command that failed.
type CLIError struct {
	Args   []string
	Exit   int
	Stderr string
}

func (e *CLIError) Error() string {
	return fmt.Sprintf("drover %s: exit %d: %s", strings.Join(e.Args, " "), e.Exit, strings.TrimSpace(e.Stderr))
}

// Drover runs the CLI and gives what it printed. A failure is a *CLIError.
func (l *Lab) Drover(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.Bin, "drover"), args...)
	cmd.Env = append(os.Environ(), "TEMPORAL_ADDRESS="+l.TemporalAddress, "TEMPORAL_NAMESPACE=default")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.Bytes(), &CLIError{Args: args, Exit: exit.ExitCode(), Stderr: errOut.String() + out.String()}
	}
	if err != nil {
		return nil, fmt.Errorf("drover %s: %w", strings.Join(args, " "), err)
	}
	return out.Bytes(), nil
}

// DroverJSON runs the CLI with --json and decodes what it printed.
func (l *Lab) DroverJSON(ctx context.Context, into any, args ...string) error {
	out, err := l.Drover(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("drover %s --json: %w in %.200q", strings.Join(args, " "), err, out)
	}
	return nil
}

// token asks the configuration server for a one-time token and keeps it in a file.
func (l *Lab) token(ctx context.Context, file string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(l.Bin, "drover-config-server"),
		append([]string{"token", "--state", l.Path("config-server")}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("issue a token (%s): %w", strings.Join(args, " "), err)
	}
	return os.WriteFile(file, bytes.TrimSpace(out), 0o600)
}
