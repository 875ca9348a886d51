package compat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/replicatest"
)

const (
	holder = "reader"
	block  = checksum.BlockSize
)

var heldUntil = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

func storeSpec() replica.Spec {
	s := replica.Spec{Machine: header().Machine, Name: "vm", KeyID: "k1", Documents: map[string]string{"policy": `{"a":1}`}}
	for _, d := range header().Disks {
		s.Disks = append(s.Disks, replica.Disk{Disk: d, Name: "disk", BackingUUID: "b-" + d.ID.String()})
	}
	s.Disks[0].Size = 64<<10 + 512
	return s
}

// words are some blocks of text, which a sample keeps in little room.
func words(n int, text string) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%-64s", text)), n*block/64)
}

// newStore makes a store in a directory, see fillStore.
func newStore(t *testing.T) string {
	dir := t.TempDir()
	s, err := file.Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	fillStore(t, s, dir)
	return dir
}

// fillStore gives a store all that one can have: a base copy in two sets, points with
// changes of every kind, one that was thinned away, a hold, documents. In the directory
// it leaves what each disk is at each point.
func fillStore(t *testing.T, s replica.Store, dir string) {
	t.Helper()
	require.NoError(t, s.PutDocument(t.Context(), "plan", []byte("{}")))
	w, err := s.OpenWriter(t.Context(), 3, storeSpec())
	require.NoError(t, err)
	require.NoError(t, w.BeginGeneration(t.Context(), storeSpec().Disks, false, nil))
	apply := func(cs *replicatest.ChangeSet) replica.Point {
		p, err := w.Apply(t.Context(), cs)
		require.NoError(t, err)
		return p
	}
	base := func() *replicatest.Builder { return replicatest.After(w.State(), changeset.Base) }
	delta := func() *replicatest.Builder { return replicatest.After(w.State(), changeset.Delta) }
	apply(base().Write(0, 0, words(8, "base")).Cut(replicatest.Partial()))
	apply(base().Write(0, 16*block, words(1, "short")[:512]).Write(1, 0, words(4, "base of b")).Cut(replicatest.Complete()))
	apply(delta().Write(0, 0, words(2, "three")).Zero(0, 4*block, 2*block).Write(1, 8*block, words(1, "b")).Cut(replicatest.Crash()))
	gone := apply(delta().Write(0, 6*block, words(1, "four")).Zero(1, 0, block).Cut(replicatest.Crash()))
	held := apply(delta().Write(0, 0, words(1, "five")).Write(0, 4*block, words(1, "five")).Cut(replicatest.Crash()))
	apply(delta().Zero(0, 16*block, 512).Write(1, 0, words(2, "six")).Cut(changeset.Cut{Consistency: ident.ApplicationConsistent, Final: true,
		Freeze: time.Second, Note: "note", ClockOffset: time.Millisecond}))
	_, err = w.Delete(t.Context(), []ident.Seq{gone.ID})
	require.NoError(t, err)
	require.NoError(t, w.Close())
	r, err := s.OpenReader(t.Context(), storeSpec().Machine)
	require.NoError(t, err)
	require.NoError(t, r.Hold(t.Context(), held.ID, replica.Hold{Owner: holder, Expires: heldUntil}))
	st, err := r.State(t.Context())
	require.NoError(t, err)
	for _, p := range st.Points {
		for _, d := range p.Disks {
			content := readPoint(t, r, p.ID, d.ID)
			path := filepath.Join(dir, "points", strconv.FormatUint(uint64(p.ID), 10), d.ID.String())
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
			require.NoError(t, os.WriteFile(path, content, 0o600))
		}
	}
}

func readPoint(t *testing.T, r replica.Reader, point ident.Seq, disk ident.DiskID) []byte {
	t.Helper()
	d, err := r.OpenDisk(t.Context(), point, disk)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	content := make([]byte, d.Size())
	_, err = d.ReadAt(content, 0)
	require.NoError(t, err)
	return content
}

// requirePoints compares the points with what was kept of them.
func requirePoints(t *testing.T, dir string, r replica.Reader, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "points"))
	require.NoError(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
		point, err := strconv.ParseUint(e.Name(), 10, 64)
		require.NoError(t, err)
		for _, d := range storeSpec().Disks {
			content, err := os.ReadFile(filepath.Join(dir, "points", e.Name(), d.ID.String()))
			require.NoError(t, err)
			replicatest.CheckDisk(t, r, ident.Seq(point), d.ID, content)
		}
	}
	require.Equal(t, want, got)
}

// marks are the versions that the files of a store carry.
type marks struct {
	manifest      int
	undo, pending string
}

func marksOf(t *testing.T, dir string) (m marks) {
	t.Helper()
	machine := filepath.Join(dir, "store", "machines", storeSpec().Machine.String())
	b, err := os.ReadFile(filepath.Join(machine, "manifest.json"))
	require.NoError(t, err)
	var mf struct{ Version int }
	require.NoError(t, json.Unmarshal(b, &mf))
	files, err := filepath.Glob(filepath.Join(machine, "undo", "*.undo"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	undo, err := os.ReadFile(files[0])
	require.NoError(t, err)
	pending, err := os.ReadFile(filepath.Join(machine, "pending"))
	require.NoError(t, err)
	return marks{mf.Version, string(undo[:8]) + string(undo[64:68]), string(pending[:4])}
}

// Every sample opens, has all its points byte by byte, and goes on with the next
// change set. What is written today has a sample.
func TestStores(t *testing.T) {
	fresh := newStore(t)
	now := marksOf(t, fresh)
	if *write {
		pack(t, filepath.Join("testdata", fmt.Sprintf("store-v%d.zip", now.manifest)), fresh)
	}
	var known []marks
	for _, sample := range samples(t, "store-v*.zip") {
		dir := unpack(t, sample)
		known = append(known, marksOf(t, dir))
		s, err := file.Open(filepath.Join(dir, "store"))
		require.NoError(t, err)
		requireStore(t, s, dir)
	}
	require.Contains(t, known, now, "the store's format has changed: add a sample with -write, and keep reading the others")
}

// requireStore reads all that fillStore has made, and goes on from there.
func requireStore(t *testing.T, s replica.Store, dir string) {
	t.Helper()
	docs, err := s.Documents(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"plan": []byte("{}")}, docs)
	r, err := s.OpenReader(t.Context(), storeSpec().Machine)
	require.NoError(t, err)
	requirePoints(t, dir, r, "2", "3", "5", "6")

	w, err := s.OpenWriter(t.Context(), 4, storeSpec())
	require.NoError(t, err)
	st := w.State()
	require.Equal(t, uint32(1), st.Generation)
	require.Equal(t, storeSpec().Documents, st.Spec.Documents)
	require.True(t, st.Complete)
	require.Equal(t, "note", st.Points[3].Note)
	skipped, err := w.Delete(t.Context(), []ident.Seq{5})
	require.NoError(t, err)
	require.Equal(t, []ident.Seq{5}, skipped, "its hold is known")
	next, err := w.Apply(t.Context(), replicatest.After(st, changeset.Delta).Write(0, block, words(3, "next")).Zero(1, 0, 4*block).Cut(replicatest.Crash()))
	require.NoError(t, err)
	require.Equal(t, ident.Seq(7), next.ID)
	require.Equal(t, words(3, "next"), readPoint(t, r, 7, storeSpec().Disks[0].ID)[block:4*block])
	requirePoints(t, dir, r, "2", "3", "5", "6")
	_, err = w.Delete(t.Context(), []ident.Seq{3})
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "points", "3")))
	requirePoints(t, dir, r, "2", "5", "6")
	require.NoError(t, w.Close())
}
