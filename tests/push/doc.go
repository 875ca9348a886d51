// Package push installs the agent in guests over a real sshd, and through a simulated vCenter
// by VMware Tools. Guests are containers with a private copy of this system's files and
// processes of their own (tests/vsim/docker); the vCenter runs its VM's itself.
package push
