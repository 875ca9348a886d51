package pipeline_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/pipeline"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 10 * time.Second
	often    = 2 * time.Millisecond
	blocks   = 64
)

var (
	machineID = ident.NewMachineID("vc", "vm")
	diskID    = ident.NewDiskID(machineID, "a")
	start     = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	errCrash  = errors.New("broken off here")
)

type keys struct{}

func (keys) Key(m ident.MachineID, id string) (changeset.Key, error) {
	return changeset.Key{ID: id, Secret: sha256.Sum256(m[:])}, nil
}

// faults breaks steps off, as a crash would, before or after they took effect.
type faults struct {
	mu   sync.Mutex
	once map[string]int  // how often the step still fails
	down map[string]bool // the step fails from here on
	hits map[string]int
}

func (f *faults) at(step string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hits[step]++
	if f.down[step] {
		return errCrash
	}
	if f.once[step] > 0 {
		f.once[step]--
		return errCrash
	}
	return nil
}

func (f *faults) set(step string, down bool, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down[step], f.once[step] = down, times
}

func (f *faults) count(step string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits[step]
}

type faultyCache struct {
	cachestore.Store
	*faults
}

func (c faultyCache) Put(ctx context.Context, n cachestore.Name, content io.ReaderAt, size int64) error {
	if err := c.at("before put"); err != nil {
		return err
	}
	return errors.Join(c.Store.Put(ctx, n, content, size), c.at("after put"))
}

func (c faultyCache) Delete(ctx context.Context, n cachestore.Name) error {
	if err := c.at("before delete"); err != nil {
		return err
	}
	return errors.Join(c.Store.Delete(ctx, n), c.at("after delete"))
}

type faultyWriter struct {
	replica.Writer
	*faults
}

func (w faultyWriter) Apply(ctx context.Context, cs replica.ChangeSet) (replica.Point, error) {
	if err := w.at("before apply"); err != nil {
		return replica.Point{}, err
	}
	p, err := w.Writer.Apply(ctx, cs)
	return p, errors.Join(err, w.at("after apply"))
}

// rig is one machine's directories; what is in memory ends with halt.
type rig struct {
	t         *testing.T
	dir       string
	store     *file.Store
	cache     *cachestore.Directory
	spool     *spool.Spool
	writer    replica.Writer
	faults    *faults
	pipe      *pipeline.Pipeline
	epoch     ident.Epoch
	retention replica.Retention
	content   map[ident.Seq][]byte // of the disk, as of each set
	now       []byte

	mu      sync.Mutex
	stored  []ident.Seq
	applied []ident.Seq
	broken  []string
	fenced  []error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	store, err := file.Open(filepath.Join(dir, "store"))
	require.NoError(t, err)
	cache, err := cachestore.NewDirectory(filepath.Join(dir, "cache"))
	require.NoError(t, err)
	r := &rig{t: t, dir: dir, store: store, cache: cache, epoch: 1, retention: replica.DefaultRetention(),
		content: map[ident.Seq][]byte{}, now: make([]byte, blocks*checksum.BlockSize)}
	r.open()
	require.NoError(t, r.writer.BeginGeneration(t.Context(), r.spec().Disks, false, nil))
	t.Cleanup(r.halt)
	return r
}

func (r *rig) spec() replica.Spec {
	return replica.Spec{Machine: machineID, Name: "web-1", KeyID: "k",
		Disks: []replica.Disk{{Disk: changeset.Disk{ID: diskID, Size: blocks * checksum.BlockSize}}}}
}

// open opens spool and replica as after a start of the program.
func (r *rig) open() {
	r.t.Helper()
	var err error
	r.faults = &faults{once: map[string]int{}, down: map[string]bool{}, hits: map[string]int{}}
	r.spool, err = spool.Open(filepath.Join(r.dir, "spool"), 64<<20)
	require.NoError(r.t, err)
	r.writer, err = r.store.OpenWriter(r.t.Context(), r.epoch, r.spec())
	require.NoError(r.t, err)
}

