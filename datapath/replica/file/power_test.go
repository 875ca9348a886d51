package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	rt "drover/datapath/replica/replicatest"
	"drover/datapath/vfs/crashfs"
)

const (
	powerDir   = "/srv/store"
	powerCalls = 3000 // more than the script makes
	powerCuts  = 3    // how often the power may go in one life, at most
)

// sample gives where to begin and how far to step through the calls of a script:
// one in n, or all of them when DROVER_CRASH_ALL is set.
func sample(t *testing.T, n int) (first, stride int) {
	if os.Getenv("DROVER_CRASH_ALL") != "" {
		return 0, 1
	}
	first = rand.IntN(n)
	t.Logf("every %dth call from %d on; DROVER_CRASH_ALL=1 tries all", n, first)
	return first, n
}

// content is what a replica should hold.
type content struct {
	seq    ident.Seq // of the position
	now    [][]byte
	points map[ident.Seq][][]byte
}

func images(disks [][]byte) [][]byte {
	var out [][]byte
	for _, d := range disks {
		out = append(out, bytes.Clone(d))
	}
	return out
}

func (c content) clone() content {
	return content{c.seq, images(c.now), maps.Clone(c.points)}
}

// life is a machine's replica through power cuts: what it held after the last step
// that was acknowledged, and what it holds once the one at work is.
type life struct {
	t      *testing.T
	spec   replica.Spec
	step   int
	before content
	after  content
	sets   map[int]*rt.ChangeSet // as they lie in the spool
	writes map[*rt.ChangeSet][]extent
	retry  func(error) bool // whether a step that failed is tried again, with the same writer
}

type extent struct {
	disk   int
	offset int64
	data   []byte // nil: zeros
	length int64
}

func newLife(t *testing.T) *life {
	l := &life{t: t, spec: rt.Spec(), sets: map[int]*rt.ChangeSet{}, writes: map[*rt.ChangeSet][]extent{}}
	l.spec.Disks = slices.Clone(l.spec.Disks)
	l.before.points = map[ident.Seq][][]byte{}
	for i, size := range []int64{16 * block, 12*block + 1536} {
		l.spec.Disks[i].Size = size
		l.before.now = append(l.before.now, make([]byte, size))
	}
	l.after = l.before.clone()
	return l
}

// fork is the same life, to go on from here in another way.
func (l *life) fork() *life {
	c := *l
	c.spec.Disks = slices.Clone(l.spec.Disks)
	c.before, c.after = l.before.clone(), l.after.clone()
	c.sets, c.writes = maps.Clone(l.sets), maps.Clone(l.writes)
	return &c
}

// steps of a life, in their order.
var steps = []func(*life, context.Context, replica.Writer) error{
	(*life).begin,
	set(changeset.Base, rt.Partial(), extent{disk: 0, offset: 0, data: rt.Pattern(1, 4*block)}),
	set(changeset.Base, rt.Complete(), extent{disk: 1, offset: 2 * block, data: rt.Pattern(2, 10*block+1536)}),
	set(changeset.Delta, rt.Crash(), extent{disk: 0, offset: block, data: rt.Pattern(3, 2*block)}, extent{disk: 1, offset: 0, data: rt.Pattern(4, block)}),
	set(changeset.Delta, rt.Crash(), extent{disk: 0, offset: 0, length: 3 * block}, extent{disk: 0, offset: 8 * block, data: rt.Pattern(5, 3*block)}),
	set(changeset.Delta, rt.Crash(), extent{disk: 0, offset: block, data: rt.Pattern(6, block)}, extent{disk: 1, offset: 11 * block, data: rt.Pattern(7, block+1536)}),
	thin(3, 4),
	set(changeset.Delta, rt.Crash(), extent{disk: 0, offset: 8 * block, data: rt.Pattern(8, 2*block)}, extent{disk: 1, offset: 3 * block, length: 2 * block}),
	resizeTo(7*block + 512),
	set(changeset.Base, rt.Complete(), extent{disk: 1, offset: 0, data: rt.Pattern(9, block)}),
	grow(9*block + 1024),
	set(changeset.Delta, rt.Crash(), extent{disk: 1, offset: 7 * block, data: rt.Pattern(10, 2*block+1024)}),
	thin(2, 6, 7),
	set(changeset.Delta, rt.Crash(), extent{disk: 0, offset: 0, data: rt.Pattern(11, 2*block)}),
}

