// Package ebpf is the source of changes that runs in the kernel: programs on the
// block layer's events mark in memory, one bit for 4 KiB, what was given to a disk
// and what the disk is done with. They can be pinned, so that they go on marking
// while no agent runs. DESIGN.md says why no write is missed.
package ebpf

// Name is the source's name.
const Name = "ebpf"

// DefaultDir is where the agent pins.
const DefaultDir = "/sys/fs/bpf/drover"
