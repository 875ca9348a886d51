package cachestore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/cachestore"
	"drover/datapath/cachestore/cachetest"
)

func TestConformance(t *testing.T) {
	cachetest.Run(t, func(t *testing.T, dir string) cachestore.Store {
		t.Helper()
		d, err := cachestore.NewDirectory(dir)
		require.NoError(t, err)
		return d
	})
}