func (l *life) begin(ctx context.Context, w replica.Writer) error {
	return w.BeginGeneration(ctx, l.spec.Disks, false, nil)
}

// set applies a change set; the same one again after a power cut.
func set(kind changeset.Kind, cut changeset.Cut, extents ...extent) func(*life, context.Context, replica.Writer) error {
	return func(l *life, ctx context.Context, w replica.Writer) error {
		s := w.State()
		cs := l.sets[l.step]
		if cs == nil || cs.Summary().Header.Generation != s.Generation {
			cs = l.build(s, kind, cut, extents)
		}
		l.after = l.with(cs, cut)
		p, err := w.Apply(ctx, cs)
		if err == nil {
			require.Equal(l.t, l.after.points[p.ID] != nil, p.ID != 0)
		}
		return err
	}
}

func (l *life) build(s replica.State, kind changeset.Kind, cut changeset.Cut, extents []extent) *rt.ChangeSet {
	b := rt.After(s, kind)
	for _, e := range extents {
		if e.data == nil {
			b.Zero(e.disk, e.offset, e.length)
		} else {
			b.Write(e.disk, e.offset, e.data)
		}
	}
	cs := b.Cut(cut)
	l.sets[l.step], l.writes[cs] = cs, extents
	return cs
}

// with is what is held before the step, and the change set.
func (l *life) with(cs *rt.ChangeSet, cut changeset.Cut) content {
	c := l.before.clone()
	for _, e := range l.writes[cs] {
		if e.data == nil {
			clear(c.now[e.disk][e.offset : e.offset+e.length])
		}
		copy(c.now[e.disk][e.offset:], e.data)
	}
	c.seq = cs.Summary().Header.Seq
	if cut.Consistency != ident.NoConsistency {
		c.points[c.seq] = images(c.now)
	}
	return c
}

func thin(points ...ident.Seq) func(*life, context.Context, replica.Writer) error {
	return func(l *life, ctx context.Context, w replica.Writer) error {
		var gone []ident.Seq
		for _, p := range points {
			if p < l.before.seq { // a resync may have moved the numbers on
				gone = append(gone, p)
				delete(l.after.points, p)
			}
		}
		_, err := w.Delete(ctx, gone)
		return err
	}
}

func (l *life) resized(size int64) {
	now := make([]byte, size)
	copy(now, l.before.now[1])
	l.after.now[1] = now
}

func resizeTo(size int64) func(*life, context.Context, replica.Writer) error {
	return func(l *life, ctx context.Context, w replica.Writer) error {
		l.resized(size)
		disks := slices.Clone(l.spec.Disks)
		disks[1].Size = size
		if err := w.BeginGeneration(ctx, disks, false, nil); err != nil {
			return err
		}
		l.spec.Disks = disks
		return nil
	}
}

// grow needs the writer to be opened again, which run does after every step.
func grow(size int64) func(*life, context.Context, replica.Writer) error {
	return func(l *life, _ context.Context, _ replica.Writer) error {
		l.resized(size)
		l.spec.Disks = slices.Clone(l.spec.Disks)
		l.spec.Disks[1].Size = size
		return nil
	}
}

// open opens store and writer as the server does after a start.
func (l *life) open(fs *crashfs.FS) (*Store, replica.Writer, error) {
	s, err := OpenFS(fs, powerDir)
	if err != nil {
		return nil, nil, err
	}
	w, err := s.OpenWriter(l.t.Context(), 1, l.spec)
	return s, w, err
}

// run lives on to the end, or until the power goes.
func (l *life) run(fs *crashfs.FS) error {
	_, w, err := l.open(fs)
	if err != nil {
		return err
	}
	defer func() {
		if w != nil {
			_ = w.Close()
		}
	}()
	for l.step < len(steps) {
		before := l.spec
		err := steps[l.step](l, l.t.Context(), w)
		if err != nil && l.retry != nil && l.retry(err) {
			l.after = l.before.clone()
			continue
		}
		if err != nil {
			return err
		}
		if before.Disks[1].Size < l.spec.Disks[1].Size { // it grows when it is opened
			if err := w.Close(); err != nil {
				return err
			}
			if _, w, err = l.open(fs); err != nil {
				return err
			}
		}
		l.before, l.step = l.after, l.step+1
		l.after = l.before.clone()
	}
	return nil
}

