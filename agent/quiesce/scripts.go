package quiesce

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of scripts.
const (
	DefaultScriptTimeout = 30 * time.Second
	maxScripts           = 64
)

// Scripts are the programs of a directory that bring applications into a state in
// which a cut is more than crash-consistent. They are called with the phase as their
// only argument: freeze in the order of their names, thaw in the reverse order. thaw
// is called for every script, also when its freeze has failed or was not reached.
type Scripts struct {
	Dir     string
	Timeout time.Duration // of each; 0 is DefaultScriptTimeout
	Logger  *slog.Logger
}

func (s Scripts) timeout() time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	return DefaultScriptTimeout
}

// List gives the scripts in order. A directory that is not there has none. A file that
// anybody but root may change is an error, for all of them: whoever can write there
// could run what he likes as root.
func (s Scripts) List() ([]string, error) {
	if s.Dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("scripts: %w", err)
	}
	if err := safePath(s.Dir); err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(s.Dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		info, err := os.Lstat(path)
		if err != nil {
			return nil, fmt.Errorf("scripts: %w", err)
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("scripts: %s is no regular file; put the script itself there, not a link", path)
		}
		if info.Mode().Perm()&0o111 == 0 {
			continue // a text that explains
		}
		if err := safe(path, info); err != nil {
			return nil, err
		}
		out = append(out, path)
	}
	if len(out) > maxScripts {
		return nil, fmt.Errorf("scripts: %d in %s, at most %d", len(out), s.Dir, maxScripts)
	}
	return out, nil
}

// safePath checks the directory and all above it.
func safePath(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("scripts: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return fmt.Errorf("scripts: %w", err)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("scripts: %s is a link; name the directory itself", at)
		}
		sticky := at != dir && info.Mode()&fs.ModeSticky != 0 // as /tmp: nobody renames what is another's
		if !sticky {
			err = safe(at, info)
		}
		if err != nil || at == "/" {
			return err
		}
	}
}

// freeze runs the scripts until one fails.
func (s Scripts) freeze(ctx context.Context, list []string, c Cut) error {
	for _, path := range list {
		if err := s.run(ctx, path, phaseFreeze, c); err != nil {
			return err
		}
	}
	return nil
}

// thaw runs all, in reverse order, whatever becomes of them.
func (s Scripts) thaw(ctx context.Context, list []string, c Cut) (err error) {
	for _, path := range slices.Backward(list) {
		err = errors.Join(err, s.run(context.WithoutCancel(ctx), path, phaseThaw, c))
	}
	return err
}

func (s Scripts) run(ctx context.Context, path, phase string, c Cut) error {
	begin := time.Now()
	out, err := runProgram(ctx, []string{path, phase}, phase, c, s.timeout())
	if s.Logger == nil {
		return err
	}
	log := s.Logger.With("script", filepath.Base(path), "phase", phase, "took", time.Since(begin).String(), "output", out)
	if err != nil {
		log.Error("a script failed", "error", err.Error())
	} else {
		log.Info("a script was run")
	}
	return err
}
