package scan

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	block = checksum.BlockSize
	mega  = 1 << 20
	seed  = 0x5eed
)

// rig is a tracker of one sparse image file, and the replica that its extents make.
type rig struct {
	t       *testing.T
	file    *os.File
	disk    *disk.Disk
	scan    *Tracker
	replica []byte
	emitted []changeset.Extent // of the last pass, without data
}

func newRig(t *testing.T, size int64) *rig {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	file, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, file.Truncate(size))
	d, err := disk.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = file.Close(), d.Close() })
	r := &rig{t: t, file: file, disk: d, scan: New(), replica: make([]byte, size)}
	attach(t, r.scan, d)
	r.scan.Begin([]changeset.Disk{{ID: ident.DiskID{1}, Size: size, Seed: seed}})
	return r
}

func attach(t *testing.T, s *Tracker, d tracker.Disk) {
	t.Helper()
	_, err := s.Attach([]tracker.Disk{d})
	require.NoError(t, err)
}

func (r *rig) write(off int64, data []byte) {
	r.t.Helper()
	_, err := r.file.WriteAt(data, off)
	require.NoError(r.t, err)
}

// fill writes n bytes that are not zero.
func (r *rig) fill(off, n int64, b byte) {
	r.t.Helper()
	r.write(off, bytes.Repeat([]byte{b}, int(n)))
}

func (r *rig) punch(off, n int64) {
	r.t.Helper()
	err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		r.write(off, make([]byte, n))
		return
	}
	require.NoError(r.t, err)
}

func (r *rig) image() []byte {
	r.t.Helper()
	b, err := os.ReadFile(r.file.Name())
	require.NoError(r.t, err)
	return b
}

// apply puts an extent into the replica, after the checks a server makes.
func (r *rig) apply(e changeset.Extent) error {
	r.t.Helper()
	size := int64(len(r.replica))
	end := e.Offset + e.Length
	require.True(r.t, e.Disk == 0 && e.Offset%block == 0 && e.Length > 0 && end <= size, "%+v", e)
	require.True(r.t, end%block == 0 || end == size, "unaligned end inside the disk")
	if n := len(r.emitted); n > 0 {
		require.GreaterOrEqual(r.t, e.Offset, r.emitted[n-1].Offset+r.emitted[n-1].Length, "order of offsets")
	}
	if e.Zero {
		require.Empty(r.t, e.Data)
		require.Empty(r.t, e.Sums)
		clear(r.replica[e.Offset:end])
	} else {
		require.LessOrEqual(r.t, e.Length, int64(changeset.MaxExtentBytes))
		require.Len(r.t, e.Data, int(e.Length))
		require.Equal(r.t, checksum.SumAll(nil, seed, e.Offset, e.Data), e.Sums)
		copy(r.replica[e.Offset:], e.Data)
	}
	r.emitted = append(r.emitted, changeset.Extent{Offset: e.Offset, Length: e.Length, Zero: e.Zero})
	return nil
}

// pass scans and compares the replica with the image.
func (r *rig) pass() []changeset.Extent {
	r.t.Helper()
	r.emitted = nil
	var done int64
	err := r.scan.Pass(r.t.Context(), 0, r.apply, func(n int64) {
		require.Greater(r.t, n, done)
		done = n
	})
	require.NoError(r.t, err)
	require.EqualValues(r.t, len(r.replica), done)
	require.True(r.t, bytes.Equal(r.image(), r.replica), "the replica differs from the image")
	return r.emitted
}

func data(off, n int64) changeset.Extent { return changeset.Extent{Offset: off, Length: n} }

func zero(off, n int64) changeset.Extent {
	return changeset.Extent{Offset: off, Length: n, Zero: true}
}

func TestFirstPassEmitsExactlyTheData(t *testing.T) {
	r := newRig(t, 16*mega+512)
	require.Equal(t, Name, r.scan.Name())
	r.fill(0, block, 1)
	r.fill(5*mega-block, 2*block, 2) // two chunks of one run
	r.fill(16*mega, 512, 3)
	r.write(9*mega, make([]byte, block)) // written, but zeros
	require.Equal(t, []changeset.Extent{data(0, block), data(5*mega-block, 2*block), data(16*mega, 512)}, r.pass())
	require.Empty(t, r.pass())
}

func TestFirstPassOfAnEmptyDisk(t *testing.T) {
	require.Empty(t, newRig(t, 16*mega).pass())
}

func TestLongRunsAreCut(t *testing.T) {
	r := newRig(t, 4*mega)
	r.fill(0, 2*mega+3*block, 9)
	require.Equal(t, []changeset.Extent{data(0, mega/2), data(mega/2, mega/2), data(mega, mega/2), data(3*mega/2, mega/2), data(2*mega, 3*block)}, r.pass())
}

