// Command run fuzzes every target of the module for some time each, and fails when
// one finds something. Targets are found in the source; there is no list to keep.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	buildTime = 4 * time.Minute // what a target may take beyond its time, to be built and to make a find small
	minimize  = "50x"           // tries to make an input small; by time it would take most of it
)

// target is one fuzz function.
type target struct{ pkg, name string }

func (t target) String() string { return t.pkg + " " + t.name }

func main() {
	each := flag.Duration("time", 20*time.Second, "how long each target is fuzzed")
	jobs := flag.Int("jobs", 2, "how many run at a time, each on one processor")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *each, *jobs)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, each time.Duration, jobs int) error {
	if each <= 0 || jobs < 1 {
		return fmt.Errorf("-time %s -jobs %d: both must be positive", each, jobs)
	}
	all, err := targets(ctx, ".")
	if err != nil {
		return err
	}
	start := time.Now()
	todo := make(chan target)
	failed := make(chan target, len(all))
	var wg sync.WaitGroup
	for range jobs {
		wg.Go(func() {
			for t := range todo {
				if !t.fuzz(ctx, each) {
					failed <- t
				}
			}
		})
	}
	for _, t := range all {
		todo <- t
	}
	close(todo)
	wg.Wait()
	close(failed)
	var errs []error
	for t := range failed {
		errs = append(errs, fmt.Errorf("%s failed; its input is in testdata/fuzz and is tried by every go test from now on", t))
	}
	fmt.Printf("%d targets, %s each, took %s\n", len(all), each, time.Since(start).Round(time.Second))
	return errors.Join(append(errs, ctx.Err())...)
}

// targets gives the fuzz functions of the module's packages, in order.
func targets(ctx context.Context, dir string) ([]target, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w", err)
	}
	var all []target
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("list the packages: %w", err)
		}
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
					all = append(all, target{p.ImportPath, f.Name.Name})
				}
			}
		}
	}
}

var lastCount = regexp.MustCompile(`execs: (\d+)`)

// fuzz runs the target and says whether it found nothing.
func (t target) fuzz(ctx context.Context, each time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, each+buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", each.String(),
		"-fuzzminimizetime", minimize, "-parallel", "1", t.pkg)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	text := string(out)
	// The go command may take the end of the time for a failure while it is busy.
	ended := strings.Contains(text, "context deadline exceeded") && !strings.Contains(text, "Failing input") && ctx.Err() == nil
	if err != nil && !ended {
		fmt.Printf("FAIL %s\n%s%v\n", t, text, err)
		return false
	}
	count := "0"
	if all := lastCount.FindAllStringSubmatch(text, -1); len(all) > 0 {
		count = all[len(all)-1][1]
	}
	fmt.Printf("ok   %s: %s inputs\n", t, count)
	return true
}
