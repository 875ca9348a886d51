package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/stream"
	stages "drover/tests/bench"
)

// result is one initial replication.
type result struct {
	seconds, cpu       float64
	uploaded, data     int64
	agentMem, serveMem int64
}

// copyOurs replicates disks from the agents' start until all is applied. An agent that is
// not told of writes reads its disk twice: to find nothing changed is its proof of the point.
func (b *bench) copyOurs(ctx context.Context, choice codec.Choice, told bool, images ...string) (r result, err error) {
	dir, err := b.sub("ours")
	if err != nil {
		return r, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	o, err := newOurs(b.self, dir, choice, images...)
	if err != nil {
		return r, err
	}
	o.Told = told
	if err := errors.Join(o.save(), o.start(ctx)); err != nil {
		return r, err
	}
	d, st, err := o.stream(ctx, "the base copy", complete)
	r.seconds, r.uploaded, r.data = d.Seconds(), st.CacheBytes, st.BaseDataBytes
	if err == nil {
		r.agentMem, r.serveMem = peak(o.agent), peak(o.serve)
	}
	cpu, stopErr := o.stop()
	r.cpu = cpu.Seconds()
	return r, errors.Join(err, stopErr, o.same())
}

const scanned = "s2, scan"

// initial measures the first copy beside what people would do by hand.
func (b *bench) initial(ctx context.Context) error {
	image, err := b.image(ctx, "real")
	if err != nil {
		return err
	}
	if tools := missing("zstd", "ssh", "ssh-keygen", "nbdkit", "nbdcopy", "/usr/sbin/sshd"); tools != "" {
		return fmt.Errorf("missing: %s; make peers installs them on Debian", tools)
	}
	keys, err := b.sub("ssh")
	if err != nil {
		return err
	}
	remote, stop, err := sshd(ctx, keys)
	if err != nil {
		return err
	}
	defer stop()
	b.ssh = remote
	packed, err := zstdBytes(ctx, image)
	if err != nil {
		return err
	}
	times := map[string][]float64{}
	sizes := map[string]int64{}
	for n := range b.runs {
		for _, c := range []string{"s2", "zstd", "none", scanned} {
			choice, told := codec.Choice{Codec: c}, true
			if c == scanned {
				choice.Codec, told = "s2", false
			}
			r, err := b.copyOurs(ctx, choice, told, image)
			if err != nil {
				return err
			}
			b.note("run %d, ours %s: %.2f s, %.0f MiB/s, %.1f s of CPU, %d MiB uploaded, agent %d MiB, server %d MiB", n+1, c, r.seconds,
				float64(b.size>>20)/r.seconds, r.cpu, r.uploaded>>20, r.agentMem>>20, r.serveMem>>20)
			times[c], sizes[c] = append(times[c], r.seconds), r.uploaded
		}
		for name, peer := range map[string]func(context.Context, string) (time.Duration, error){"zstd|ssh": b.zstdSSH, "nbdcopy": b.nbdTLS} {
			d, err := peer(ctx, image)
			if err != nil {
				return err
			}
			b.note("run %d, %s: %.2f s, %.0f MiB/s", n+1, name, d.Seconds(), float64(b.size>>20)/d.Seconds())
			times[name] = append(times[name], d.Seconds())
		}
	}
	speed := func(name string) float64 { return float64(b.size>>20) / median(times[name]) }
	say := func(c, peer string) string { return fmt.Sprintf("%.0f against %.0f MiB/s", speed(c), speed(peer)) }
	b.add(row{Name: "initial replication, s2, against zstd -1 | ssh", Measured: speed("s2") / speed("zstd|ssh"), Goal: 1.5, Unit: "x", Note: say("s2", "zstd|ssh")})
	b.add(row{Name: "  bytes uploaded, against zstd -1", Measured: float64(sizes["s2"]) / float64(packed), Goal: 1.6, Most: true, Unit: "x"})
	b.add(row{Name: "initial replication, s2, by the scan tracker", Measured: speed(scanned) / speed("zstd|ssh"), Goal: 1.5, Unit: "x", Note: say(scanned, "zstd|ssh")})
	b.add(row{Name: "initial replication, zstd, against zstd -1 | ssh", Measured: speed("zstd") / speed("zstd|ssh"), Goal: 1, Unit: "x", Note: say("zstd", "zstd|ssh")})
	b.add(row{Name: "  bytes uploaded, against zstd -1", Measured: float64(sizes["zstd"]) / float64(packed), Goal: 1.35, Most: true, Unit: "x"})
	b.add(row{Name: "initial replication, none, against nbdcopy over TLS", Measured: speed("none") / speed("nbdcopy"), Goal: 1.2, Unit: "x", Note: say("none", "nbdcopy")})
	return nil
}

// efficiency compares what the whole reaches with what its parts would allow: all
// processors, and each stage's time for the same data alone.
func (b *bench) efficiency(ctx context.Context) error {
	image, err := b.image(ctx, "real")
	if err != nil {
		return err
	}
	set, err := stages.NewSet(image, 256<<20, codec.S2)
	if err != nil {
		return err
	}
	var sums, speeds []float64
	for range b.runs {
		dir, err := b.sub("stages")
		if err != nil {
			return err
		}
		costs, err := stages.PerGiB(set, codec.S2, dir)
		if err != nil {
			return err
		}
		sum := 0.0
		for name, cost := range costs {
			b.note("%s alone: %.2f processor seconds per GiB", name, cost)
			sum += cost
		}
		r, err := b.copyOurs(ctx, codec.Choice{Codec: "s2"}, true, image)
		if err != nil {
			return err
		}
		sums, speeds = append(sums, sum), append(speeds, float64(r.data)/(1<<30)/r.seconds)
	}
	possible := float64(runtime.NumCPU()) / median(sums)
	b.add(row{Name: "pipeline efficiency, s2, of what its stages allow", Measured: median(speeds) / possible, Goal: 0.8, Unit: "x",
		Note: fmt.Sprintf("%.0f of %.0f MiB/s of data", 1024*median(speeds), 1024*possible)})
	return nil
}

// half measures a disk that is half as full.
func (b *bench) half(ctx context.Context) error {
	times := map[string][]float64{}
	for range b.runs {
		for _, kind := range []string{"real", "half"} {
			image, err := b.image(ctx, kind)
			if err != nil {
				return err
			}
			r, err := b.copyOurs(ctx, codec.Choice{Codec: "s2"}, true, image)
			if err != nil {
				return err
			}
			times[kind] = append(times[kind], r.seconds)
		}
	}
	b.add(row{Name: "half-empty disk, time against the full one", Measured: median(times["half"]) / median(times["real"]), Goal: 0.55, Most: true, Unit: "x",
		Note: fmt.Sprintf("%.2f against %.2f s", median(times["half"]), median(times["real"]))})
	return nil
}

const changedBlock = 16 << 10

// change rewrites a part of a disk's blocks at random and gives how many bytes.
func change(path string, size int64, part float64) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	blocks := size / changedBlock
	rnd := rand.New(rand.NewPCG(7, 7))
	data := make([]byte, changedBlock)
	seen := map[int64]bool{}
	for n := int64(float64(blocks) * part); n > int64(len(seen)) && err == nil; {
		at := rnd.Int64N(blocks)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		_, err = f.WriteAt(data, at*changedBlock)
		seen[at] = true
	}
	return int64(len(seen)) * changedBlock, errors.Join(err, f.Sync(), f.Close())
}

