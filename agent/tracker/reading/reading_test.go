package reading

import (
	"context"
	"encoding/binary"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/disk"
	"drover/agent/pace"
	"drover/agent/tracker/changes"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// memory is a disk that can read many pieces at once. Each block begins with its number.
type memory struct {
	blocks int64
	atOnce int
	fails  int64 // the block that cannot be read; 0: none

	mu    sync.Mutex
	calls []int // how many pieces each had
	now   int   // calls under way
	most  int
}

func (m *memory) CurrentSize() (int64, error) { return m.blocks * checksum.BlockSize, nil }

func (m *memory) NextData(off int64) (start, end int64, err error) {
	return off, m.blocks * checksum.BlockSize, nil
}

func (m *memory) AtOnce() int { return m.atOnce }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	for i := int64(0); i < int64(len(p)); i += checksum.BlockSize {
		block := (off + i) / checksum.BlockSize
		if m.fails > 0 && block == m.fails {
			return 0, io.ErrUnexpectedEOF
		}
		binary.LittleEndian.PutUint64(p[i:], uint64(block)+1)
	}
	return len(p), nil
}

func (m *memory) ReadAll(pieces []disk.Piece) error {
	m.mu.Lock()
	m.calls = append(m.calls, len(pieces))
	m.now++
	m.most = max(m.most, m.now)
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.now--
		m.mu.Unlock()
	}()
	for _, p := range pieces {
		if _, err := m.ReadAt(p.Data, p.Offset); err != nil {
			return err
		}
	}
	return nil
}

// scattered reads every third block and checks what it gives.
func scattered(ctx context.Context, t *testing.T, m *memory) error {
	t.Helper()
	of := changeset.Disk{Size: m.blocks * checksum.BlockSize}
	set := make(changes.Bitmap, changes.Words(of.Size))
	for b := int64(0); b < m.blocks; b += 3 {
		set.Set(b, b+1)
	}
	next := int64(0)
	err := Read(ctx, Blocks(m, of, set), func(c *Chunk) error {
		require.Equal(t, next, c.First())
		require.Equal(t, next+1, c.End())
		require.Equal(t, uint64(next)+1, binary.LittleEndian.Uint64(c.Data))
		require.Equal(t, checksum.Sum(of.Seed, c.Offset, c.Data), c.Sum(next))
		next += 3
		return nil
	})
	if err == nil {
		require.GreaterOrEqual(t, next, m.blocks)
	}
	return err
}

func TestScatteredBlocksGently(t *testing.T) {
	m := &memory{blocks: 3000, atOnce: 64}
	require.NoError(t, scattered(t.Context(), t, m))
	require.LessOrEqual(t, slices.Max(m.calls), depthFirst, "the guest's requests wait behind them")
	require.Equal(t, 1, m.most, "and one reader's only")
}

func TestScatteredBlocksInAHurry(t *testing.T) {
	m := &memory{blocks: 3000, atOnce: 64}
	require.NoError(t, scattered(pace.Hurry(t.Context()), t, m))
	require.Equal(t, batchMost, slices.Max(m.calls))
}

func TestScatteredBlocksOneAfterTheOther(t *testing.T) {
	m := &memory{blocks: 3000, atOnce: 1}
	require.NoError(t, scattered(t.Context(), t, m))
	require.Empty(t, m.calls)
}

func TestPatienceEnds(t *testing.T) {
	for _, c := range []struct{ waited, want int }{{0, 4}, {1, 8}, {2, 16}, {4, 64}, {500, 64}} {
		require.Equal(t, c.want, depth(patience*time.Duration(c.waited)+patience/2))
	}
}

func TestABlockThatCannotBeRead(t *testing.T) {
	for _, atOnce := range []int{1, 64} {
		m := &memory{blocks: 3000, atOnce: atOnce, fails: 1500}
		require.ErrorIs(t, scattered(t.Context(), t, m), io.ErrUnexpectedEOF)
		require.ErrorIs(t, scattered(pace.Hurry(t.Context()), t, m), io.ErrUnexpectedEOF)
	}
}
