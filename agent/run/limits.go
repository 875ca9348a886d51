package run

import (
	"os"
	"runtime/debug"

	"drover/agent/controlapi"
	"drover/datapath/checksum"
)

// outsideHeap is what a process of ours has beside its heap, in bytes: the program
// itself, stacks, what the collector has not given back yet.
const outsideHeap = 16 << 20

// bitsPerBlock is what the agent keeps of each block of a disk: a checksum and a mark.
const bitsPerBlock = 64 + 2

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
