// Package changes is what the sources of changes have in common: parts of the
// kernel that see every write to a block device pass by, and say which blocks may
// have changed. A source reads no disk; package live does, with what a source says.
package changes

import (
	"math/bits"
	"sync/atomic"
	"time"

	"drover/datapath/checksum"
)

// PendingLimit is how long a write may be under way at most: longer than any device
// takes before the kernel gives it up. Guests of VMware give a disk 180 s.
const PendingLimit = 5 * time.Minute

// Device is a whole disk that a source follows.
type Device struct {
	Path string // of its node, for messages and errors
	// Major and Minor are the kernel's numbers of the whole disk, never of a partition.
	// They are of this boot only.
	Major, Minor uint32
	Size         int64 // bytes
}

// Source sees the writes to devices. Its methods are called by one goroutine at a
// time.
//
// A write is seen from the moment Follow has returned. A block that was given to the
// device, and of which it is not known yet whether the device is done with it, is
// reported again by every Drain until that is known, or so much time has passed that
// it cannot be under way any more (see PendingLimit): whoever reads the block in
// between may read what was there before.
type Source interface {
	// Name is the source's short name, for the inventory and the log.
	Name() string
	// Follow follows these devices and no others from now on, in the order in which the
	// other methods count them. Devices that were followed go on without a gap, also
	// when an earlier process followed them and the source outlives processes. Of each
	// device it says whether it goes on so (kept), or begins now.
	Follow(devices []Device) (kept []bool, err error)
	// Drain adds what may have changed on a device since the last Drain to the bitmap. It
	// adds before it takes: with a bitmap in Memory that outlives the process, nothing is
	// lost when the process is killed.
	Drain(device int, into Bitmap) error
	// Gap says why writes may have been missed since the last call, in a sentence for
	// people; empty if none were. After a gap nothing is known of any device until its
	// checksums have been compared. What it says counts as told with the next call: a
	// process that is killed before is told again after its restart.
	Gap() (string, error)
	// Memory gives n bytes, all zeros at first, that live as long as the following of
	// the device does. With a source that outlives processes they do too, and kept tells
	// that they were there. A name has 1 to 8 lower-case letters.
	Memory(device int, name string, n int) (mem []byte, kept bool, err error)
	// Counters are what the source has counted since it began, by name: seen, lost,
	// pending and so on, for metrics and for drover-agent doctor.
	Counters() (map[string]uint64, error)
	// Close lets go of the source. One that outlives processes goes on following.
	Close() error
}

// Bitmap has one bit for each checksum.BlockSize of a disk, the last one perhaps for
// less: block b is bit b%64 of word b/64. Its methods may be called by several
// goroutines at once; each word changes at once.
type Bitmap []uint64

const wordBits = 64

// Words is how many words the bitmap of a disk of so many bytes has.
func Words(size int64) int { return int((checksum.Blocks(size) + wordBits - 1) / wordBits) }

// Set sets the blocks from first up to, not including, end.
func (b Bitmap) Set(first, end int64) {
	for first < end {
		w, bit := first/wordBits, uint(first%wordBits)
		n := min(end-first, int64(wordBits-bit))
		atomic.OrUint64(&b[w], ones(n)<<bit)
		first += n
	}
}

// Clear clears the blocks from first up to, not including, end.
func (b Bitmap) Clear(first, end int64) {
	for first < end {
		w, bit := first/wordBits, uint(first%wordBits)
		n := min(end-first, int64(wordBits-bit))
		atomic.AndUint64(&b[w], ^(ones(n) << bit))
		first += n
	}
}

// Has reports whether the block is set.
func (b Bitmap) Has(block int64) bool {
	return atomic.LoadUint64(&b[block/wordBits])>>(block%wordBits)&1 != 0
}

// ones gives a word with the lowest n bits set, n from 1 to 64.
func ones(n int64) uint64 { return ^uint64(0) >> (wordBits - n) }

// Next gives the first run of set blocks at or after from: [first, end). With first
// == end there is none. The run ends at most at limit blocks.
func (b Bitmap) Next(from, limit int64) (first, end int64) {
	all := int64(len(b)) * wordBits
	for first = from; first < all; {
		word := atomic.LoadUint64(&b[first/wordBits]) >> (first % wordBits)
		if word == 0 {
			first = (first/wordBits + 1) * wordBits
			continue
		}
		first += int64(bits.TrailingZeros64(word))
		break
	}
	for end = first; end < all && end-first < limit; {
		n := int64(bits.TrailingZeros64(^(atomic.LoadUint64(&b[end/wordBits]) >> (end % wordBits))))
		n = min(n, wordBits-end%wordBits)
		if n == 0 {
			break
		}
		end += n
	}
	return min(first, all), min(end, first+limit, all)
}

// Count is how many blocks are set.
func (b Bitmap) Count() (n int64) {
	for i := range b {
		n += int64(bits.OnesCount64(atomic.LoadUint64(&b[i])))
	}
	return n
}
