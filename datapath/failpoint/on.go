//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether the program was built with the tag failpoint.
const Enabled = true

// place is where to end, when it is reached for the count-th time.
var (
	place, count = parse(os.Getenv(Variable))
	hits         atomic.Int64
)

func parse(v string) (string, int64) {
	if v == "" {
		return "", 0
	}
	name, number, _ := strings.Cut(v, ":")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || !slices.Contains(slices.Concat(Names, Enrolment, Freeze, PageBlobNames), name) {
		fmt.Fprintf(os.Stderr, "%s=%q: want a place and how often it is reached, as %s:1\n", Variable, v, Ack)
		os.Exit(2)
	}
	return name, n
}

// Hit says that a place is reached. The process ends there, as if it was killed
// from outside, when it was asked to.
func Hit(name string) {
	if name != place || hits.Add(1) != count {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