func TestChangedBlockAlone(t *testing.T) {
	r := newRig(t, 8*mega+512)
	r.fill(0, 8*mega+512, 1)
	r.pass()
	r.fill(3*mega+100, 1, 2)
	require.Equal(t, []changeset.Extent{data(3*mega, block)}, r.pass())
	r.fill(8*mega+511, 1, 2)
	require.Equal(t, []changeset.Extent{data(8*mega, 512)}, r.pass())
	require.Empty(t, r.pass())
}

func TestZeroedBlocks(t *testing.T) {
	r := newRig(t, 8*mega+512)
	r.fill(0, 8*mega+512, 1)
	r.pass()
	r.write(2*block, make([]byte, block))
	require.Equal(t, []changeset.Extent{zero(2*block, block)}, r.pass())
	r.punch(2*mega, 3*mega)
	r.punch(8*mega, 512)
	r.pass()
	var sum int64
	for _, e := range r.emitted {
		require.True(t, e.Zero)
		sum += e.Length
	}
	require.EqualValues(t, 3*mega+512, sum)
	require.Empty(t, r.pass())
}

// Data beside zeros gives two extents, in one chunk too.
func TestZerosBesideData(t *testing.T) {
	r := newRig(t, mega)
	r.fill(0, 8*block, 1)
	r.pass()
	r.fill(0, 2*block, 2)
	r.write(2*block, make([]byte, 3*block))
	r.fill(5*block, block, 3)
	require.Equal(t, []changeset.Extent{data(0, 2*block), zero(2*block, 3*block), data(5*block, block)}, r.pass())
}

func TestForgetEmitsAgain(t *testing.T) {
	r := newRig(t, 4*mega+512)
	r.fill(mega, 4*block, 1)
	r.fill(4*mega, 512, 1)
	r.pass()
	r.scan.Forget(0, checksum.Range{Offset: mega + block, Length: 2 * block})
	require.Equal(t, []changeset.Extent{data(mega+block, 2*block)}, r.pass())
	require.Empty(t, r.pass())
	r.scan.Forget(0, checksum.Range{Offset: 2 * mega, Length: 2 * block}) // a hole
	require.Equal(t, []changeset.Extent{zero(2*mega, 2*block)}, r.pass())
	r.scan.Forget(0, checksum.Range{Offset: 4 * mega, Length: 512})
	require.Equal(t, []changeset.Extent{data(4*mega, 512)}, r.pass())
	r.scan.Forget(0, checksum.Range{Offset: 4 * mega, Length: 64 * mega}) // reaches past the end
	require.Equal(t, []changeset.Extent{data(4*mega, 512)}, r.pass())
	require.Empty(t, r.pass())
}

// The replica holds something else; only what is forgotten afterwards is emitted.
func TestLearn(t *testing.T) {
	r := newRig(t, 6*mega+1536)
	r.fill(mega, mega, 7)
	r.fill(6*mega, 1536, 8)
	want := checksum.SumAll(nil, seed, 0, r.image())
	var done int64
	var got []uint64
	require.NoError(t, r.scan.Learn(t.Context(), 0, func(w checksum.Window) error {
		require.EqualValues(t, len(got), w.First)
		require.EqualValues(t, len(want), w.Blocks)
		got = append(got, w.Sums...)
		return nil
	}, func(n int64) { done = n }))
	require.EqualValues(t, len(r.replica), done)
	require.Equal(t, want, got)

	r.replica = r.image()
	require.Empty(t, r.pass())
	clear(r.replica[mega : mega+block])
	r.replica[3*mega] = 1
	r.scan.Forget(0, checksum.Range{Offset: mega, Length: block})
	r.scan.Forget(0, checksum.Range{Offset: 3 * mega, Length: block})
	require.Equal(t, []changeset.Extent{data(mega, block), zero(3*mega, block)}, r.pass())
}

// Resend emits what was forgotten, and leaves what changed otherwise to the next pass.
func TestResend(t *testing.T) {
	r := newRig(t, 6*mega+512)
	r.fill(0, 6*mega+512, 7)
	r.pass()
	r.fill(2*mega, block, 8)
	r.scan.Forget(0, checksum.Range{Offset: mega, Length: 2 * block})
	r.scan.Forget(0, checksum.Range{Offset: 6 * mega, Length: 512})
	r.emitted = nil
	var done int64
	require.NoError(t, r.scan.Resend(t.Context(), 0, r.apply, func(n int64) { done = n }))
	require.Equal(t, []changeset.Extent{data(mega, 2*block), data(6*mega, 512)}, r.emitted)
	require.EqualValues(t, len(r.replica), done)
	require.Equal(t, []changeset.Extent{data(2*mega, block)}, r.pass())
	require.ErrorContains(t, r.scan.Resend(t.Context(), 1, r.apply, nil), "not attached")
}

