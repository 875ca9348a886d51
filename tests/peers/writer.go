package main

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/reading"
	"drover/agent/tracker/scan"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// writer changes random blocks of a disk all the time, if its rate is not 0,
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
	dirty changes.Bitmap
}

func newWriter(path string, size int64, rate int, lasts time.Duration) *writer {
	return &writer{Tracker: scan.New(), path: path, size: size, rate: rate, lasts: lasts, begin: make(chan struct{}),
		dirty: make(changes.Bitmap, changes.Words(size))}
}

// writeEvery is the time between two small bursts of writes.
const writeEvery = 10 * time.Millisecond

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
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for end := time.Now().Add(w.lasts); time.Now().Before(end) && ctx.Err() == nil; <-tick.C {
		for range w.rate / int(time.Second/writeEvery) {
			n := rnd.Int64N(w.size / checksum.BlockSize)
			for i := 0; i < len(block)/2; i += 8 { // half noise, half zeros
				binary.LittleEndian.PutUint64(block[i:], rnd.Uint64())
			}
			if _, err := f.WriteAt(block, n*checksum.BlockSize); err != nil {
				slog.Error("writer", "error", err)
				return
			}
			w.mark(n, n+1) // after it was written: a pass in between reads it again
		}
	}
}

func (w *writer) mark(first, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty.Set(first, end)
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
	if !w.begun {
		w.Tracker.Forget(d, r)
		return
	}
	w.mark(r.Offset/checksum.BlockSize, checksum.Blocks(r.End()))
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
	return w.send(ctx, d, emit)
}

// Resend sends what a comparison has found, which is all that is dirty then.
func (w *writer) Resend(ctx context.Context, d int, emit tracker.Emit, p tracker.Progress) error {
	if !w.begun {
		return w.Tracker.Resend(ctx, d, emit, p)
	}
	return w.send(ctx, d, emit)
}

// send reads what is dirty as the trackers do that are told of writes, and sends it.
func (w *writer) send(ctx context.Context, d int, emit tracker.Emit) error {
	w.mu.Lock()
	dirty := w.dirty
	w.dirty = make(changes.Bitmap, len(dirty))
	w.mu.Unlock()
	return reading.Read(ctx, reading.Blocks(w.disk, w.info, dirty), func(c *reading.Chunk) error {
		return c.Emit(d, dirty.Has, emit, func(int64, int64) {})
	})
}
