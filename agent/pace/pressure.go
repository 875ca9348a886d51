package pace

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// maxPressure bounds what is read of a pressure file, in bytes.
const maxPressure = 1 << 10

// resource is something that programs wait for.
type resource struct {
	dir, name string
	limit     float64 // percent
}

// pressure is the kernel's "some" line: at least one program waited.
type pressure struct {
	avg10 float64       // percent of the last ten seconds
	total time.Duration // since boot
}

// read gives the pressure now; none where the kernel does not tell.
func (r resource) read() pressure {
	f, err := os.Open(filepath.Join(r.dir, r.name)) //nolint:gosec // one of three names
	if err != nil {
		return pressure{}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPressure))
	if errors.Join(err, f.Close()) != nil {
		return pressure{} // the kernel was booted with psi=0
	}
	return parse(string(b))
}

// parse reads "some avg10=1.23 avg60=0.50 avg300=0.10 total=123456".
func parse(text string) pressure {
	var p pressure
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "some" {
			continue
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseFloat(value, 64)
			if err != nil || n < 0 || n > 1e18 {
				continue
			}
			switch key {
			case "avg10":
				p.avg10 = n
			case "total":
				p.total = time.Duration(min(n, 9e12)) * time.Microsecond
			}
		}
	}
	return p
}

// since is the pressure of the time passed since another reading, in percent.
func (p pressure) since(before pressure, passed time.Duration) float64 {
	if passed <= 0 {
		return 0
	}
	return 100 * float64(p.total-before.total) / float64(passed)
}
