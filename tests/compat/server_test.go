package compat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/server"
	"drover/datapath/spool"
	"drover/datapath/stream"
)

const spoolLimit = 1 << 20

// kept are the change sets in the samples of spool and cache, by sequence number.
func kept(t *testing.T) map[ident.Seq][]byte {
	t.Helper()
	out := map[ident.Seq][]byte{}
	for seq, version := range map[ident.Seq]string{7: "1", 8: "2"} {
		b, err := os.ReadFile(sample(version))
		require.NoError(t, err)
		out[seq] = b
	}
	return out
}

func requireObject(t *testing.T, o cachestore.Object, want []byte) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	_, err = changeset.Open(o, o.Size(), keyring{})
	require.NoError(t, err)
	require.NoError(t, o.Close())
}

func newSpool(t *testing.T) string {
	dir := t.TempDir()
	s, err := spool.Open(dir, spoolLimit)
	require.NoError(t, err)
	for seq, b := range kept(t) {
		f, err := s.Create(header().Machine, 3, seq)
		require.NoError(t, err)
		_, err = f.Write(b)
		require.NoError(t, err)
		_, err = f.Commit()
		require.NoError(t, err)
	}
	f, err := s.Create(header().Machine, 3, 9) // a crash leaves it
	require.NoError(t, err)
	_, err = f.Write([]byte("unfinished"))
	require.NoError(t, err)
	return dir
}

// names are the files in the directory, as their paths.
func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	})
	require.NoError(t, err)
	return out
}

func TestSpools(t *testing.T) {
	fresh := newSpool(t)
	if *write {
		pack(t, filepath.Join("testdata", "spool-v1.zip"), fresh)
	}
	var known [][]string
	for _, sample := range samples(t, "spool-v*.zip") {
		dir := unpack(t, sample)
		known = append(known, names(t, dir))
		s, err := spool.Open(dir, spoolLimit)
		require.NoError(t, err)
		list, err := s.List(header().Machine)
		require.NoError(t, err)
		require.Len(t, list, 2, "without the unfinished one")
		for i, e := range list {
			want := kept(t)[ident.Seq(7+i)]
			require.Equal(t, spool.Entry{Machine: header().Machine, Epoch: 3, Seq: ident.Seq(7 + i), Size: int64(len(want))}, e)
			o, err := s.Open(e)
			require.NoError(t, err)
			requireObject(t, o, want)
		}
		require.Len(t, names(t, dir), 2)
		require.NoError(t, s.Close())
	}
	require.Contains(t, known, names(t, fresh), "the spool's layout has changed: add a sample, and keep reading the others")
}

func newCache(t *testing.T) string {
	dir := t.TempDir()
	c, err := cachestore.NewDirectory(dir)
	require.NoError(t, err)
	for seq, b := range kept(t) {
		require.NoError(t, c.Put(t.Context(), cachestore.Name{Machine: header().Machine, Seq: seq, Epoch: 3}, bytes.NewReader(b), int64(len(b))))
	}
	require.NoError(t, c.Fence(t.Context(), header().Machine, 4))
	return dir
}

func TestCaches(t *testing.T) {
	fresh := newCache(t)
	if *write {
		pack(t, filepath.Join("testdata", "cache-v1.zip"), fresh)
	}
	var known [][]string
	for _, sample := range samples(t, "cache-v*.zip") {
		dir := unpack(t, sample)
		known = append(known, names(t, dir))
		c, err := cachestore.NewDirectory(dir)
		require.NoError(t, err)
		list, err := c.List(t.Context(), header().Machine)
		require.NoError(t, err)
		require.Len(t, list, 2)
		for i, n := range list {
			require.Equal(t, cachestore.Name{Machine: header().Machine, Seq: ident.Seq(7 + i), Epoch: 3}, n)
			o, err := c.Open(t.Context(), n)
			require.NoError(t, err)
			requireObject(t, o, kept(t)[n.Seq])
		}
		put := func(epoch ident.Epoch) error {
			return c.Put(t.Context(), cachestore.Name{Machine: header().Machine, Seq: 9, Epoch: epoch}, bytes.NewReader([]byte("x")), 1)
		}
		require.ErrorIs(t, put(3), cachestore.ErrFenced)
		require.NoError(t, put(4))
	}
	require.Contains(t, known, names(t, fresh), "the cache's layout has changed: add a sample, and keep reading the others")
}

