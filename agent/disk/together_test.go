//go:build linux

package disk

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const blocks = 2048

// filled is a disk of which each block is like no other. It is a file that is read as
// block devices are.
func filled(t *testing.T) *Disk {
	t.Helper()
	data := make([]byte, blocks*Align)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	d := open(t, path)
	d.image = false
	return d
}

// pieces are n of different lengths from anywhere on the disk.
func pieces(n int, seed uint64) []Piece {
	random := rand.New(rand.NewPCG(seed, 0))
	out := make([]Piece, n)
	for i := range out {
		length := 1 + random.IntN(8)
		out[i] = Piece{Buffer(length * Align), random.Int64N(blocks-8) * Align}
	}
	return out
}

func check(t *testing.T, d *Disk, read []Piece) {
	t.Helper()
	for _, p := range read {
		want := Buffer(len(p.Data))
		_, err := d.ReadAt(want, p.Offset)
		require.NoError(t, err)
		require.Equal(t, want, p.Data, "at %d", p.Offset)
	}
}

func TestReadAll(t *testing.T) {
	d := filled(t)
	require.Equal(t, atOnce, d.AtOnce())
	for _, n := range []int{0, 1, 2, atOnce, atOnce + 1, 3*atOnce + 7} {
		read := pieces(n, uint64(n))
		require.NoError(t, d.ReadAll(read))
		check(t, d, read)
	}
	read := pieces(atOnce, 5)
	for i, ok := range d.together(read) {
		require.True(t, ok, "piece %d was read at once with the others", i)
	}
}

func TestReadAllOfManyAtOnce(t *testing.T) {
	d := filled(t)
	var wg sync.WaitGroup
	for i := range 4 * maxQueues {
		wg.Go(func() {
			for round := range 20 {
				read := pieces(atOnce, uint64(i*1000+round))
				if err := d.ReadAll(read); err != nil {
					t.Error(err)
					return
				}
				check(t, d, read)
			}
		})
	}
	wg.Wait()
}

func TestReadAllPastTheEnd(t *testing.T) {
	d := filled(t)
	read := pieces(10, 1)
	read[7].Offset = blocks * Align
	err := d.ReadAll(read)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, "at 8388608 of disk "+d.Path())
}

// TestReadAllWithoutQueues: what the kernel does not take is read one after the other.
func TestReadAllWithoutQueues(t *testing.T) {
	d := filled(t)
	var before []*queue
	for range maxQueues {
		before = append(before, <-queues)
		queues <- &queue{context: 1} // no such context
	}
	defer func() {
		for _, q := range before {
			<-queues
			queues <- q
		}
	}()
	read := pieces(2*atOnce, 9)
	require.NotContains(t, d.together(read[:atOnce]), true)
	require.NoError(t, d.ReadAll(read))
	check(t, d, read)
}

func TestReadAllOfAnImage(t *testing.T) {
	d := open(t, image(t, blocks*Align, 1, 2, 700))
	require.Equal(t, 1, d.AtOnce())
	read := pieces(atOnce, 4)
	require.NoError(t, d.ReadAll(read))
	check(t, d, read)
}
