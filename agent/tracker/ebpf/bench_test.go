package ebpf

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"drover/agent/tracker/changes"
	"drover/tests/loop"
)

// BenchmarkWrite writes 4 KiB around the page cache, with and without the programs; of
// these it says how long one run takes.
func BenchmarkWrite(b *testing.B) {
	for _, followed := range []bool{false, true} {
		b.Run(map[bool]string{false: "alone", true: "followed"}[followed], func(b *testing.B) {
			need(b)
			d, data := loop.New(b, 64*mega), ones(4096)
			if followed {
				stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
				require.NoError(b, err)
				defer func() { require.NoError(b, stats.Close()) }()
				s := open(b, "")
				follow(b, s, d)
				defer func() { report(b, s) }()
			}
			var seed atomic.Uint64
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				rnd := rand.New(rand.NewPCG(1, seed.Add(1)))
				for pb.Next() {
					require.NoError(b, d.Write(rnd.Int64N(64*mega/4096)*4096, data))
				}
			})
		})
	}
}

func report(b *testing.B, s *Source) {
	var all time.Duration
	for _, name := range events {
		stats, err := s.programs.programs[name].Stats()
		require.NoError(b, err)
		all += stats.Runtime
	}
	b.ReportMetric(float64(all.Nanoseconds())/float64(b.N), "program-ns/op")
}

// BenchmarkDrain drains a disk of 1 TiB of which 10,000 blocks have changed, and one of
// which none has.
func BenchmarkDrain(b *testing.B) {
	const blocks = 1 << 28
	d, into := plainDisk(blocks), make(changes.Bitmap, blocks/wordBlocks)
	for _, c := range []struct {
		name    string
		changed int
	}{{"none", 0}, {"10000", 10_000}} {
		b.Run(c.name, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				b.StopTimer()
				for range c.changed {
					first := rnd.Uint64N(blocks)
					d.apply(span{first: first, end: first + 1, what: seen})
				}
				b.StartTimer()
				d.drain(into, false)
			}
		})
	}
}
