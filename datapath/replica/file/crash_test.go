package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
)

const block = checksum.BlockSize

var errCrash = errors.New("crash")

// lab is a replica on which a crash can be made at any durable step.
type lab struct {
	t      *testing.T
	dir    string
	store  *Store
	w      replica.Writer
	spec   replica.Spec
	images map[ident.Seq][][]byte // what each point must read as
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, dir: t.TempDir(), spec: rt.Spec(), images: map[ident.Seq][][]byte{}}
	l.reopen()
	t.Cleanup(func() { require.NoError(t, l.w.Close()) })
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, false, nil))
	l.must(l.set(changeset.Base, 1).Cut(rt.Complete()))
	for i := range uint64(4) {
		l.must(l.set(changeset.Delta, 2+i).Cut(rt.Crash()))
	}
	return l
}

// set overwrites one block for all, one of its own, and zeros a third.
func (l *lab) set(kind changeset.Kind, n uint64) *rt.Builder {
	return rt.After(l.w.State(), kind).
		Write(0, 0, rt.Pattern(n, 2*block)).
		Write(1, int64(n%16)*block, rt.Pattern(100+n, block)).
		Zero(0, int64(1+n%5)*block, block)
}

func (l *lab) reopen() {
	l.t.Helper()
	if l.w != nil {
		require.NoError(l.t, l.w.Close())
	}
	var err error
	l.store, err = Open(l.dir)
	require.NoError(l.t, err)
	l.w, err = l.store.OpenWriter(l.t.Context(), 1, l.spec)
	require.NoError(l.t, err)
}

func (l *lab) must(cs replica.ChangeSet) {
	l.t.Helper()
	p, err := l.w.Apply(l.t.Context(), cs)
	require.NoError(l.t, err)
	l.images[p.ID] = rt.ReadPoint(l.t, l.reader(), p)
}

func (l *lab) reader() replica.Reader {
	l.t.Helper()
	r, err := l.store.OpenReader(l.t.Context(), l.spec.Machine)
	require.NoError(l.t, err)
	return r
}

// check reads all points; those of the memory, and no others, must be there.
func (l *lab) check() {
	l.t.Helper()
	s, err := l.reader().State(l.t.Context())
	require.NoError(l.t, err)
	require.Len(l.t, s.Points, len(l.images))
	for _, p := range s.Points {
		for i, d := range p.Disks {
			rt.CheckDisk(l.t, l.reader(), p.ID, d.ID, l.images[p.ID][i])
		}
	}
}

// crashAt makes the store break off at its n-th step; it reports the step's name.
func (l *lab) crashAt(n int) *string {
	name := new(string)
	l.store.failpoint = func(step string) error {
		if n--; n == 0 {
			*name = step
			return errCrash
		}
		if n < 0 {
			return errCrash
		}
		return nil
	}
	return name
}

// maxSteps is more than any operation under test has.
const maxSteps = 40

func TestCrashInApply(t *testing.T) {
	seen := map[string]bool{}
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		l := newLab(t)
		before := l.w.State()
		cs := l.set(changeset.Delta, 9).Cut(rt.Crash())
		step := l.crashAt(n)
		_, err := l.w.Apply(t.Context(), cs)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errCrash)
		seen[*step] = true
		if *step != "published" {
			l.check()
			l.reopen()
			l.check()
			require.Equal(t, before.Position, l.w.State().Position)
		} else {
			l.reopen()
		}
		l.must(cs)
		require.Equal(t, rt.Pattern(9, block), l.images[cs.Summary().Header.Seq][0][:block], *step)
		l.check()
		l.must(l.set(changeset.Delta, 10).Cut(rt.Crash()))
		l.check()
	}
	for _, name := range []string{"undo-written", "undo-synced", "pending", "image-written", "image-synced", "sums-synced", "undo-created", "manifest", "published"} {
		require.True(t, seen[name], "no crash at %s", name)
	}
}

func TestCrashInDelete(t *testing.T) {
	seen := map[string]bool{}
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		l := newLab(t)
		gone := []ident.Seq{2, 3}
		step := l.crashAt(n)
		_, err := l.w.Delete(t.Context(), gone)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errCrash)
		seen[*step] = true
		require.Error(t, l.reader().Hold(t.Context(), 2, replica.Hold{Owner: "late", Expires: l.store.now().Add(1 << 40)}), "it is being deleted")
		l.reopen() // the plan is finished
		for _, p := range gone {
			delete(l.images, p)
		}
		l.check()
		files, err := os.ReadDir(l.store.machine(l.spec.Machine).path(undoDir))
		require.NoError(t, err)
		require.Len(t, files, len(l.images))
		require.NoFileExists(t, l.store.machine(l.spec.Machine).path(deleteName))
	}
	for _, name := range []string{"delete-planned", "delete-merged", "delete-synced", "published", "delete-published", "delete-files"} {
		require.True(t, seen[name], "no crash at %s", name)
	}
}

