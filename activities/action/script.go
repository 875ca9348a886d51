package action

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"drover/workflows/api"
)

// Script runs a script to its end. It fails with the end of the output when the
// script's exit code is not 0. Cancelled or out of time, the script gets SIGTERM,
// then SIGKILL, with all it started.
func (a *Activities) Script(ctx context.Context, in api.ScriptInput) (api.ActionOutput, error) {
	path, err := a.script(in.Script)
	if err != nil {
		return api.ActionOutput{}, err
	}
	ctx, stop := beat(ctx)
	defer stop()
	out := &tail{max: maxOutput}
	cmd := exec.CommandContext(ctx, path, in.Script.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = a.config.Scripts, out, out
	cmd.Env = environment(in)
	after := confined(cmd, a.as, a.config.Logger)
	begun := time.Now()
	err = cmd.Run()
	after()
	result := api.ActionOutput{Output: out.String(), Took: api.Duration(time.Since(begun))}
	if cmd.ProcessState != nil {
		result.Exit = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return result, failedAction(ctx.Err(), "script %s was stopped after %s: %s", in.Script.File, result.Took, context.Cause(ctx))
	case errors.As(err, &exit):
		return result, failedAction(nil, "script %s ended with exit code %d: %s", in.Script.File, result.Exit, last(result.Output))
	case errors.Is(err, exec.ErrWaitDelay):
		return result, failedAction(err, "script %s ended, but something that it started kept its output open", in.Script.File)
	case err != nil:
		return result, failedAction(err, "script %s could not be run: %s", in.Script.File, err)
	}
	a.config.Logger.Info("script ran", "script", in.Script.File, "plan", in.Plan, "step", in.Step, "took", result.Took.String())
	return result, nil
}

// script gives the path of a script that may be run.
func (a *Activities) script(s api.ScriptAction) (string, error) {
	name := s.File
	if a.config.Scripts == "" {
		return "", invalid("script %s: the configuration server has no script directory; name one as scripts in its configuration", name)
	}
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return "", invalid("script %q: want the plain name of a file in the script directory", name)
	}
	if why := changeable(a.config.Scripts); why != "" {
		return "", invalid("script %s: the script directory %s", name, why)
	}
	path := filepath.Join(a.config.Scripts, name)
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return "", invalid("script %s is not in the script directory: %s", name, errors.Unwrap(err))
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return "", invalid("script %s is not an executable regular file (%s)", name, info.Mode())
	}
	if why := changeable(path); why != "" {
		return "", invalid("script %s %s", name, why)
	}
	if s.SHA256 == "" {
		return path, nil
	}
	got, err := digest(path)
	switch {
	case err != nil:
		return "", invalid("script %s cannot be read: %s", name, errors.Unwrap(err))
	case got != s.SHA256:
		return "", invalid("script %s is not what the plan pins: its sha256 is %s, the plan says %s; look who changed it, then apply the plan with the new one", name, got, s.SHA256)
	}
	return path, nil
}

// changeable says why others than we and root could change what is run; "" when they cannot.
func changeable(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return "cannot be looked at: " + errors.Unwrap(err).Error()
	}
	owner := -1
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(s.Uid)
	}
	switch {
	case info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSymlink == 0:
		return "can be changed by others (" + info.Mode().String() + "): remove the write permission of group and others"
	case owner != 0 && owner != os.Geteuid():
		return "belongs to another user: give it to root"
	}
	return ""
}

// digest is the file's SHA-256 in hex.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// environment tells the script what it runs for; nothing of ours is passed on.
func environment(in api.ScriptInput) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/", "LANG=C.UTF-8",
		"DROVER_PLAN=" + in.Plan, "DROVER_RUN=" + in.Run, "DROVER_STEP=" + in.Step, "DROVER_KIND=" + string(in.Kind),
	}
}

func last(output string) string {
	if s := strings.TrimSpace(output); s != "" {
		return s
	}
	return "(it printed nothing)"
}
