// Package cachestore is the cache storage: where change sets land, write-once,
// before they are applied to the seed disks. Implementations: Directory (here), and
// blockblob (an Azure Storage account).
package cachestore

import (
	"context"
	"errors"
	"io"

	"drover/datapath/ident"
)

// Errors that callers act upon.
var (
	// ErrExists: the name is taken by other content. Putting the same content
	// again is not an error.
	ErrExists   = errors.New("object exists with other content")
	ErrNotFound = errors.New("object not found")
	// ErrFenced: the writer's epoch is lower than the machine's.
	ErrFenced = errors.New("fenced: another owner has raised the epoch")
)

// Name names a change set in the cache.
type Name struct {
	Machine ident.MachineID
	Seq     ident.Seq
	Epoch   ident.Epoch
}

// Object is an open change set.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Store keeps change sets. Safe for concurrent use, in several processes.
type Store interface {
	// Put stores size bytes under the name, write-once and durably: when it
	// returns nil, the object survives a power cut.
	Put(ctx context.Context, name Name, content io.ReaderAt, size int64) error
	Open(ctx context.Context, name Name) (Object, error)
	// List gives the machine's objects, ordered by sequence, then epoch.
	List(ctx context.Context, machine ident.MachineID) ([]Name, error)
	// Delete removes an object; an absent one is no error.
	Delete(ctx context.Context, name Name) error
	// Fence refuses Put by lower epochs from then on.
	Fence(ctx context.Context, machine ident.MachineID, epoch ident.Epoch) error
}