// recover opens the store after a power cut and checks that it holds what it held
// before the step at work, or after it, and every point as it was.
func (l *life) recover(fs *crashfs.FS) error {
	s, err := OpenFS(fs, powerDir)
	if err != nil {
		return err
	}
	if r, err := s.OpenReader(l.t.Context(), l.spec.Machine); err == nil {
		st, err := r.State(l.t.Context())
		require.NoError(l.t, err)
		l.spec.Disks[1].Size = st.Spec.Disks[1].Size
	} else {
		require.ErrorIs(l.t, err, replica.ErrNotFound)
		require.Zero(l.t, l.before.seq, "the replica is gone")
	}
	_, w, err := l.open(fs)
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if l.matches(w.State(), l.after) {
		l.before = l.after.clone()
	}
	require.True(l.t, l.matches(w.State(), l.before), "step %d: position %s, %d points, want those of %d or %d",
		l.step, w.State().Position, len(w.State().Points), l.before.seq, l.after.seq)
	return l.reads(s)
}

// matches reports whether the state's position, points and sizes are the content's.
func (l *life) matches(s replica.State, c content) bool {
	fits := s.Position.Seq == c.seq && len(s.Points) == len(c.points)
	for _, p := range s.Points {
		fits = fits && c.points[p.ID] != nil
	}
	for i, d := range s.Spec.Disks {
		fits = fits && d.Size == int64(len(c.now[i]))
	}
	return fits
}

func (l *life) reads(s *Store) error {
	r, err := s.OpenReader(l.t.Context(), l.spec.Machine)
	if err != nil {
		return err
	}
	for id, want := range l.before.points {
		for i, d := range l.spec.Disks {
			rt.CheckDisk(l.t, r, id, d.ID, want[i])
		}
	}
	return r.Close()
}

// resync begins anew with other content, as when what was spooled is lost. Zeros
// are sent unless the store says that it is empty.
func (l *life) resync(fs *crashfs.FS) error {
	_, w, err := l.open(fs)
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	if err := w.BeginGeneration(l.t.Context(), l.spec.Disks, false, nil); err != nil {
		return err
	}
	s := w.State()
	extents := []extent{{disk: 0, offset: 5 * block, data: rt.Pattern(77, block)}, {disk: 1, offset: block, data: rt.Pattern(78, 2*block)}}
	if !s.Empty {
		extents = append([]extent{{disk: 0, length: s.Spec.Disks[0].Size}, {disk: 1, length: s.Spec.Disks[1].Size}}, extents...)
	}
	l.before.now = [][]byte{make([]byte, s.Spec.Disks[0].Size), make([]byte, s.Spec.Disks[1].Size)}
	cs := l.build(s, changeset.Base, rt.Complete(), extents)
	if _, err := w.Apply(l.t.Context(), cs); err != nil {
		return err
	}
	l.before = l.with(cs, rt.Complete())
	l.after = l.before.clone()
	for i, d := range w.State().Spec.Disks {
		leaves, err := w.Leaves(d.ID)
		require.NoError(l.t, err)
		sums := make([]uint64, leaves.Len())
		require.NoError(l.t, leaves.ReadSums(0, sums))
		require.Equal(l.t, checksum.SumAll(nil, d.Seed, 0, l.before.now[i]), sums)
	}
	return nil
}

// TestPowerCutAtEveryCall cuts the power after each call that changes something,
// and maybe again while the store recovers or goes on.
func TestPowerCutAtEveryCall(t *testing.T) {
	first, stride := sample(t, 6)
	for calls := 1 + first; ; calls += stride {
		require.Less(t, calls, powerCalls)
		fs, l := crashfs.New(), newLife(t)
		fs.CutAfter(calls)
		err := l.run(fs)
		for _, seed := range []uint64{uint64(calls % 2), uint64(100 + calls)} { // all lost or kept, and a choice
			t.Logf("power cut after %d calls, in step %d, seed %d", calls, l.step, seed)
			goOn(l.fork(), fs, seed)
		}
		if err == nil {
			return
		}
		require.ErrorIs(t, err, crashfs.ErrPower)
	}
}