func TestCrashInResize(t *testing.T) {
	for n := 1; ; n++ {
		require.Less(t, n, maxSteps)
		l := newLab(t)
		l.must(rt.After(l.w.State(), changeset.Delta).Write(1, 40*block, rt.Pattern(7, 1536)).Cut(rt.Crash()))
		l.spec.Disks[1].Size = 20*block + 512
		l.crashAt(n)
		err := l.w.BeginGeneration(t.Context(), l.spec.Disks, true, nil)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errCrash)
		l.check()
		l.reopen()
		l.check()
		require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, true, nil))
		l.must(l.set(changeset.Base, 11).Cut(rt.Complete()))
		l.check()
	}
}

func TestTornUndoTail(t *testing.T) {
	for _, torn := range []string{"cut", "garbage", "data never written"} {
		t.Run(torn, func(t *testing.T) {
			l := newLab(t)
			mf, err := l.store.machine(l.spec.Machine).load()
			require.NoError(t, err)
			path := l.store.machine(l.spec.Machine).undoPath(mf.Undo[len(mf.Undo)-1])
			cs := l.set(changeset.Delta, 9).Cut(rt.Crash())
			l.store.failpoint = func(step string) error {
				if step == "undo-synced" {
					return errCrash
				}
				return nil
			}
			_, err = l.w.Apply(t.Context(), cs)
			require.ErrorIs(t, err, errCrash)
			st, err := os.Stat(path)
			require.NoError(t, err)
			switch torn {
			case "cut":
				require.NoError(t, os.Truncate(path, st.Size()-100))
			case "garbage":
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				require.NoError(t, err)
				_, err = f.Write(rt.Pattern(3, 5000))
				require.NoError(t, errors.Join(err, f.Close()))
			default:
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = f.WriteAt(make([]byte, block), undoHeaderSize+entryHeaderSize+100)
				require.NoError(t, errors.Join(err, f.Close()))
			}
			l.check() // a reader does not wait for a writer to cut the tail off
			l.reopen()
			l.check()
			l.must(cs)
			l.check()
		})
	}
}

func TestDamageIsSeen(t *testing.T) {
	l := newLab(t)
	m := l.store.machine(l.spec.Machine)
	img, err := os.OpenFile(m.imagePath(l.w.State().Spec.Disks[1]), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = img.WriteAt([]byte("rot"), 3*block+10)
	require.NoError(t, errors.Join(err, img.Close()))
	read := func(point ident.Seq) error {
		d, err := l.reader().OpenDisk(t.Context(), point, l.spec.Disks[1].ID)
		require.NoError(t, err)
		defer func() { require.NoError(t, d.Close()) }()
		_, err = d.ReadAt(make([]byte, block), 3*block)
		return err
	}
	require.ErrorIs(t, read(5), replica.ErrCorrupt)
	// The damage goes with the block into the undo, and the new content is good.
	l.must(rt.After(l.w.State(), changeset.Delta).Write(1, 3*block, rt.Pattern(50, block)).Cut(rt.Crash()))
	require.ErrorIs(t, read(5), replica.ErrCorrupt)
	require.NoError(t, read(6))
	// A rescan takes what is there as present; what points had is lost, not replaced.
	img, err = os.OpenFile(m.imagePath(l.w.State().Spec.Disks[1]), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = img.WriteAt([]byte("rot"), 3*block+10)
	require.NoError(t, errors.Join(err, img.Close()))
	require.NoError(t, l.w.BeginGeneration(t.Context(), l.spec.Disks, true, nil))
	require.ErrorIs(t, read(6), replica.ErrCorrupt)
}

func TestFullDiskIsTold(t *testing.T) {
	l := newLab(t)
	before := l.w.State().Position
	for _, full := range []error{unix.ENOSPC, unix.EDQUOT} {
		cs := l.set(changeset.Delta, 9).Cut(rt.Crash())
		l.store.failpoint = func(step string) error {
			if step == "image-synced" {
				return spaceErr(&os.PathError{Op: "write", Path: "x", Err: full})
			}
			return nil
		}
		_, err := l.w.Apply(t.Context(), cs)
		require.ErrorIs(t, err, replica.ErrNoSpace)
		require.ErrorIs(t, err, full)
		require.Equal(t, before, l.w.State().Position)
		l.check()
	}
	l.store.failpoint = nil
	l.must(l.set(changeset.Delta, 9).Cut(rt.Crash()))
	l.check()
}

func TestAttachedDisk(t *testing.T) {
	spec := rt.Spec()
	dir := t.TempDir()
	spec.Disks[0].Path = dir + "/attached"
	old := rt.Pattern(77, spec.Disks[0].Size+5*block)
	store, err := Open(dir + "/store")
	require.NoError(t, err)
	_, err = store.OpenWriter(t.Context(), 1, spec)
	require.ErrorContains(t, err, "attach the disk")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, old[:block], 0o600))
	_, err = store.OpenWriter(t.Context(), 1, spec)
	require.ErrorContains(t, err, "at least that size")
	require.NoError(t, os.WriteFile(spec.Disks[0].Path, old, 0o600))
	w, err := store.OpenWriter(t.Context(), 1, spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, w.Close()) }()
	require.False(t, w.State().Empty, "zeros must be sent: nobody knows what is there")
	_, err = w.Leaves(spec.Disks[0].ID)
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, w.BeginGeneration(ctx, spec.Disks, true, nil), context.Canceled)
	require.NoError(t, w.BeginGeneration(t.Context(), spec.Disks, false, nil))
	d := w.State().Spec.Disks[0]
	l, err := w.Leaves(d.ID)
	require.NoError(t, err)
	sums := make([]uint64, l.Len())
	require.NoError(t, l.ReadSums(0, sums))
	require.Equal(t, checksum.SumAll(nil, d.Seed, 0, old[:d.Size]), sums)
	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Base).Zero(0, 0, block).Cut(rt.Complete()))
	require.NoError(t, err)
	_, err = w.Apply(t.Context(), rt.After(w.State(), changeset.Delta).Write(0, block, rt.Pattern(5, block)).Cut(rt.Crash()))
	require.NoError(t, err)
	now, err := os.ReadFile(spec.Disks[0].Path)
	require.NoError(t, err)
	want := bytes.Clone(old)
	clear(want[:block])
	r, err := store.OpenReader(t.Context(), spec.Machine)
	require.NoError(t, err)
	rt.CheckDisk(t, r, 1, d.ID, want[:d.Size])
	copy(want[block:], rt.Pattern(5, block))
	require.True(t, bytes.Equal(want, now))
	require.NoError(t, store.Remove(t.Context(), spec.Machine, 1))
	require.FileExists(t, spec.Disks[0].Path)
}

