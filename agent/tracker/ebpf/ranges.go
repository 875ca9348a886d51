//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What happened to a range; bpf/track.h says the same in C.
const (
	issued = iota
	done
	seen
)

// span is a range that was too large for the programs to mark bit by bit.
type span struct {
	dev, since, first, end, what uint64
}

// A record of the ring: a header, of which the first half is the length with two flags,
// and the span.
const (
	recordHeader = 8
	recordBusy   = 1 << 31
	recordDrop   = 1 << 30
	recordBytes  = recordHeader + int(unsafe.Sizeof(span{}))
	// busyLimit is how long a record may be in the making: a program takes far less
	// than a microsecond for it, but its processor may be taken away by a hypervisor.
	busyLimit = 10 * time.Second
	busyPause = 10 * time.Microsecond
)

// ring is the kernel's ring of ranges. A record leaves it after it was dealt with, so
// that a process that dies loses none.
type ring struct {
	head, tail []byte
	consumer   *uint64
	producer   *uint64
	data       []byte
}

func mapRing(m *ebpf.Map) (*ring, error) {
	page, size := os.Getpagesize(), int(m.MaxEntries())
	head, err := unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring of ranges: %w", err)
	}
	tail, err := unix.Mmap(m.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED) // the data twice, so that no record wraps
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the ring of ranges: %w", err), unix.Munmap(head))
	}
	return &ring{head, tail, (*uint64)(unsafe.Pointer(&head[0])), (*uint64)(unsafe.Pointer(&tail[0])), tail[page:]}, nil //nolint:gosec // pages are aligned
}

func (r *ring) close() error { return errors.Join(unix.Munmap(r.head), unix.Munmap(r.tail)) }

// drain gives all records that were begun before the call to use.
func (r *ring) drain(use func(span)) error {
	until, size := atomic.LoadUint64(r.producer), uint64(len(r.data)/2)
	for at := *r.consumer; at < until; {
		record := r.data[at%size:]
		length, err := r.ready(record)
		if err != nil {
			return err
		}
		n := uint64(length &^ recordDrop)
		if n != uint64(unsafe.Sizeof(span{})) {
			return fmt.Errorf("the ring of ranges holds a record of %d bytes: the pinned programs are of another version", n)
		}
		if length&recordDrop == 0 {
			use(*(*span)(unsafe.Pointer(&record[recordHeader]))) //nolint:gosec // records are aligned to 8 bytes
		}
		at += uint64(recordBytes)
		atomic.StoreUint64(r.consumer, at)
	}
	return nil
}

// ready waits until a record is complete.
func (r *ring) ready(record []byte) (uint32, error) {
	length := (*uint32)(unsafe.Pointer(&record[0])) //nolint:gosec // records are aligned to 8 bytes
	for end := time.Now().Add(busyLimit); ; time.Sleep(busyPause) {
		if n := atomic.LoadUint32(length); n&recordBusy == 0 {
			return n, nil
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("a range in the ring is not complete after %v", busyLimit)
		}
	}
}

// apply does for a large range what the programs do for a small one: bpf/track.c, mark.
func (d *disk) apply(s span) {
	if s.since != d.since && s.since != never || s.end > d.blocks || s.first >= s.end {
		return // of a disk that had the number before
	}
	turn, last := atomic.LoadUint64(&d.turn)&1, (s.end-1)/wordBlocks
	mask := ^uint64(0) << (s.first % wordBlocks)
	for n := s.first / wordBlocks; n <= last; n++ {
		if n == last {
			mask &= ^uint64(0) >> (wordBlocks - 1 - (s.end-1)%wordBlocks)
		}
		d.words[n].mark(mask, turn, s.what)
		atomic.OrUint64(&d.tops[n/wordBlocks].changed, 1<<(n%wordBlocks))
		mask = ^uint64(0)
	}
}

func (w *word) mark(mask, turn, what uint64) {
	if what == issued {
		busy := atomic.OrUint64(&w.underWay, mask)
		busy |= atomic.LoadUint64(&w.doubt[0]) | atomic.LoadUint64(&w.doubt[1])
		if busy &= mask; busy != 0 {
			atomic.OrUint64(&w.doubt[turn], busy)
		}
	}
	atomic.OrUint64(&w.changed, mask)
	if what == done {
		atomic.AndUint64(&w.underWay, ^mask)
	}
}
