// Package guest tests the agent's change tracking inside a real guest: a stock Debian
// cloud kernel under QEMU, without virtualisation by the processor. It boots from an
// initramfs that has one program, init, and a few of the kernel's modules; the program
// writes to a virtual disk in all the ways there are, and compares what the sources of
// changes say with what is on the disk. So the sources are shown to work on another
// kernel than the one the tests run on, on another kind of disk, and on partitions.
package guest
