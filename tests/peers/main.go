// Command drover-peers measures Drover beside the tools that people move disks with,
// on the same machine, the same disks and in the same run, and prints one table. A
// goal that is missed is printed, and is no failure; a copy that is not the same is.
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
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "drover-peers:", err)
		os.Exit(1)
	}
}

// row is one line of the table.
type row struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured"`
	Goal     float64 `json:"goal"`
	Most     bool    `json:"most"` // the goal is a limit, not a least
	Unit     string  `json:"unit"`
	Note     string  `json:"note,omitempty"`
}

func (r row) met() bool { return r.Most == (r.Measured <= r.Goal) || r.Measured == r.Goal }

func (r row) String() string {
	sign, word := ">=", "met"
	if r.Most {
		sign = "<="
	}
	if !r.met() {
		word = "MISSED"
	}
	return fmt.Sprintf("%-52s %10.2f  %s %8.2f  %-8s %-6s  %s", r.Name, r.Measured, sign, r.Goal, r.Unit, word, r.Note)
}

// bench is one run.
type bench struct {
	self, dir string
	size      int64
	runs      int
	seconds   int
	ssh       func(argv ...string) *exec.Cmd
	rows      []row
	images    map[string]string
	n         int // directories made
}

func run(ctx context.Context, args []string) error {
	if len(args) == 3 && args[1] == "--dir" {
		switch args[0] {
		case "serve":
			return serve(ctx, args[2])
		case "agent":
			return agents(ctx, args[2])
		}
	}
	flags := flag.NewFlagSet("drover-peers", flag.ContinueOnError)
	dir := flags.String("dir", "", "directory for all disks, of peers and ours (default: /dev/shm if it has room, else the temporary one)")
	mib := flags.Int64("mib", 2048, "size of the disks")
	runs := flags.Int("runs", 5, "runs of each measurement; the median counts")
	seconds := flags.Int("seconds", 20, "how long the sustained writes last")
	only := flags.String("only", "", "a regular expression of the measurements to make")
	out := flags.String("json", "", "file to write the table to, for programs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b := &bench{self: self, size: *mib << 20, runs: *runs, seconds: *seconds, images: map[string]string{}}
	if b.dir, err = os.MkdirTemp(place(*dir, 8*b.size), "drover-peers-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.dir) }()
	return errors.Join(b.measure(ctx, pattern), b.write(*out))
}

// place is the directory that was asked for, or memory if there is enough of it.
func place(dir string, need int64) string {
	var st syscall.Statfs_t
	if dir == "" && syscall.Statfs("/dev/shm", &st) == nil && int64(st.Bavail)*st.Bsize > need {
		return "/dev/shm"
	}
	return dir
}

func (b *bench) write(path string) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(b.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

func (b *bench) measure(ctx context.Context, only *regexp.Regexp) error {
	fmt.Printf("# %d processors, disks of %d MiB in %s, %d runs each, medians\n", runtime.NumCPU(), b.size>>20, filepath.Dir(b.dir), b.runs)
	for _, m := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"initial", b.initial}, {"efficiency", b.efficiency}, {"resync", b.resyncs}, {"half", b.half}, {"delta", b.delta}, {"memory", b.memory},
	} {
		if !only.MatchString(m.name) {
			continue
		}
		if err := errors.Join(b.warm(), m.do(ctx)); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

const (
	// warmDisks is how many disks' worth of memory the files of a measurement take.
	warmDisks  = 4
	tmpfsMagic = 0x01021994 // statfs(2)
)

// warm writes a file as large as what is measured next and removes it, where files
// are in memory. A virtual machine gets memory that it has not used lately from its
// host, page by page: that takes longer than all that is measured here.
func (b *bench) warm() (err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(b.dir, &st); err != nil || st.Type != tmpfsMagic {
		return err
	}
	path := filepath.Join(b.dir, "warm")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	page := make([]byte, 1<<20)
	for n := int64(0); n < warmDisks*b.size; n += int64(len(page)) {
		if _, err := f.Write(page); err != nil {
			return fmt.Errorf("take memory for the measurement: %w", err)
		}
	}
	return nil
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Println(r)
}

func (b *bench) note(format string, args ...any) { fmt.Fprintf(os.Stderr, "  "+format+"\n", args...) }

// sub makes a directory.
func (b *bench) sub(name string) (string, error) {
	b.n++
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d", name, b.n))
	return dir, os.Mkdir(dir, 0o700)
}

func median[T int64 | float64](values []T) T {
	s := slices.Clone(values)
	slices.Sort(s)
	return s[len(s)/2]
}

func missing(tools ...string) string {
	var out []string
	for _, t := range tools {
		if _, err := exec.LookPath(t); err != nil {
			out = append(out, t)
		}
	}
	return strings.Join(out, " ")
}
