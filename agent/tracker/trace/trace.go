//go:build linux

package trace

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
)

// Options of a source. The zero value is what agents use.
type Options struct {
	// RingBytes bounds the ring of each CPU. 0 shares ringBudget among the CPUs.
	RingBytes int
	// Period is how often the rings are emptied between two drains; 0 is [period].
	Period time.Duration
}

const (
	ringBudget = 64 << 20 // bytes of all CPUs' rings together
	minRing    = 512 << 10
	maxRing    = 4 << 20
	period     = 50 * time.Millisecond
)

// Source implements changes.Source.
type Source struct {
	fs       *tracefs
	instance string
	ring     *ring
	sys      string
	begun    time.Time

	mu       sync.Mutex
	devices  []*device
	byNumber map[uint32]*device
	enabled  bool              // the kernel traces
	set      map[string]string // the instance's files that say what is traced, as they were after Follow
	at       int64             // when what is being read had happened at the latest, since begun
	seen     map[string]uint64
	broken   error // why the reader between drains ended

	stop chan struct{}
	done sync.WaitGroup
}

var _ changes.Source = (*Source)(nil)

// Open begins to trace; nothing is traced before Follow.
func Open(o Options) (*Source, error) {
	s, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open the trace source: %w", explain(err))
	}
	return s, nil
}

func open(o Options) (s *Source, err error) {
	s = &Source{sys: sysfs, begun: time.Now(), byNumber: map[uint32]*device{}, seen: map[string]uint64{}, stop: make(chan struct{})}
	if s.fs, err = openTracefs(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	if err := s.fs.check(); err != nil {
		return nil, err
	}
	if err := s.fs.removeLeftovers(); err != nil {
		return nil, err
	}
	about, err := s.fs.describe()
	if err != nil {
		return nil, err
	}
	if s.instance, err = s.fs.makeInstance(); err != nil {
		return nil, err
	}
	if err := s.configure(o.RingBytes); err != nil {
		return nil, err
	}
	if s.ring, err = openRing(about, s.instance); err != nil {
		return nil, err
	}
	if o.Period <= 0 {
		o.Period = period
	}
	s.done.Go(func() { s.follow(o.Period) })
	return s, nil
}

// configure sets the instance up.
func (s *Source) configure(bytes int) error {
	if bytes <= 0 {
		bytes = min(max(ringBudget/runtime.NumCPU(), minRing), maxRing)
	}
	settings := []struct {
		name, value string
		newer       bool // not all kernels have it
	}{
		{"trace_clock", clock, false},
		{"buffer_size_kb", strconv.Itoa(max(bytes>>10, 1)), false},
		{"options/overwrite", "0", false},     // a full ring takes nothing more, and counts that
		{"options/pause-on-trace", "0", true}, // since 5.9
	}
	for _, x := range settings {
		err := writeText(filepath.Join(s.instance, x.name), x.value)
		if err != nil && (!x.newer || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("set %s of the trace instance to %s: %w", x.name, x.value, err)
		}
	}
	return nil
}

// Name is the source's name.
func (s *Source) Name() string { return Name }

// Close ends the tracing.
func (s *Source) Close() error {
	close(s.stop)
	s.done.Wait()
	if err := s.release(); err != nil {
		return fmt.Errorf("close the trace source: %w", err)
	}
	return nil
}

// release gives back what the source has, as far as it came.
func (s *Source) release() error {
	var errs []error
	if s.ring != nil {
		errs = append(errs, s.ring.close())
	}
	if s.instance != "" {
		if err := unix.Rmdir(s.instance); err != nil {
			errs = append(errs, fmt.Errorf("remove the trace instance: %w", err))
		}
	}
	return errors.Join(append(errs, s.fs.close())...)
}

// follow empties the rings from time to time, so that they do not overflow between two
// drains.
func (s *Source) follow(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if s.enabled {
			if err := s.read(now()); err != nil {
				s.broken = err
			}
		}
		s.mu.Unlock()
	}
}

