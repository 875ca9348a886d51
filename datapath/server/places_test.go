package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/replica/file"
	"drover/datapath/server"
)

// TestForeignStoreOrSpoolIsRefused: another directory is mounted where the store
// or the spool was.
func TestForeignStoreOrSpoolIsRefused(t *testing.T) {
	r := newRig(t)
	r.start().stop()
	config := func(store *file.Store) server.Config {
		return server.Config{Name: "ps-1", StateDir: filepath.Join(r.dir, "state"), Store: store, Cache: r.cache, SpoolLimit: 1 << 30}
	}
	known := filepath.Join(r.dir, "state", "places.json")
	require.FileExists(t, known)
	other, err := file.Open(filepath.Join(r.dir, "other"))
	require.NoError(t, err)
	_, err = server.New(config(other))
	require.ErrorContains(t, err, "the replica store is")
	require.ErrorContains(t, err, known)

	spool := filepath.Join(r.dir, "state", "spool")
	require.NoError(t, os.Rename(spool, spool+".away"))
	_, err = server.New(config(r.store))
	require.ErrorContains(t, err, "the spool is")
	require.NoError(t, os.RemoveAll(spool))
	require.NoError(t, os.Rename(spool+".away", spool))
	r.start().stop()

	require.NoError(t, os.WriteFile(known, []byte("{"), 0o600))
	_, err = server.New(config(r.store))
	require.ErrorContains(t, err, "damaged")
	require.NoError(t, os.Remove(known))
	r.start().stop()
}