// resyncs measures a resync after 1 % has changed, and after nothing has.
func (b *bench) resyncs(ctx context.Context) error {
	old, err := b.image(ctx, "real")
	if err != nil {
		return err
	}
	if tools := missing("rsync"); tools != "" {
		return fmt.Errorf("missing: %s; make peers installs it on Debian", tools)
	}
	var ours, peer, nothing, floor []float64
	var changed, wire, idle int64
	for range b.runs {
		dir, err := b.sub("resync")
		if err != nil {
			return err
		}
		image := filepath.Join(dir, "real.img")
		if err := clone(old, image); err != nil {
			return err
		}
		o, err := newOurs(b.self, dir, codec.Choice{Codec: "s2"}, image)
		if err != nil {
			return err
		}
		o.Told = true
		if err := errors.Join(o.save(), o.start(ctx)); err != nil {
			return err
		}
		if _, _, err := o.stream(ctx, "the base copy", complete); err != nil {
			return err
		}
		d, w, err := o.again(ctx, 2)
		if err != nil {
			return err
		}
		nothing, idle = append(nothing, d), max(idle, w)
		f, err := readAndHash(image, b.size)
		if err != nil {
			return err
		}
		floor = append(floor, f)
		if changed, err = change(image, b.size, 0.01); err != nil {
			return err
		}
		if d, wire, err = o.again(ctx, 3); err != nil {
			return err
		}
		ours = append(ours, d)
		_, err = o.stop()
		if err := errors.Join(err, o.same()); err != nil {
			return err
		}
		p, err := b.rsync(ctx, old, image)
		if err != nil {
			return err
		}
		peer = append(peer, p.Seconds())
		b.note("resync: 1 %% in %.2f s, rsync %.2f s; nothing in %.2f s, read and hashed in %.2f s", ours[len(ours)-1], p.Seconds(), nothing[len(nothing)-1], f)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	b.add(row{Name: "resync, 1 % changed, against rsync --inplace", Measured: median(peer) / median(ours), Goal: 5, Unit: "x", Note: fmt.Sprintf("%.2f against %.2f s", median(ours), median(peer))})
	b.add(row{Name: "  bytes on the wire", Measured: float64(wire) / (1 << 20), Goal: (1.1*float64(changed) + 0.001*float64(b.size)) / (1 << 20), Most: true, Unit: "MiB"})
	b.add(row{Name: "resync, nothing changed, against reading and hashing", Measured: median(floor) / median(nothing), Goal: 0.5, Unit: "x", Note: fmt.Sprintf("%.2f against %.2f s", median(nothing), median(floor))})
	b.add(row{Name: "  bytes on the wire", Measured: float64(idle) / 1024, Goal: 64, Most: true, Unit: "KiB"})
	return nil
}

// again orders a resync from the running agent, into the generation.
func (o *ours) again(ctx context.Context, generation uint32) (seconds float64, wire int64, err error) {
	begin := time.Now()
	if _, err := fmt.Fprintln(o.resync, "resync"); err != nil {
		return 0, 0, err
	}
	st, err := o.await(ctx, "the resync", func(st stream.Status) bool { return complete(st) && st.Generation == generation })
	return time.Since(begin).Seconds(), st.BaseWireBytes, err
}

// readAndHash is the least that a comparison costs: one goroutine that reads the disk
// and sums its blocks.
func readAndHash(path string, size int64) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 1<<20)
	var sums []uint64
	begin := time.Now()
	for at := int64(0); at < size; at += int64(len(buf)) {
		n, _ := f.ReadAt(buf, at)
		sums = checksum.SumAll(sums[:0], 1, at, buf[:n])
	}
	return time.Since(begin).Seconds(), nil
}

