package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/datapath/wire/wiretest"
	"drover/tests/ports"
)

// limit bounds every wait of a measurement.
const limit = 5 * time.Minute

// ours is one of our pairs of processes, agent and process server.
type ours struct {
	*world
	self   string // this program
	serve  *exec.Cmd
	resync io.WriteCloser
	agent  *exec.Cmd

	mu      sync.Mutex
	status  map[ident.MachineID]stream.Status
	changed chan struct{}
}

// newOurs makes the machines, each with a disk of the image's content, and starts
// the server.
func newOurs(self, dir string, choice codec.Choice, images ...string) (*ours, error) {
	address, err := ports.Free()
	if err != nil {
		return nil, err
	}
	w := &world{Dir: dir, Address: address, Choice: choice, Cut: time.Hour}
	for i, image := range images {
		size, err := sizeOf(image)
		if err != nil {
			return nil, err
		}
		w.Machines = append(w.Machines, machine{ID: ident.NewMachineID("peers", strconv.Itoa(i)), Path: image, Size: size})
	}
	wiretest.NewCA(fatal{}).Save(dir)
	return &ours{world: w, self: self, status: map[ident.MachineID]stream.Status{}, changed: make(chan struct{}, 1)}, w.save()
}

// sizeOf is the size of an image or a device.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	return f.Seek(0, io.SeekEnd)
}

// start starts the server and waits until it listens.
func (o *ours) start(ctx context.Context) error {
	o.serve = exec.CommandContext(ctx, o.self, "serve", "--dir", o.Dir)
	o.serve.Stderr = os.Stderr
	in, err := o.serve.StdinPipe()
	if err != nil {
		return err
	}
	o.resync = in
	out, err := o.serve.StdoutPipe()
	if err != nil {
		return err
	}
	if err := o.serve.Start(); err != nil {
		return err
	}
	go o.read(out) // ends with the server's output
	_, err = o.await(ctx, "the server", func(stream.Status) bool { return true })
	return err
}

func (o *ours) read(r io.Reader) {
	in := json.NewDecoder(bufio.NewReader(r))
	for {
		var st stream.Status
		if in.Decode(&st) != nil {
			return
		}
		o.mu.Lock()
		o.status[st.Machine] = st
		o.mu.Unlock()
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
}

// await waits until all machines are so, and gives the first one's status.
func (o *ours) await(ctx context.Context, what string, ready func(stream.Status) bool) (stream.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		o.mu.Lock()
		n := 0
		for _, st := range o.status {
			if ready(st) {
				n++
			}
		}
		first := o.status[o.Machines[0].ID]
		o.mu.Unlock()
		if n == len(o.Machines) {
			return first, nil
		}
		select {
		case <-o.changed:
		case <-ctx.Done():
			return first, fmt.Errorf("wait for %s: %w (%+v)", what, ctx.Err(), first)
		}
	}
}

func complete(st stream.Status) bool { return st.Complete && st.Points > 0 }

// stream starts the agents, waits until it is so, and gives how long it took.
func (o *ours) stream(ctx context.Context, what string, ready func(stream.Status) bool) (time.Duration, stream.Status, error) {
	begin := time.Now()
	o.agent = exec.CommandContext(ctx, o.self, "agent", "--dir", o.Dir)
	o.agent.Stderr = os.Stderr
	if err := o.agent.Start(); err != nil {
		return 0, stream.Status{}, err
	}
	st, err := o.await(ctx, what, ready)
	return time.Since(begin), st, err
}

// peak is the most memory that a process has had, in bytes.
func peak(c *exec.Cmd) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// end stops a process and gives the CPU time it took.
func end(c *exec.Cmd) (time.Duration, error) {
	if c == nil || c.Process == nil {
		return 0, nil
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, err
	}
	err := c.Wait()
	return c.ProcessState.UserTime() + c.ProcessState.SystemTime(), err
}

// stop ends both processes and gives their CPU time.
func (o *ours) stop() (time.Duration, error) {
	a, err := end(o.agent)
	o.agent = nil
	if o.resync != nil {
		_ = o.resync.Close()
	}
	b, serveErr := end(o.serve)
	o.serve = nil
	return a + b, errors.Join(err, serveErr)
}

// same compares every replica with its disk.
func (o *ours) same() error {
	for _, m := range o.Machines {
		if err := sameFiles(m.Path, filepath.Join(o.Dir, "store", "machines", m.ID.String(), "disks", m.disk().String()+".img")); err != nil {
			return err
		}
	}
	return nil
}

func sameFiles(a, b string) error {
	f, err := os.Open(a)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	g, err := os.Open(b)
	if err != nil {
		return err
	}
	defer func() { _ = g.Close() }()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(x)) {
		n, err := f.ReadAt(x, at)
		m, _ := g.ReadAt(y, at)
		if n != m || string(x[:n]) != string(y[:m]) {
			return fmt.Errorf("%s and %s differ between %d and %d", a, b, at, at+int64(len(x)))
		}
		if err != nil {
			return nil
		}
	}
}
