//go:build linux

package freeze

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockMemory keeps what memory the process touches from being paged out, now and
// later; it makes it use no more than that.
func LockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock the memory: %w", err)
	}
	return nil
}

// guardNice is the guard's priority: the agent's own is low, and those who wait for the
// file systems wait for the guard.
const guardNice = -10

// comeFirst gives the process the priority, and ordinary turns at the disks. It needs
// no more than an attempt.
func comeFirst() {
	const whoProcess, bestEffort, ordinary = 1, 2 << 13, 4
	threads, err := list("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, guardNice)
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), bestEffort|ordinary)
		}
	}
}

// lockCode brings all code of the program into memory, and keeps it there: no page of
// it must be read from a disk that is busy.
func lockCode() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasPrefix(fields[1], "r-x") || !strings.HasPrefix(fields[5], "/") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, uintptr(begin), uintptr(end-begin), 0); errno != 0 {
			return errno
		}
	}
	return nil
}