const (
	// deltaRuns is how often each rate is tried, at most; the medians count.
	deltaRuns = 3
	// deltaWarm is how many cuts go by before the age of points counts: the first is of what
	// was written from before the base copy's end on, and those that follow are by turns
	// longer and shorter for a while.
	deltaWarm = 10
)

// delta measures sustained random writes of 4 KiB: the highest rate of changed blocks
// at which points follow within the cut interval.
func (b *bench) delta(ctx context.Context) error {
	const interval = time.Second
	var best float64
	var lag float64
	for _, rate := range []int{40_000, 66_000, 76_000, 88_000, 100_000, 115_000} {
		var moved, lags []float64
		for range min(b.runs, deltaRuns) {
			blocks, l, err := b.sustained(ctx, rate, interval)
			if err != nil {
				return err
			}
			b.note("%d random writes/s: %.0f changed blocks/s reach the replica, points are up to %.2f s old", rate, blocks, l.Seconds())
			moved, lags = append(moved, blocks), append(lags, l.Seconds())
		}
		if median(lags) > 2*interval.Seconds() {
			break
		}
		best, lag = median(moved), median(lags)
	}
	b.add(row{Name: "delta, random 4 KiB, changed blocks/s into the replica", Measured: best, Goal: 60_000, Unit: "1/s", Note: fmt.Sprintf("cut every %s", interval)})
	b.add(row{Name: "  RPO lag beyond the cut interval", Measured: max(0, lag-interval.Seconds()), Goal: interval.Seconds(), Most: true, Unit: "s"})
	return nil
}