func (r *rig) config() pipeline.Config {
	return pipeline.Config{
		Machine: machineID, Spool: r.spool, Cache: faultyCache{r.cache, r.faults}, Writer: faultyWriter{r.writer, r.faults},
		Keys: keys{}, Retention: func() replica.Retention { return r.retention }, Logger: slog.New(slog.DiscardHandler),
		Events: pipeline.Events{
			Stored: func(s changeset.Summary) { r.note(func() { r.stored = append(r.stored, s.Header.Seq) }) },
			Applied: func(s changeset.Summary, _ replica.Point) {
				r.note(func() { r.applied = append(r.applied, s.Header.Seq) })
			},
			Broken: func(cause string) { r.note(func() { r.broken = append(r.broken, cause) }) },
			Fenced: func(err error) { r.note(func() { r.fenced = append(r.fenced, err) }) },
		},
	}
}

func (r *rig) note(f func()) { r.mu.Lock(); defer r.mu.Unlock(); f() }

func (r *rig) noted(f func() bool) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { r.mu.Lock(); defer r.mu.Unlock(); return f() }, patience, often)
}

func (r *rig) run() {
	r.t.Helper()
	var err error
	r.pipe, err = pipeline.Start(r.t.Context(), r.config())
	require.NoError(r.t, err)
}

func (r *rig) halt() {
	if r.pipe != nil {
		r.pipe.Stop()
		r.pipe = nil
	}
	if r.writer != nil {
		require.NoError(r.t, r.writer.Close())
		r.writer = nil
	}
}

// restart is a stop and a new start, with nothing that fails.
func (r *rig) restart() {
	r.t.Helper()
	r.halt()
	r.open()
	r.run()
}

// spooled writes the change set after the position to the spool. Its content is
// told by its seed.
func (r *rig) spooled(after ident.Position, seed byte) (spool.Entry, changeset.Summary) {
	r.t.Helper()
	st := r.writer.State()
	h := changeset.Header{Machine: machineID, Generation: st.Generation, Epoch: r.epoch, Seq: after.Seq + 1, Prev: after.Digest,
		Kind: changeset.Delta, KeyID: "k", Disks: []changeset.Disk{st.Spec.Disks[0].Disk}}
	cut := changeset.Cut{SourceTime: start.Add(time.Duration(h.Seq) * time.Minute), Consistency: ident.CrashConsistent}
	if h.Seq == 1 {
		h.Kind, cut.Complete = changeset.Base, true
	}
	f, err := r.spool.Create(machineID, h.Epoch, h.Seq)
	require.NoError(r.t, err)
	key, _ := keys{}.Key(machineID, "k")
	w, err := changeset.NewWriter(f, h, key)
	require.NoError(r.t, err)
	at := int64(h.Seq%blocks) * checksum.BlockSize
	data := bytes.Repeat([]byte{seed}, checksum.BlockSize)
	require.NoError(r.t, w.Add(&changeset.Chunk{Data: data, Extents: []changeset.Extent{{
		Offset: at, Length: checksum.BlockSize, Sums: []uint64{checksum.Sum(h.Disks[0].Seed, at, data)}}}}))
	s, err := w.Finish(cut)
	require.NoError(r.t, err)
	e, err := f.Commit()
	require.NoError(r.t, err)
	copy(r.now[at:], data)
	r.content[h.Seq] = bytes.Clone(r.now)
	return e, s
}

// add spools n change sets after the tail and hands them over.
func (r *rig) add(n int) {
	r.t.Helper()
	for range n {
		tail, _ := r.pipe.Tail()
		e, s := r.spooled(tail, byte(tail.Seq+1))
		r.pipe.Add(e, s, nil, nil)
	}
}

func (r *rig) drain() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	require.NoError(r.t, r.pipe.Drain(ctx))
}

