// Command init is the first and only program of the guest that tests/guest boots. It
// loads the modules that are in its initramfs, runs every source of changes over a
// virtual disk while it is written to, says on the console how that went, and switches
// the machine off.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/trace"
)

const (
	busyDisk = "/dev/vda"
	wait     = 20 * time.Second // for a disk to appear
)

// subject is a source that is tried, on a disk of its own.
type subject struct {
	name, disk, partition string
	open                  func() (changes.Source, error)
	write                 func(*judge) error
}

var subjects = []subject{
	{"control", "/dev/vdb", "/dev/vdb1", openSilent, writeAll},
	{"trace", "/dev/vdc", "/dev/vdc1", openTrace, writeAll},
	{"ebpf", "/dev/vdd", "/dev/vdd1", openEBPF, writeAll},
	{"trace-nvme", "/dev/nvme0n1", "/dev/nvme0n1p1", openTrace, trimFiles},
	{"ebpf-nvme", "/dev/nvme1n1", "/dev/nvme1n1p1", openEBPF, trimFiles},
}

func openSilent() (changes.Source, error) { return silent{}, nil }
func openTrace() (changes.Source, error)  { return trace.Open(trace.Options{}) }

// openEBPF opens the source with its programs pinned, also those of the subject before.
func openEBPF() (changes.Source, error) {
	if err := ebpf.Available(); err != nil {
		return nil, err
	}
	s, err := ebpf.Open(ebpf.DefaultDir)
	if err == nil && s.Unpinned() != "" {
		err = errors.New("it is not pinned: " + s.Unpinned())
	}
	return s, err
}

func main() {
	err := setUp()
	report("boot", err, "a kernel "+release())
	if err == nil {
		stop := makeBusy()
		for _, s := range subjects {
			begin := time.Now()
			text, err := try(s)
			report(s.name, err, fmt.Sprintf("%s, in %s", text, time.Since(begin).Round(time.Millisecond)))
		}
		stop()
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // it does not come to this
}

// report says a line that the test reads.
func report(what string, err error, text string) {
	if err != nil {
		fmt.Printf("drover: FAIL %s: %v\n", what, err)
		return
	}
	fmt.Printf("drover: PASS %s: %s\n", what, text)
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(u.Release[:])
}

// setUp mounts what programs expect, loads the modules and waits for the disks.
func setUp() error {
	for _, m := range []struct{ what, where string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tracefs", "/sys/kernel/tracing"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil { //nolint:gosec // as everywhere
			return err
		}
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	sort.Strings(modules)
	for _, name := range modules {
		if err := load(name); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	for _, s := range subjects {
		if err := await(s.partition); err != nil {
			return err
		}
	}
	return nil
}

func await(path string) error {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Since(begin) > wait {
			return err
		}
	}
}

func load(name string) error {
	f, err := os.Open(name) //nolint:gosec // of our initramfs
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// makeBusy keeps another disk and a processor busy until it is stopped.
func makeBusy() (stop func()) {
	end, done := make(chan struct{}), make(chan error, 2)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-end:
				done <- nil
				return
			default:
			}
			if n%(1<<12) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	go func() {
		w, err := openDevice(busyDisk)
		for err == nil {
			select {
			case <-end:
				done <- w.close()
				return
			default:
				err = w.write(1)
			}
		}
		done <- err
	}()
	return func() {
		close(end)
		for range cap(done) {
			if err := <-done; err != nil {
				report("busy", err, "")
			}
		}
	}
}