func (b *bench) sustained(ctx context.Context, rate int, interval time.Duration) (blocks float64, lag time.Duration, err error) {
	old, err := b.image(ctx, "real")
	if err != nil {
		return 0, 0, err
	}
	dir, err := b.sub("delta")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	image := filepath.Join(dir, "real.img")
	if err := errors.Join(clone(old, image), b.warm()); err != nil {
		return 0, 0, err
	}
	o, err := newOurs(b.self, dir, codec.Choice{Codec: "s2"}, image)
	if err != nil {
		return 0, 0, err
	}
	o.Cut, o.Told, o.Rate, o.Seconds = interval, true, rate, b.seconds
	if err := errors.Join(o.save(), o.start(ctx)); err != nil {
		return 0, 0, err
	}
	_, st, err := o.stream(ctx, "the base copy", complete)
	if err != nil {
		return 0, 0, err
	}
	base, begin := st.DataBytes, time.Now()
	for time.Since(begin) < time.Duration(b.seconds)*time.Second {
		time.Sleep(20 * time.Millisecond)
		o.mu.Lock()
		st = o.status[o.Machines[0].ID]
		o.mu.Unlock()
		if time.Since(begin) > deltaWarm*interval {
			lag = max(lag, time.Since(st.PointTime))
		}
	}
	moved := float64(st.DataBytes-base) / checksum.BlockSize / time.Since(begin).Seconds()
	quiet := time.Now().Add(interval)
	_, err = o.await(ctx, "the last writes", func(st stream.Status) bool { return st.PointTime.After(quiet) })
	_, stopErr := o.stop()
	return moved, lag, errors.Join(err, stopErr, o.same())
}

// memory measures a server with 32 streams at once, and an agent.
func (b *bench) memory(ctx context.Context) error {
	const streams = 32
	image, err := b.image(ctx, "real")
	if err != nil {
		return err
	}
	r, err := b.copyOurs(ctx, codec.Choice{}, true, image)
	if err != nil {
		return err
	}
	b.add(row{Name: "memory of an agent, without the map of its sums", Measured: float64(r.agentMem-checksum.Blocks(b.size)*8) / (1 << 20), Goal: 64, Most: true, Unit: "MiB"})
	dir, err := b.sub("many")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var images []string
	for i := range streams {
		path := filepath.Join(dir, fmt.Sprintf("%d.img", i))
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, b.size/streams)); err != nil {
			return err
		}
		if err := part(image, path, int64(i)*(b.size/streams), b.size/streams); err != nil {
			return err
		}
		images = append(images, path)
	}
	if r, err = b.copyOurs(ctx, codec.Choice{}, true, images...); err != nil {
		return err
	}
	b.add(row{Name: fmt.Sprintf("memory of a server with %d streams", streams), Measured: float64(r.serveMem) / (1 << 20), Goal: 512, Most: true, Unit: "MiB"})
	return nil
}

// part copies a range of a file.
func part(from, to string, at, n int64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, at); err != nil {
		return err
	}
	return os.WriteFile(to, buf, 0o600)
}