// now is the time of the ring's clock.
func now() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // Linux has this clock
	}
	return uint64(t.Nano())
}

// Follow follows these devices and no others.
func (s *Source) Follow(list []changes.Device) ([]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := make([]bool, len(list))
	devices, byNumber := make([]*device, 0, len(list)), map[uint32]*device{}
	for i, want := range list {
		d, err := newDevice(s.sys, want)
		if err != nil {
			return nil, fmt.Errorf("follow the writes to %s: %w", want.Path, err)
		}
		n := number(want.Major, want.Minor)
		if byNumber[n] != nil {
			return nil, fmt.Errorf("follow the writes to %s: it is named twice", want.Path)
		}
		if old := s.byNumber[n]; old != nil && old.same(d) {
			old.Path, d, kept[i] = want.Path, old, true
		}
		devices, byNumber[n] = append(devices, d), d
	}
	// What happened before must not be lost for those that stay, nor be counted for others.
	if err := s.update(); err != nil {
		return nil, err
	}
	s.devices, s.byNumber = devices, byNumber
	if err := s.choose(); err != nil {
		s.ring.gap.add(0, "what is traced could not be set: %v", err)
		return nil, fmt.Errorf("follow the writes to %d disks: %w", len(list), err)
	}
	return kept, nil
}

// Drain adds what may have changed on a device.
func (s *Source) Drain(i int, into changes.Bitmap) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i < 0 || i >= len(s.devices) {
		return fmt.Errorf("drain device %d: %d are followed", i, len(s.devices))
	}
	d := s.devices[i]
	if len(into) < len(d.changed) {
		return fmt.Errorf("drain %s: a bitmap of %d words where it takes %d", d.Path, len(into), len(d.changed))
	}
	if err := s.update(); err != nil {
		return fmt.Errorf("drain %s: %w", d.Path, err)
	}
	d.drain(s.at, into)
	return nil
}

// update reads all that has happened before it was called.
func (s *Source) update() error {
	if s.broken != nil {
		return s.broken
	}
	if !s.enabled {
		return nil
	}
	until := now()
	if err := s.ring.count(); err != nil {
		return err
	}
	return s.read(until)
}

// read takes what happened until then, which is over.
func (s *Source) read(until uint64) error {
	s.at = int64(time.Since(s.begun))
	return s.ring.read(until, s.take)
}

// Gap says why writes may have been missed.
func (s *Source) Gap() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.update(); err != nil {
		return "", fmt.Errorf("look for lost trace events: %w", err)
	}
	if err := s.untouched(); err != nil {
		return "", fmt.Errorf("look for lost trace events: %w", err)
	}
	return s.ring.gap.take(), nil
}

// Memory gives plain memory, which lives as long as the device is followed.
func (s *Source) Memory(i int, name string, n int) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i < 0 || i >= len(s.devices) || n < 0 || !memoryName(name) {
		return nil, false, fmt.Errorf("memory %q of %d bytes of device %d: no such name, size or device", name, n, i)
	}
	memory := s.devices[i].memory
	mem, ok := memory[name]
	if ok && len(mem) != n {
		return nil, false, fmt.Errorf("memory %q of %s: it has %d bytes, not %d", name, s.devices[i].Path, len(mem), n)
	}
	if !ok {
		mem = make([]byte, n)
		memory[name] = mem
	}
	return mem, ok, nil
}

func memoryName(name string) bool {
	other := func(r rune) bool { return r < 'a' || r > 'z' }
	return len(name) >= 1 && len(name) <= 8 && !strings.ContainsFunc(name, other)
}

// Counters are what was counted since the source began.
func (s *Source) Counters() (map[string]uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]uint64{"lost": s.ring.gap.lost, "pages": s.ring.pages, "pending": 0}
	for name, n := range s.seen {
		out[name] = n
	}
	for _, d := range s.devices {
		out["pending"] += uint64(d.flights.count)
	}
	return out, nil
}
