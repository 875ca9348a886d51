// Command cover reads the coverage profile of the data path's tests, prints how much of
// each package's code ran, and fails when too little of all of it did. What exists for
// tests alone does not count.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// helpers are packages for tests.
var helpers = []string{"drover/datapath/replica/replicatest", "drover/datapath/vfs/crashfs", "drover/datapath/wire/wiretest"}

// part is how many statements a package has, and how many of them ran.
type part struct{ all, ran int }

func (p part) percent() float64 { return 100 * float64(p.ran) / float64(max(p.all, 1)) }

func (p *part) add(statements int, ran bool) {
	p.all += statements
	if ran {
		p.ran += statements
	}
}

func main() {
	least := flag.Float64("least", 85, "percent of the statements that must have run")
	flag.Parse()
	if err := run(flag.Arg(0), *least); err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(1)
	}
}

func run(profile string, least float64) error {
	f, err := os.Open(profile)
	if err != nil {
		return fmt.Errorf("open the profile (go test -coverprofile makes it): %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	packages, err := read(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", profile, err)
	}
	total := report(os.Stdout, packages)
	if total.percent() < least {
		return fmt.Errorf("%.1f %% of the statements ran, it must be %g %%; `go tool cover -html %s` shows which did not", total.percent(), least, profile)
	}
	return nil
}

// read adds up a profile by package. Each test binary has its own lines for the same
// block; it ran if it did in one of them.
func read(r io.Reader) (map[string]part, error) {
	type block struct {
		statements int
		ran        bool
	}
	blocks := map[string]block{}
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := in.Text()
		if strings.HasPrefix(line, "mode:") {
			continue
		}
		f := strings.Fields(line) // file.go:1.2,3.4 statements count
		if len(f) != 3 || !strings.Contains(f[0], ":") {
			return nil, fmt.Errorf("%q is no line of a profile", line)
		}
		statements, err := strconv.Atoi(f[1])
		count, err2 := strconv.Atoi(f[2])
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		blocks[f[0]] = block{statements, count > 0 || blocks[f[0]].ran}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	packages := map[string]part{}
	for at, b := range blocks {
		file, _, _ := strings.Cut(at, ":")
		p := packages[path.Dir(file)]
		p.add(b.statements, b.ran)
		packages[path.Dir(file)] = p
	}
	if len(packages) == 0 {
		return nil, errors.New("nothing is in it")
	}
	return packages, nil
}

// report prints the table and gives the sum.
func report(w io.Writer, packages map[string]part) part {
	var total part
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		p := packages[name]
		if p.all == 0 {
			continue
		}
		note := ""
		if slices.Contains(helpers, name) {
			note = "  (for tests; not counted)"
		} else {
			total.all += p.all
			total.ran += p.ran
		}
		_, _ = fmt.Fprintf(w, "%-38s %5.1f %% of %4d statements%s\n", name, p.percent(), p.all, note)
	}
	_, _ = fmt.Fprintf(w, "%-38s %5.1f %% of %4d statements\n", "all", total.percent(), total.all)
	return total
}
