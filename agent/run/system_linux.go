package run

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/preflight"
	"drover/agent/quiesce"
	"drover/agent/quiesce/freeze"
)

// What a thread's place among those who want a disk is made of; linux/ioprio.h.
const (
	ioWhoProcess = 1
	ioBestEffort = 2 << 13
	ioLowest     = 7
)

// yieldToOthers puts the process behind the guest's own programs, for processors and
// disks. Threads that are made later inherit it. An error is no reason not to run.
func yieldToOthers(nice int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	var failed error
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if now, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil && 20-now < nice { // the call gives 20 - nice
			failed = errors.Join(failed, unix.Setpriority(unix.PRIO_PROCESS, tid, nice))
		}
		if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, uintptr(tid), ioBestEffort|ioLowest); e != 0 {
			failed = errors.Join(failed, e)
		}
	}
	if failed != nil {
		return fmt.Errorf("lower the priority: %w", failed)
	}
	return nil
}

// hold says with what the machine is held for a cut.
func hold(h *quiesce.Hooks, c *config.Config) {
	if !c.Freeze.Off {
		h.Freezer = &freeze.Freezer{Limit: time.Duration(c.Freeze.Limit)}
	}
}

// preflightHere looks whether this guest would boot in the target.
func preflightHere() ([]controlapi.Finding, error) { return preflight.Check("/", kernel()) }

// bootID changes with every boot.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// osName is the distribution's own name for itself.
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer func() { _ = f.Close() }() // only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
