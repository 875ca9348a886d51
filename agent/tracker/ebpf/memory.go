//go:build linux

package ebpf

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/datapath/checksum"
)

// bpf/track.h says the same in C.
const (
	wordBlocks = 64
	header     = 4 // elements before the tops
	mmapable   = unix.BPF_F_MMAPABLE
)

// word is 64 blocks; see bpf/track.h.
type word struct {
	changed  uint64
	underWay uint64
	doubt    [2]uint64
}

const wordBytes = int64(unsafe.Sizeof(word{}))

// head is the first elements of a disk's memory: two that the programs read, and two
// that are the agent's own.
type head struct {
	blocks, base, turn, since               uint64
	sure, passthrough, beyond, chains       uint64
	size, seq, inode, turned                uint64
	oldPassthrough, oldBeyond, oldChains, _ uint64
}

// disk is what is known of one disk: memory that the programs write to.
type disk struct {
	path   string
	number number
	array  *ebpf.Map
	raw    []byte
	*head
	tops  []word // one bit in changed for each word with any bit
	words []word

	seen   identity // as of the last call of Gap
	told   [3]uint64
	memory map[string]memory
}

// memory is a part that somebody else keeps with a disk.
type memory struct {
	array *ebpf.Map
	raw   []byte
	n     int
}

// elements is how many elements the memory of a disk takes.
func elements(size int64) int64 {
	words := int64(changes.Words(size))
	return header + (words+wordBlocks-1)/wordBlocks + words
}

// arraySpec is of memory that user space maps. Only disks are inner maps.
func arraySpec(value uint32, n int64, flags uint32) *ebpf.MapSpec {
	return &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: value, MaxEntries: uint32(n), Flags: mmapable | flags} //nolint:gosec // checked against limits
}

// mapArray maps an array into the process.
func mapArray(array *ebpf.Map) ([]byte, error) {
	page := int64(os.Getpagesize())
	n := int64(array.ValueSize()) * int64(array.MaxEntries())
	raw, err := unix.Mmap(array.FD(), 0, int((n+page-1)/page*page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of the kernel's memory: %w", n, err)
	}
	return raw[:n], nil
}

func unmap(raw []byte) error {
	return unix.Munmap(raw[:cap(raw)]) // the pages, as they were mapped
}

// viewDisk maps a disk's memory.
func viewDisk(device changes.Device, array *ebpf.Map) (*disk, error) {
	raw, err := mapArray(array)
	if err != nil {
		return nil, err
	}
	all := unsafe.Slice((*word)(unsafe.Pointer(unsafe.SliceData(raw))), int64(len(raw))/wordBytes) //nolint:gosec // pages are aligned
	d := &disk{path: device.Path, number: numberOf(device), array: array, raw: raw,
		head: (*head)(unsafe.Pointer(&all[0])), memory: map[string]memory{}} //nolint:gosec // header elements are there
	words := int64(changes.Words(device.Size))
	if int64(len(all)) != elements(device.Size) {
		return nil, errors.Join(errors.New("the kernel's memory is not of this disk's size"), unmap(raw))
	}
	d.tops, d.words = all[header:int64(len(all))-words], all[int64(len(all))-words:]
	return d, nil
}

// newDisk makes the memory of a disk; since is set when the programs know it.
func newDisk(device changes.Device, id identity) (*disk, error) {
	array, err := ebpf.NewMap(arraySpec(uint32(wordBytes), elements(device.Size), unix.BPF_F_INNER_MAP))
	if err != nil {
		return nil, fmt.Errorf("take %d MiB of the kernel's memory: %w", elements(device.Size)*wordBytes>>20, err)
	}
	d, err := viewDisk(device, array)
	if err != nil {
		return nil, errors.Join(err, array.Close())
	}
	*d.head = head{
		blocks: uint64(checksum.Blocks(device.Size)), base: uint64(header + len(d.tops)), since: never, sure: never, turned: clock(), //nolint:gosec // not negative
		size: uint64(id.Size), seq: id.Seq, inode: id.Inode, //nolint:gosec // not negative
	}
	d.seen = id
	return d, nil
}

// never is later than any time.
const never = ^uint64(0)

// clock is the time as the kernel notes it for requests.
func clock() uint64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail
	return uint64(t.Nano())                         //nolint:gosec // since boot
}

// begin says that the programs know the disk since now.
func (d *disk) begin(limit uint64) {
	now := clock()
	atomic.StoreUint64(&d.sure, now+limit)
	atomic.StoreUint64(&d.since, now)
}

// resume takes over what an earlier process kept. It may have died between taking the
// bit of a word away and looking at the word once more.
func (d *disk) resume() {
	d.seen = d.identity()
	d.told = [3]uint64{d.oldPassthrough, d.oldBeyond, d.oldChains}
	for t := range d.tops {
		atomic.StoreUint64(&d.tops[t].changed, ^uint64(0))
	}
}

func (d *disk) identity() identity {
	return identity{Size: int64(d.size), Seq: d.seq, Inode: d.inode} //nolint:gosec // was one
}

// drain adds what may have changed to the bitmap, and gives how many blocks are
// pending. When the turn is over the next one begins. DESIGN.md says why the order of
// each step is what it is.
func (d *disk) drain(into changes.Bitmap, over bool) (pending int64) {
	turn := d.turn & 1
	for t := range d.tops {
		top := &d.tops[t].changed
		for left := atomic.LoadUint64(top); left != 0; left &= left - 1 {
			bit := left & -left
			n := t*wordBlocks + bits.TrailingZeros64(left)
			if n >= len(d.words) {
				atomic.AndUint64(top, ^bit)
				continue
			}
			w := &d.words[n]
			pending += int64(w.drain(&into[n], turn, over))
			if w.any() == 0 {
				atomic.AndUint64(top, ^bit)
				if w.any() != 0 {
					atomic.OrUint64(top, bit)
				}
			}
		}
	}
	if over {
		atomic.StoreUint64(&d.turn, 1-turn)
		d.turned = clock()
	}
	return pending
}

// drain adds the blocks of a word to the bitmap's before it takes them from the word.
// At the end of a turn the other turn's doubts are old enough to go, and what is under
// way becomes a doubt of this turn.
func (w *word) drain(into *uint64, turn uint64, over bool) (pending int) {
	changed := atomic.LoadUint64(&w.changed)
	atomic.OrUint64(into, changed)
	atomic.AndUint64(&w.changed, ^changed)
	underWay, old := atomic.LoadUint64(&w.underWay), atomic.LoadUint64(&w.doubt[1-turn])
	open := underWay | old | atomic.LoadUint64(&w.doubt[turn])
	atomic.OrUint64(into, open)
	if over {
		atomic.AndUint64(&w.doubt[1-turn], ^old)
		atomic.OrUint64(&w.doubt[turn], underWay)
		atomic.AndUint64(&w.underWay, ^underWay)
	}
	return bits.OnesCount64(open)
}

func (w *word) any() uint64 {
	return atomic.LoadUint64(&w.changed) | atomic.LoadUint64(&w.underWay) | atomic.LoadUint64(&w.doubt[0]) | atomic.LoadUint64(&w.doubt[1])
}

// close lets go of the memory; the kernel's stays while it is followed or pinned.
func (d *disk) close() error {
	errs := []error{unmap(d.raw), d.array.Close()}
	for _, m := range d.memory {
		errs = append(errs, unmap(m.raw), m.array.Close())
	}
	return errors.Join(errs...)
}
