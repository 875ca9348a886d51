package main

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/agent/tracker/scan"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// writer changes random blocks of a disk in a burst every second, if its rate is not 0,
// and is the tracker that knows which: the path from a dirty block to the replica is
// measured, not the search for it. It stands for the trackers that are told of writes,
// which need a block device; our disks here are files in memory, as those of the peers.
type writer struct {
	*scan.Tracker // for the base copy
	path          string
	size          int64
	rate          int
	lasts         time.Duration

	disk  tracker.Disk
	info  changeset.Disk
	begun bool          // the disk has been read as a whole
	begin chan struct{} // closed then

	mu    sync.Mutex
	dirty []uint64
}

func newWriter(path string, size int64, rate int, lasts time.Duration) *writer {
	return &writer{Tracker: scan.New(), path: path, size: size, rate: rate, lasts: lasts, begin: make(chan struct{}),
		dirty: make([]uint64, (checksum.Blocks(size)+63)/64)}
}

// run writes, for as long as it shall.
func (w *writer) run(ctx context.Context) {
	if w.rate == 0 {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-w.begin:
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY, 0)
	if err != nil {
		slog.Error("writer", "error", err)
		return
	}
	defer func() { _ = f.Close() }()
	rnd := rand.New(rand.NewPCG(1, 2))
	block := make([]byte, checksum.BlockSize)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(w.lasts); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		for range w.rate {
			n := rnd.Int64N(w.size / checksum.BlockSize)
			for i := 0; i < len(block)/2; i += 8 { // half noise, half zeros
				binary.LittleEndian.PutUint64(block[i:], rnd.Uint64())
			}
			if _, err := f.WriteAt(block, n*checksum.BlockSize); err != nil {
				slog.Error("writer", "error", err)
				return
			}
			w.mark(n) // after it was written: a pass in between reads it again
		}
	}
}

func (w *writer) mark(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty[n/64] |= 1 << (n % 64)
}

func (w *writer) Name() string { return "measured" }

func (w *writer) Attach(disks []tracker.Disk) (bool, error) {
	w.disk = disks[0]
	return w.Tracker.Attach(disks)
}

func (w *writer) Begin(disks []changeset.Disk) {
	w.Tracker.Begin(disks)
	w.info = disks[0]
}

func (w *writer) Forget(d int, r checksum.Range) {
	w.Tracker.Forget(d, r)
	for n := r.Offset / checksum.BlockSize; n < checksum.Blocks(r.End()); n++ {
		w.mark(n)
	}
}

func (w *writer) Pass(ctx context.Context, d int, emit tracker.Emit, p tracker.Progress) error {
	if !w.begun {
		if err := w.Tracker.Pass(ctx, d, emit, p); err != nil {
			return err
		}
		w.begun = true
		close(w.begin)
		return nil
	}
	w.mu.Lock()
	dirty := w.dirty
	w.dirty = make([]uint64, len(dirty))
	w.mu.Unlock()
	buf := disk.Buffer(changeset.MaxExtentBytes)
	var sums []uint64
	return eachRun(dirty, func(from, to int64) error {
		b := buf[:(to-from)*checksum.BlockSize]
		at := from * checksum.BlockSize
		if _, err := w.disk.ReadAt(b, at); err != nil {
			return err
		}
		sums = checksum.SumAll(sums[:0], w.info.Seed, at, b)
		return emit(changeset.Extent{Disk: d, Offset: at, Length: int64(len(b)), Data: b, Sums: sums})
	})
}

// eachRun gives the runs of set bits, at most as long as an extent.
func eachRun(words []uint64, fn func(from, to int64) error) error {
	const most = changeset.MaxExtentBytes / checksum.BlockSize
	from, to := int64(0), int64(0)
	for i, w := range words {
		for w != 0 {
			n := int64(i*64 + bits.TrailingZeros64(w))
			w &= w - 1
			if n == to && to-from < most && to > from {
				to++
				continue
			}
			if from < to {
				if err := fn(from, to); err != nil {
					return err
				}
			}
			from, to = n, n+1
		}
	}
	if from < to {
		return fn(from, to)
	}
	return nil
}