// goOn lives on after a power cut, to the end.
func goOn(l *life, fs *crashfs.FS, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 9))
	for n := 1; ; n++ {
		fs = fs.Crash(seed)
		if n < powerCuts && seed > crashfs.AllKept && rnd.IntN(2) == 0 {
			fs.CutAfter(1 + rnd.IntN(60))
		}
		err := l.recover(fs)
		if err == nil && seed%4 == 3 && l.step < 8 { // disks are as they were given
			err = l.resync(fs)
			l.step = max(l.step, 3)
		}
		if err == nil {
			err = l.run(fs)
		}
		if err == nil {
			break
		}
		require.ErrorIs(l.t, err, crashfs.ErrPower)
		require.Less(l.t, n, powerCuts)
	}
	require.NoError(l.t, l.recover(fs.Crash(crashfs.AllLost)))
}

// TestKilledThenPowerCut: the process is killed, the next one goes on with what it
// finds in the system's memory, and then the power goes.
func TestKilledThenPowerCut(t *testing.T) {
	first, stride := sample(t, 6)
	for calls := 1 + first; ; calls += stride {
		require.Less(t, calls, powerCalls)
		fs, l := crashfs.New(), newLife(t)
		fs.CutAfter(calls)
		err := l.run(fs)
		fs.CutAfter(-1)
		require.NoError(t, l.recover(fs))
		fs.CutAfter(calls % 40)
		if runErr := l.run(fs); runErr != nil {
			require.ErrorIs(t, runErr, crashfs.ErrPower)
		}
		seed := uint64(calls) * uint64(calls%3) // every third time all is lost
		t.Logf("killed after %d calls, power cut %d later, seed %d", calls, calls%40, seed)
		goOn(l.fork(), fs, seed)
		if err == nil {
			return
		}
		require.ErrorIs(t, err, crashfs.ErrPower)
	}
}

// TestFaultAtEveryCall lets one call fail. The step that it was in fails, is done
// again by the same writer, and by another, and is then as good as any other.
func TestFaultAtEveryCall(t *testing.T) {
	for name, rule := range map[string]crashfs.Rule{
		"no space":             {Op: crashfs.Write, Err: syscall.ENOSPC, Short: true},
		"no space for a name":  {Op: crashfs.Name, Err: syscall.ENOSPC},
		"write fails":          {Op: crashfs.Write, Err: syscall.EIO},
		"sync fails":           {Op: crashfs.Sync, Err: syscall.EIO},
		"directory sync fails": {Op: crashfs.SyncDir, Err: syscall.EIO},
		"read fails":           {Op: crashfs.Read, Err: syscall.EIO},
	} {
		for _, same := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, same writer %t", name, same), func(t *testing.T) {
				t.Parallel()
				first, stride := sample(t, 16)
				for skip := first; ; skip += stride {
					require.Less(t, skip, powerCalls)
					fs, l := crashfs.New(), newLife(t)
					rule := rule
					rule.Skip, rule.Times = skip, 1
					fs.Inject(rule)
					if !faulted(l, fs, rule.Err, same) {
						return
					}
					t.Logf("call %d, step %d", skip, l.step)
					goOn(l.fork(), fs, uint64(skip%2)*uint64(skip))
					fs.Mend()
					require.NoError(t, l.recover(fs))
					require.NoError(t, l.run(fs))
				}
			})
		}
	}
}

// faulted lives on until the fault, and past it when the same writer is to try the
// step again. It reports whether there was a fault.
func faulted(l *life, fs *crashfs.FS, fault error, same bool) bool {
	seen := false
	check := func(err error) {
		seen = true
		require.ErrorIs(l.t, err, fault)
		require.Equal(l.t, fault == syscall.ENOSPC, errors.Is(err, replica.ErrNoSpace), "%v", err)
	}
	at := 0
	l.retry = func(err error) bool {
		check(err)
		at = l.step
		return same
	}
	steps := l.step
	err := l.run(fs)
	switch {
	case !seen && err != nil: // while it was opened
		check(err)
	case same && seen:
		require.NoError(l.t, err, "step %d is tried again from %d", at, steps)
	}
	l.retry = nil
	return seen
}