func newServer(t *testing.T, dir string) *server.Server {
	t.Helper()
	store, err := file.Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	cache, err := cachestore.NewDirectory(filepath.Join(dir, "cache"))
	require.NoError(t, err)
	s, err := server.New(server.Config{
		Name: "ps1", StateDir: filepath.Join(dir, "state"), Store: store, Cache: cache, SpoolLimit: spoolLimit,
		Keys: func(context.Context, ident.MachineID, string) (changeset.Key, error) {
			return changeset.Key{}, errors.New("none")
		},
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	return s
}

var broken = stream.Broken{Code: "DRV-3001", Cause: "the session was lost"}

func storedGrant() stream.Grant {
	return stream.Grant{Epoch: 3, Instance: "4210a1b2", Spec: storeSpec(), Cut: 5 * time.Minute, LossLimit: time.Hour, Retention: replica.DefaultRetention()}
}

func grantFile(dir string) string {
	return filepath.Join(dir, "state", "grants", header().Machine.String()+".json")
}

func TestGrants(t *testing.T) {
	fresh := t.TempDir()
	s := newServer(t, fresh)
	require.NoError(t, s.Grant(t.Context(), storedGrant()))
	require.NoError(t, s.MarkBroken(t.Context(), header().Machine, 3, broken))
	now, err := os.ReadFile(grantFile(fresh))
	require.NoError(t, err)
	require.NoError(t, s.Revoke(t.Context(), header().Machine, 3))
	if path := filepath.Join("testdata", "grant-v1.json"); *write {
		if _, err := os.Stat(path); err != nil {
			require.NoError(t, os.WriteFile(path, now, 0o600))
		}
	}
	for _, sample := range samples(t, "grant-v*.json") {
		b, err := os.ReadFile(sample)
		require.NoError(t, err)
		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Dir(grantFile(dir)), 0o700))
		require.NoError(t, os.WriteFile(grantFile(dir), b, 0o600))
		s := newServer(t, dir)
		st, err := s.Status(header().Machine)
		require.NoError(t, err)
		require.Equal(t, ident.Epoch(3), st.Epoch)
		require.Equal(t, stream.PhaseBroken, st.Phase)
		require.Equal(t, []string{broken.Code, broken.Cause}, []string{st.Broken.Code, st.Broken.Cause})
		require.False(t, st.Broken.Since.IsZero())
		require.Len(t, st.Disks, len(storeSpec().Disks))
		for i, d := range storeSpec().Disks {
			require.Equal(t, []any{d.ID, d.Name, d.Size}, []any{st.Disks[i].ID, st.Disks[i].Name, st.Disks[i].Size})
		}
		old := storedGrant()
		old.Epoch = 2
		require.ErrorIs(t, s.Grant(t.Context(), old), replica.ErrFenced)
	}
}

// The descriptions have a row for the version that is written.
func TestVersionsAreDescribed(t *testing.T) {
	for folder, version := range map[string]int{
		"changeset": newestChangeSet(t), "wire": wireVersion, "replica/file": marksOf(t, newStore(t)).manifest,
		"replica/pageblob": len(samples(t, "pageblob-v*.zip")), // one of each version
	} {
		doc, err := os.ReadFile(filepath.Join("..", "..", "datapath", filepath.FromSlash(folder), "FORMAT.md"))
		require.NoError(t, err)
		_, ladder, ok := bytes.Cut(doc, []byte("\n## Versions\n"))
		require.True(t, ok, "%s/FORMAT.md has no versions", folder)
		require.Contains(t, string(ladder), fmt.Sprintf("\n| %d |", version), "%s/FORMAT.md", folder)
	}
}
