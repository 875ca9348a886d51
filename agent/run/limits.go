package run

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"drover/agent/controlapi"
	"drover/datapath/checksum"
)

// What a thread's place among those who want a disk is made of; linux/ioprio.h.
const (
	ioWhoProcess = 1
	ioBestEffort = 2 << 13
	ioLowest     = 7
)

// outsideHeap is what a process of ours has beside its heap, in bytes: the program
// itself, stacks, what the collector has not given back yet.
const outsideHeap = 16 << 20

// bitsPerBlock is what the agent keeps of each block of a disk: a checksum and a mark.
const bitsPerBlock = 64 + 2

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

// keepMemory makes the garbage collector keep to what the assignment needs, unless the
// operator has set a limit in the environment.
func (a *Agent) keepMemory(as controlapi.Assignment) {
	if a.config.Limits.Memory == 0 || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	limit := HeapLimit(int64(a.config.Limits.Memory), as.Disks)
	if a.memory.Swap(limit) != limit {
		debug.SetMemoryLimit(limit)
	}
}

// HeapLimit is what the Go heap shall stay within so that the process stays within
// [MemoryLimit], in bytes. What needs more gets it: the collector only works harder.
func HeapLimit(base int64, disks []controlapi.Disk) int64 {
	return MemoryLimit(base, disks) - outsideHeap
}

// MemoryLimit is what the process shall stay within for the disks, in bytes.
func MemoryLimit(base int64, disks []controlapi.Disk) int64 {
	for _, d := range disks {
		base += checksum.Blocks(max(d.Size, 0)) * bitsPerBlock / 8
	}
	return base
}
