package loop

import (
	"math/rand/v2"

	"golang.org/x/sync/errgroup"

	"drover/datapath/checksum"
)

// writers is how many goroutines write at once.
const writers = 4

// WriteAtRandom writes at random in all ways, by several goroutines at once, until
// each has done so many writes. The device has at least 1 MiB.
func (d *Device) WriteAtRandom(seed uint64, each int) error {
	var g errgroup.Group
	for i := range uint64(writers) {
		rnd := rand.New(rand.NewPCG(seed, i))
		g.Go(func() error {
			for range each {
				if err := d.writeOnce(rnd); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// writeOnce writes through the cache in the first quarter and around it in the rest:
// where both are used at once the kernel warns of damage, and fails a sync.
func (d *Device) writeOnce(rnd *rand.Rand) error {
	n := (1 + rnd.Int64N([]int64{1, 8, 64, 384}[rnd.IntN(4)])) * Sector
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	border := d.Size / 4 / checksum.BlockSize * checksum.BlockSize
	if rnd.IntN(6) == 0 {
		return d.Buffered(rnd.Int64N(border-n), data)
	}
	off := border + rnd.Int64N((d.Size-border-n)/Sector+1)*Sector
	switch rnd.IntN(8) {
	case 0:
		return d.Discard(off, n)
	case 1:
		return d.Zero(off, n)
	case 2: // in whole pages
		return d.Punch(off/checksum.BlockSize*checksum.BlockSize, checksum.BlockSize)
	default:
		return d.Write(off, data)
	}
}
