//go:build linux

package trace

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	settle     = time.Second // how long a writer may take to be done with an event that the kernel has counted
	settleStep = 50 * time.Microsecond
	maxStats   = 4096 // bytes of a CPU's counters
)

// cpu is the ring of one CPU, and the page of it that is being read.
type cpu struct {
	n           int
	pipe, stats int // file descriptors. Reading never waits in the kernel, so that no writer has to wake us
	raw         []byte
	page        page
	seen        uint64 // events in all pages that were read
	owed        uint64 // as many the kernel has counted
	lost        uint64 // as many the kernel says it has lost

	at   uint64 // of the next event
	data []byte // the next event, nil if there is none for now
}

func openCPU(n int, dir string, pageSize int) (*cpu, error) {
	c := &cpu{n: n, raw: make([]byte, pageSize)}
	var err error
	if c.pipe, err = unix.Open(filepath.Join(dir, "trace_pipe_raw"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the trace ring of CPU %d: %w", n, err)
	}
	if c.stats, err = unix.Open(filepath.Join(dir, "stats"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("open the trace counters of CPU %d: %w", n, err), unix.Close(c.pipe))
	}
	return c, nil
}

// fill reads the next page, full or not. It is false when there is none. While the
// kernel has counted events that it does not give, because their writer was interrupted,
// it waits.
func (c *cpu) fill(about *description) (bool, error) {
	for begin := time.Now(); ; {
		n, err := unix.Read(c.pipe, c.raw)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENODEV): // a CPU that is not there yet
			return false, nil
		case err != nil && !errors.Is(err, unix.EAGAIN):
			return false, fmt.Errorf("read the trace ring of CPU %d: %w", c.n, err)
		case err == nil && n > 0:
			return true, c.open(about, c.raw[:n])
		case c.seen >= c.owed:
			return false, nil
		case time.Since(begin) >= settle:
			missing := c.owed - c.seen
			c.owed = c.seen
			return false, fmt.Errorf("%w: it does not give %d events that it has counted", errPage, missing)
		}
		time.Sleep(settleStep)
	}
}

// open takes a page that was read, after a look at all of it.
func (c *cpu) open(about *description, raw []byte) error {
	p, err := about.page.open(about.entry, raw)
	if err != nil {
		return err
	}
	n, err := p.count()
	if err != nil {
		return err
	}
	c.seen += n
	c.page = p
	return nil
}

// stats are a ring's counters.
type stats struct{ entries, overrun, commitOverrun, dropped uint64 }

// lost is how many events the ring could not take, or had to give up.
func (s stats) lost() uint64 { return s.overrun + s.commitOverrun + s.dropped }

func (c *cpu) readStats() (stats, error) {
	buf := make([]byte, maxStats)
	n, err := unix.Pread(c.stats, buf, 0)
	if err != nil {
		return stats{}, fmt.Errorf("read the trace counters of CPU %d: %w", c.n, err)
	}
	s, err := parseStats(string(buf[:n]))
	if err != nil {
		return s, fmt.Errorf("read the trace counters of CPU %d: %w", c.n, err)
	}
	return s, nil
}

func parseStats(text string) (s stats, err error) {
	want := map[string]*uint64{"entries": &s.entries, "overrun": &s.overrun, "commit overrun": &s.commitOverrun, "dropped events": &s.dropped}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		into, ok := want[name]
		if !ok {
			continue
		}
		if *into, err = strconv.ParseUint(strings.TrimSpace(value), 10, 64); err != nil {
			return s, fmt.Errorf("%q is no number of %s", value, name)
		}
		delete(want, name)
	}
	for name := range want {
		return s, fmt.Errorf("the kernel does not count %q", name)
	}
	return s, nil
}