// whole checks that exactly the sets up to last are in the replica, each point
// with its content, and that nothing lies anywhere else.
func (r *rig) whole(last ident.Seq) {
	r.t.Helper()
	r.drain()
	st := r.writer.State()
	require.Equal(r.t, last, st.Position.Seq)
	require.Len(r.t, st.Points, int(last))
	reader, err := r.store.OpenReader(r.t.Context(), machineID)
	require.NoError(r.t, err)
	for i, p := range st.Points {
		require.Equal(r.t, ident.Seq(i+1), p.ID)
		disk, err := reader.OpenDisk(r.t.Context(), p.ID, diskID)
		require.NoError(r.t, err)
		got := make([]byte, disk.Size())
		_, err = disk.ReadAt(got, 0)
		require.NoError(r.t, err)
		require.True(r.t, bytes.Equal(r.content[p.ID], got), "content at point %d", p.ID)
		require.NoError(r.t, disk.Close())
	}
	require.NoError(r.t, reader.Close())
	r.nothingLeft()
}

func (r *rig) nothingLeft() {
	r.t.Helper()
	entries, err := r.spool.List(machineID)
	require.NoError(r.t, err)
	require.Empty(r.t, entries)
	cached, err := r.cache.List(r.t.Context(), machineID)
	require.NoError(r.t, err)
	require.Empty(r.t, cached)
	used, _ := r.spool.Usage()
	require.Zero(r.t, used)
}

func TestInOrder(t *testing.T) {
	r := newRig(t)
	r.run()
	tail, whole := r.pipe.Tail()
	require.True(t, tail.IsZero())
	require.False(t, whole)
	r.add(1)
	_, whole = r.pipe.Tail()
	require.True(t, whole, "the base is complete once what was added is applied")
	r.add(9)
	r.whole(10)
	want := []ident.Seq{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	r.noted(func() bool { return slices.Equal(r.stored, want) && slices.Equal(r.applied, want) })
	sets, size := r.pipe.Backlog()
	require.Zero(t, sets)
	require.Zero(t, size)
	r.halt()
	r.open()
	r.run()
	tail, whole = r.pipe.Tail()
	require.Equal(t, r.writer.State().Position, tail)
	require.True(t, whole)
}

// A stop between any two steps loses nothing and does nothing twice.
func TestRestartAtEveryStep(t *testing.T) {
	for _, step := range []string{"before put", "after put", "before apply", "after apply"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.run()
			r.add(2)
			r.drain()
			r.faults.set(step, true, 0)
			seen := r.faults.count(step)
			r.add(3)
			require.Eventually(t, func() bool { return r.faults.count(step) > seen }, patience, often)
			r.restart()
			tail, _ := r.pipe.Tail()
			require.Equal(t, ident.Seq(5), tail.Seq)
			r.whole(5)
			r.add(2)
			r.whole(7)
			require.Empty(t, r.broken)
		})
	}
}

func TestRestartBeforeRemoval(t *testing.T) {
	for _, step := range []string{"before delete", "after delete"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.run()
			r.faults.set(step, true, 0)
			r.add(3)
			r.drain()
			require.Equal(t, ident.Seq(3), r.writer.State().Position.Seq, "what cannot be removed holds nothing up")
			r.restart()
			r.whole(3)
		})
	}
}

// The spool's removal comes first; a crash may also leave the spool's copy.
func TestAppliedSetLeftInTheSpool(t *testing.T) {
	r := newRig(t)
	r.run()
	r.add(1)
	r.drain()
	r.pipe.Stop()
	tail, _ := r.pipe.Tail()
	_, s := r.spooled(tail, 2)
	entries, err := r.spool.List(machineID)
	require.NoError(t, err)
	content, err := r.spool.Open(entries[0])
	require.NoError(t, err)
	cs, err := changeset.Open(content, content.Size(), keys{})
	require.NoError(t, err)
	_, err = r.writer.Apply(t.Context(), cs)
	require.NoError(t, err)
	require.NoError(t, content.Close())
	r.restart()
	tail, _ = r.pipe.Tail()
	require.Equal(t, s.Position(), tail)
	r.whole(2)
	require.Equal(t, []ident.Seq{1}, r.applied)
}
