// Package storage opens the replica store and the cache storage that a configuration
// names.
package storage

import (
	"context"

	"drover/datapath/cachestore"
	"drover/datapath/cachestore/blockblob"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/pageblob"
	"drover/worker/config"
)

// Store is a replica store that is open.
type Store interface {
	replica.Store
	Close() error
}

// Open opens the replica store.
func Open(ctx context.Context, c config.Store) (Store, error) {
	if c.Azure != nil {
		return pageblob.Open(ctx, pageblob.Config{Account: c.Azure.Account()})
	}
	return file.Open(c.File)
}

// OpenCache opens the cache storage.
func OpenCache(ctx context.Context, c config.Cache) (cachestore.Store, error) {
	if c.Azure != nil {
		return blockblob.Open(ctx, blockblob.Config{Account: c.Azure.Account(), Keep: c.Azure.Keep.D()})
	}
	return cachestore.NewDirectory(c.Directory)
}
