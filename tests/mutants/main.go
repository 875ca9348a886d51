// Command mutants shows that the tests hold what must always hold: it takes away, one
// after the other, the pieces of code that keep the invariants of docs/ARCHITECTURE.md,
// and runs the tests that are to fail by it. A mutant that survives fails the command.
// The files themselves are not touched.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// limit bounds one mutant's tests; a test that waits for what the mutant does no more
// fails by its own limit long before.
const limit = 5 * time.Minute

func main() {
	invariant := flag.Int("invariant", 0, "only the mutants of one invariant")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *invariant); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, invariant int) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	survived, tried := 0, 0
	for _, m := range mutants {
		if invariant != 0 && m.keeps != invariant {
			continue
		}
		tried++
		begin := time.Now()
		failed, err := m.try(ctx, root)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			survived++
			failed = "NOT TRIED: " + err.Error()
		case failed == "":
			survived++
			failed = "SURVIVED " + m.test
		}
		fmt.Printf("%2d  %-70s %s (%s, %.0f s)\n", m.keeps, m.what, failed, m.in, time.Since(begin).Seconds())
	}
	if survived > 0 {
		return fmt.Errorf("%d of %d mutants survived: their tests do not fail without the code", survived, tried)
	}
	fmt.Printf("all %d mutants were caught\n", tried)
	return nil
}

// mutated gives the file's path and its text with the mutation.
func (m *mutant) mutated(root string) (path, text string, err error) {
	path = filepath.Join(root, m.file)
	b, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	if n := strings.Count(string(b), m.old); n != 1 {
		return "", "", fmt.Errorf("%s has %q %d times, want once: bring the table up to date", m.file, m.old, n)
	}
	return path, strings.Replace(string(b), m.old, m.new, 1), nil
}

// try runs the mutant's tests and gives the first that failed, or nothing.
func (m *mutant) try(ctx context.Context, root string) (failed string, err error) {
	path, text, err := m.mutated(root)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "mutant-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file, overlay := filepath.Join(dir, filepath.Base(path)), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: file}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.WriteFile(overlay, list, 0o600)); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, limit+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-count=1", "-vet=off", "-timeout", limit.String(), "-run", "^("+m.test+")", "./"+m.in) //nolint:gosec // the table's own words
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err == nil {
		if strings.Contains(string(out), "no tests to run") {
			return "", fmt.Errorf("%s has no test %s", m.in, m.test)
		}
		return "", nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	failed = firstFailure(string(out))
	if failed == "" {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return failed, nil
}

// firstFailure finds the name of a test that failed in what go test says; nothing when
// it is something else that failed, as the build.
func firstFailure(out string) string {
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			name, _, _ = strings.Cut(name, " ")
			return name
		}
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "goleak: ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