func unseen(checksum.Window) error { return nil }

// Learn after other content was known keeps nothing of it.
func TestLearnAgain(t *testing.T) {
	r := newRig(t, 2*mega)
	r.fill(0, mega, 1)
	r.pass()
	r.scan.Forget(0, checksum.Range{Length: mega})
	r.punch(0, mega/2)
	require.NoError(t, r.scan.Learn(t.Context(), 0, unseen, nil))
	r.replica = r.image()
	require.Empty(t, r.pass())
}

// A Learn that broke off leaves no block that a pass would pass over.
func TestLearnThatFails(t *testing.T) {
	r := newRig(t, 4*mega)
	r.fill(0, 2*mega, 7)
	r.pass()
	r.fill(0, mega, 0) // zero on the disk, and not in the replica
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.scan.Learn(ctx, 0, unseen, nil)
	require.ErrorIs(t, err, context.Canceled)
	r.pass()
	require.True(t, bytes.Equal(r.image(), r.replica))
}

func TestBeginForgetsEverything(t *testing.T) {
	r := newRig(t, mega)
	r.fill(0, block, 1)
	r.pass()
	r.scan.Begin([]changeset.Disk{{Size: mega, Seed: seed}})
	clear(r.replica)
	require.Equal(t, []changeset.Extent{data(0, block)}, r.pass())
}

// Attach keeps what is known of the replicas.
func TestAttachKeepsTheSums(t *testing.T) {
	r := newRig(t, mega)
	r.fill(0, 3*block, 1)
	r.pass()
	again, err := disk.Open(r.file.Name())
	require.NoError(t, err)
	defer func() { require.NoError(t, again.Close()) }()
	attach(t, r.scan, again)
	r.fill(block, block, 2)
	require.Equal(t, []changeset.Extent{data(block, block)}, r.pass())
}

func TestErrorOfEmitKeepsTheRangePending(t *testing.T) {
	r := newRig(t, 8*mega)
	for i := range int64(8) {
		r.fill(i*mega+block, block, byte(i+1))
	}
	broken := errors.New("the line broke")
	for n := range 8 {
		r.emitted = nil
		err := r.scan.Pass(t.Context(), 0, func(e changeset.Extent) error {
			if len(r.emitted) == 1 {
				return broken
			}
			return r.apply(e)
		}, nil)
		if n == 7 {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, broken)
		}
		require.Equal(t, []changeset.Extent{data(int64(n)*mega+block, block)}, r.emitted)
	}
	require.Empty(t, r.pass())
}

// The same for a range that was forgotten and is zeros.
func TestErrorOfEmitKeepsForgottenZeros(t *testing.T) {
	r := newRig(t, 2*mega)
	r.scan.Forget(0, checksum.Range{Offset: mega, Length: block})
	broken := errors.New("the line broke")
	err := r.scan.Pass(t.Context(), 0, func(changeset.Extent) error { return broken }, nil)
	require.ErrorIs(t, err, broken)
	require.Equal(t, []changeset.Extent{zero(mega, block)}, r.pass())
}

func TestSizeChange(t *testing.T) {
	r := newRig(t, 2*mega)
	for _, size := range []int64{2*mega + 512, mega, 0} {
		require.NoError(t, r.file.Truncate(size))
		err := r.scan.Pass(t.Context(), 0, r.apply, nil)
		require.ErrorIs(t, err, tracker.ErrSize)
		require.ErrorContains(t, err, "a resync is needed")
		err = r.scan.Learn(t.Context(), 0, unseen, nil)
		require.ErrorIs(t, err, tracker.ErrSize)
	}
	require.NoError(t, r.file.Truncate(2*mega))
	require.Empty(t, r.pass())
}

func TestNotAttached(t *testing.T) {
	r := newRig(t, mega)
	for _, i := range []int{-1, 1} {
		require.ErrorContains(t, r.scan.Pass(t.Context(), i, r.apply, nil), "not attached")
		require.ErrorContains(t, r.scan.Learn(t.Context(), i, unseen, nil), "not attached")
	}
	require.ErrorContains(t, New().Pass(t.Context(), 0, r.apply, nil), "not attached")
}

func TestCancellation(t *testing.T) {
	r := newRig(t, 24*mega)
	r.fill(0, 24*mega, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := r.scan.Pass(ctx, 0, func(e changeset.Extent) error {
		cancel()
		return r.apply(e)
	}, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotEmpty(t, r.emitted)
	require.Less(t, len(r.emitted), 48)
	err = r.scan.Learn(ctx, 0, unseen, nil)
	require.ErrorIs(t, err, context.Canceled)
	r.scan.Begin([]changeset.Disk{{Size: 24 * mega, Seed: seed}})
	require.Len(t, r.pass(), 48)
}
