package freeze

import (
	"context"
	"errors"
	"time"
)

// errHere: nobody gets this far; agent/quiesce/vss is what there is on Windows.
var errHere = errors.New("freeze: file systems cannot be frozen from here on Windows")

// FileSystem is none.
type FileSystem struct{}

func (FileSystem) String() string { return "none" }

// Left is none.
type Left struct{}

// Left gives none.
func (*Set) Left() []Left { return nil }

// Find finds none.
func Find([]string) (*Set, error) { return &Set{}, nil }

// Recover has nothing to do.
func Recover([]Left) (thawed int, err error) { return 0, nil }

// Guard does not work.
func Guard() error { return errHere }

// LockMemory is not needed: nothing is frozen by this process.
func LockMemory() error { return nil }

// Frozen is never made.
type Frozen struct{}

// Prepare does not work.
func (*Freezer) Prepare(context.Context, *Set) (*Frozen, error) { return nil, errHere }

// Settle does not work.
func (*Frozen) Settle(context.Context) error { return errHere }

// Freeze does not work.
func (*Frozen) Freeze(context.Context) error { return errHere }

// Missing gives none.
func (*Frozen) Missing() []FileSystem { return nil }

// Hold does not work.
func (*Frozen) Hold(time.Duration) error { return errHere }

// Thaw does not work.
func (*Frozen) Thaw() (time.Duration, error) { return 0, errHere }
