//go:build linux

package trace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxCPUs is how many rings are read at most.
const maxCPUs = 8192

// ring is the instance's ring buffer: one ring for each CPU. Reading merges them in the
// order of time.
type ring struct {
	about *description
	cpus  []*cpu
	live  []*cpu // those that have a next event, while they are being merged
	gap   gap
	pages uint64
}

// openRing opens the rings of all CPUs that the machine may ever have.
func openRing(about *description, dir string) (r *ring, err error) {
	list, err := os.ReadDir(filepath.Join(dir, "per_cpu"))
	if err != nil {
		return nil, fmt.Errorf("list the trace rings: %w", err)
	}
	r = &ring{about: about}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if len(list) == 0 || len(list) > maxCPUs {
		return nil, fmt.Errorf("the kernel has trace rings for %d CPUs", len(list))
	}
	for _, entry := range list {
		n, err := strconv.Atoi(strings.TrimPrefix(entry.Name(), "cpu"))
		if err != nil {
			return nil, fmt.Errorf("%s is no CPU's trace ring", entry.Name())
		}
		c, err := openCPU(n, filepath.Join(dir, "per_cpu", entry.Name()), about.page.size)
		if err != nil {
			return nil, err
		}
		r.cpus = append(r.cpus, c)
	}
	return r, nil
}

func (r *ring) close() error {
	var errs []error
	for _, c := range r.cpus {
		errs = append(errs, unix.Close(c.pipe), unix.Close(c.stats))
	}
	return errors.Join(errs...)
}

// count asks the kernel how many events it has for us and how many it has lost. What
// it has counted by now, the next read gives, also if a writer is not done with it.
func (r *ring) count() error {
	for _, c := range r.cpus {
		s, err := c.readStats()
		if err != nil {
			return err
		}
		c.owed = c.seen + s.entries
		if lost := s.lost(); lost > c.lost {
			r.gap.add(lost-c.lost, "the trace ring of CPU %d was full and lost %d events; it is read too rarely or is too small", c.n, lost-c.lost)
			c.lost = lost
		}
	}
	return nil
}

// read gives what happened up to a moment of the ring's clock, in order.
func (r *ring) read(until uint64, take func(record)) error {
	r.live = r.live[:0]
	for _, c := range r.cpus {
		if err := r.advance(c); err != nil {
			return err
		}
		if c.data != nil {
			r.live = append(r.live, c)
		}
	}
	for len(r.live) > 0 {
		first := 0
		for i, c := range r.live {
			if c.at < r.live[first].at {
				first = i
			}
		}
		c := r.live[first]
		if c.at > until {
			return nil
		}
		e, ok, err := r.about.decode(c.data)
		if c.data = nil; err != nil {
			r.gap.add(1, "%v", err)
		} else if ok {
			take(e)
		}
		if err := r.advance(c); err != nil {
			return err
		}
		if c.data == nil {
			r.live = append(r.live[:first], r.live[first+1:]...)
		}
	}
	return nil
}

// advance goes to the CPU's next event, unless it stands at one. Without data there is
// none for now.
func (r *ring) advance(c *cpu) error {
	for c.data == nil {
		var err error
		if c.at, c.data, err = c.page.next(); err != nil || c.data != nil {
			return err // count has walked the page before, so there is no error
		}
		found, err := c.fill(r.about)
		if errors.Is(err, errPage) {
			r.gap.add(1, "CPU %d: %v", c.n, err)
			continue
		}
		if err != nil || !found {
			return err
		}
		if r.pages++; c.page.missed {
			r.gap.add(0, "the trace ring of CPU %d says that it has lost events", c.n)
		}
	}
	return nil
}

// gap gathers why events may have been missed.
type gap struct {
	reasons []string
	lost    uint64 // events, ever
}

// maxReasons bounds what is told of one gap.
const maxReasons = 8

func (g *gap) add(lost uint64, format string, args ...any) {
	g.lost += lost
	if len(g.reasons) < maxReasons {
		g.reasons = append(g.reasons, fmt.Sprintf(format, args...))
	}
}

// take gives the reasons and forgets them.
func (g *gap) take() string {
	text := strings.Join(g.reasons, "; ")
	g.reasons = nil
	return text
}
