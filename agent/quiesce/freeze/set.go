// Package freeze stops the file systems on a machine's disks for a moment, all in
// one go, and makes sure that they go on again whatever becomes of the agent.
//
//	mounts.go   what is mounted
//	devices.go  what lies on what: partitions, device mapper, md, loop devices
//	find.go     the file systems on some disks, and what cannot be frozen there
//	openers.go  who writes to a device without a file system
//	process.go  the guard: a process that freezes, and thaws in time
//	freeze.go   the agent's side of it
//	set.go      what the system does not matter for; all else is Linux's
//	recover.go  what was left frozen
//	memory.go   locked memory
package freeze

import (
	"errors"
	"time"
)

// Verb is the hidden verb of the agent that is the guard process.
const Verb = "freeze-guard"

// Bounds of how long file systems stay frozen.
const (
	DefaultLimit = 2 * time.Second
	MinLimit     = 100 * time.Millisecond
	MaxLimit     = 30 * time.Second
)

// ErrBusy is wrapped when a file system is frozen already, by somebody else.
var ErrBusy = errors.New("it is frozen already, by another program")

// ErrLimit is wrapped when the guard has thawed because the time was up.
var ErrLimit = errors.New("frozen for longer than the limit")

// Freezer freezes with a guard process. Its methods are called by one goroutine at
// a time.
type Freezer struct {
	// Limit is how long file systems stay frozen at most; 0 is DefaultLimit.
	Limit time.Duration
	// Guard is the guard's command line; empty: this program with [Verb].
	Guard []string

	last *Frozen // Linux alone has any
}

// MaxTime is how long file systems stay frozen at most.
func (f *Freezer) MaxTime() time.Duration {
	if f.Limit > 0 {
		return f.Limit
	}
	return DefaultLimit
}

// Set is what lies on a machine's disks.
type Set struct {
	// FileSystems are those to freeze, in this order: what lies in a file on another
	// one comes first, then by number.
	FileSystems []FileSystem
	// Notes say what is not frozen and does no harm, for people.
	Notes []string
	// Loose says what may be written to while all file systems are frozen. A point is
	// no better than crash-consistent then, and only when two passes agree.
	Loose []string
}