// TestReaderWhileWriting reads a held point again and again while a writer in
// another handle overwrites everything and thins.
func TestReaderWhileWriting(t *testing.T) {
	l := newLab(t)
	const point, sets = 3, 60
	want := l.images[point][0]
	other, err := Open(l.dir)
	require.NoError(t, err)
	r, err := other.OpenReader(t.Context(), l.spec.Machine)
	require.NoError(t, err)
	d, err := r.OpenDisk(t.Context(), point, l.spec.Disks[0].ID)
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	stop, result := make(chan struct{}), make(chan error, 2)
	read := func(seed uint64) {
		result <- func() error {
			rnd := rand.New(rand.NewPCG(seed, seed))
			buf := make([]byte, 20*block)
			for n := 0; ; n++ {
				off := rnd.Int64N(int64(len(want)))
				got, err := d.ReadAt(buf, off)
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				if !bytes.Equal(buf[:got], want[off:off+int64(got)]) {
					return fmt.Errorf("read %d at %d is not what the point was", n, off)
				}
				select {
				case <-stop:
					return nil
				default:
				}
			}
		}()
	}
	go read(1)
	go read(2)
	for i := range uint64(sets) {
		b := rt.After(l.w.State(), changeset.Delta)
		for k := range uint64(6) {
			b.Write(0, int64((i*7+k*11)%60)*block, rt.Pattern(i*100+k, 4*block))
		}
		_, err := l.w.Apply(t.Context(), b.Cut(rt.Crash()))
		require.NoError(t, err)
		if points := l.w.State().Points; i%4 == 3 {
			var gone []ident.Seq
			for _, p := range points[:len(points)-1] {
				if p.ID != point && p.ID%2 == ident.Seq(i/4%2) {
					gone = append(gone, p.ID)
				}
			}
			_, err := l.w.Delete(t.Context(), gone)
			require.NoError(t, err)
		}
	}
	close(stop)
	require.NoError(t, <-result)
	require.NoError(t, <-result)
}

// TestFenceWaitsForTheWriter fences in the middle of an Apply: it is finished
// before, and nothing is written after.
func TestFenceWaitsForTheWriter(t *testing.T) {
	l := newLab(t)
	other, err := Open(l.dir)
	require.NoError(t, err)
	fenced := make(chan error, 1)
	started := false
	l.store.failpoint = func(step string) error {
		if step == "pending" && !started {
			started = true
			go func() { fenced <- other.Fence(t.Context(), l.spec.Machine, 2) }()
		}
		if started {
			select {
			case err := <-fenced:
				return fmt.Errorf("fenced in the middle of a change: %w", errors.Join(errCrash, err))
			default:
			}
		}
		return nil
	}
	cs := l.set(changeset.Delta, 9).Cut(rt.Crash())
	l.must(cs)
	require.NoError(t, <-fenced)
	_, err = l.w.Apply(t.Context(), l.set(changeset.Delta, 10).Cut(rt.Crash()))
	require.ErrorIs(t, err, replica.ErrFenced)
	l.check()
}
