package compat

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/azstorage"
	"drover/datapath/replica/pageblob"
	"drover/tests/azurite"
)

func TestMain(m *testing.M) { os.Exit(azurite.Main{M: m}.Run()) }

// openBlobs opens the store in a container of its own.
func openBlobs(t *testing.T, dir string) (*pageblob.Store, *azstorage.Container) {
	t.Helper()
	account := azurite.Shared(t).Account(t, dir)
	s, err := pageblob.Open(t.Context(), pageblob.Config{Account: account, Limits: azurite.Unlimited()})
	require.NoError(t, err)
	c, err := azstorage.Open(account)
	require.NoError(t, err)
	return s, c
}

// blobVersion is the version of the machine's state in the container.
func blobVersion(t *testing.T, c *azstorage.Container) int {
	t.Helper()
	b, _, err := c.Get(t.Context(), "state/"+storeSpec().Machine.String()+".json", 1<<20)
	require.NoError(t, err)
	var mf struct{ Version int }
	require.NoError(t, json.Unmarshal(b, &mf))
	return mf.Version
}

// TestPageBlobs: a container of every version, with its metadata, sequence numbers and
// snapshots, opens, has all its points byte by byte, and goes on with the next change set.
func TestPageBlobs(t *testing.T) {
	fresh := t.TempDir()
	s, c := openBlobs(t, fresh)
	fillStore(t, s, fresh)
	now := blobVersion(t, c)
	if *write {
		saveContainer(t, c, filepath.Join(fresh, "container"))
		pack(t, filepath.Join("testdata", fmt.Sprintf("pageblob-v%d.zip", now)), fresh)
	}
	var known []int
	for _, sample := range samples(t, "pageblob-v*.zip") {
		dir := unpack(t, sample)
		s, c := openBlobs(t, dir)
		loadContainer(t, c, filepath.Join(dir, "container"))
		known = append(known, blobVersion(t, c))
		requireStore(t, s, dir)
	}
	require.Contains(t, known, now, "the store's format has changed: add a sample with -write, and keep reading the others")
}
