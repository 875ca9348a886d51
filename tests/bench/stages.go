// Package bench measures each stage of the data path alone, with the calls that the
// product makes, so that what the whole reaches can be compared with the sum of its
// parts. The benchmarks are run by make bench; tests/peers takes the sum.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/spool"
	"drover/datapath/wire"
)

// Set is data for the stages: the chunks of one change set, as the agent makes them.
type Set struct {
	Size   int64 // of the disk that the chunks are of
	Plain  [][]byte
	Chunks []wire.Data // encoded
	Bytes  int64       // plain
	image  string
	header changeset.Header
}

const seed = 42

// background is the context of measurements, which nobody interrupts.
var background = context.Background()

var key = changeset.Key{ID: "k", Secret: [32]byte{7}}

// NewSet reads up to limit bytes of data from an image; zeros are left out.
func NewSet(image string, limit int64, c codec.Codec) (*Set, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m := ident.NewMachineID("bench", "m")
	s := &Set{Size: info.Size(), image: image, header: changeset.Header{Machine: m, Generation: 1, Epoch: 1, Seq: 1, Kind: changeset.Base, KeyID: key.ID,
		Disks: []changeset.Disk{{ID: ident.NewDiskID(m, "d"), Size: info.Size(), Seed: seed}}}}
	for at := int64(0); at < s.Size && s.Bytes < limit; at += compress.MaxPlain {
		plain := make([]byte, min(compress.MaxPlain, s.Size-at))
		if _, err := f.ReadAt(plain, at); err != nil {
			return nil, err
		}
		if checksum.IsZero(plain) {
			continue
		}
		e := changeset.Extent{Offset: at, Length: int64(len(plain)), Sums: checksum.SumAll(nil, seed, at, plain)}
		d := wire.Data{Chunk: changeset.Chunk{Extents: []changeset.Extent{e}}}
		d.Data, d.Codec = compress.Encode(c, nil, plain)
		s.Plain, s.Chunks, s.Bytes = append(s.Plain, plain), append(s.Chunks, d), s.Bytes+e.Length
	}
	if s.Bytes == 0 {
		return nil, fmt.Errorf("%s holds nothing but zeros", image)
	}
	return s, nil
}

// Stage is a part of the way, alone. Run does it once for all of the set's data; dir
// is an empty directory of its own.
type Stage struct {
	Name string
	Run  func(s *Set, dir string) error
}

// Stages are all that a block passes in an initial replication.
func Stages(c codec.Codec) []Stage {
	return []Stage{
		{"read", read}, {"hash", hash}, {"compress", func(s *Set, _ string) error { return encode(s, c) }},
		{"net", func(s *Set, _ string) error { return send(s) }}, {"verify", verify}, {"seal, spool, fsync, store", spooled}, {"apply", applied},
	}
}

func read(s *Set, _ string) error {
	f, err := os.Open(s.image)
	if err != nil {
		return err
	}
	buf := make([]byte, compress.MaxPlain)
	for i := range s.Chunks {
		e := s.Chunks[i].Extents[0]
		if _, err := f.ReadAt(buf[:e.Length], e.Offset); err != nil {
			return err
		}
	}
	return f.Close()
}

func hash(s *Set, _ string) error {
	var sums []uint64
	for i, plain := range s.Plain {
		sums = checksum.SumAll(sums[:0], seed, s.Chunks[i].Extents[0].Offset, plain)
	}
	return nil
}

func encode(s *Set, c codec.Codec) error {
	memory := compress.Memory()
	for _, plain := range s.Plain {
		compress.Encode(c, memory, plain)
	}
	return nil
}

func verify(s *Set, _ string) error {
	memory := compress.Memory()
	for i := range s.Chunks {
		d := &s.Chunks[i]
		plain, err := compress.Decode(d.Codec, memory, d.Data, int(d.Plain()))
		if err != nil {
			return err
		}
		checksum.SumAll(nil, seed, d.Extents[0].Offset, plain)
	}
	return nil
}

// send sends the set over TLS on loopback, both ends of it.
func send(s *Set) error {
	client, conn, stop, err := pair(s.header.Machine)
	if err != nil {
		return err
	}
	defer stop()
	got := make(chan error, 1)
	go func() {
		for range s.Chunks {
			m, err := conn.Receive()
			if err != nil {
				got <- err
				return
			}
			if d, ok := m.(*wire.Data); ok {
				d.Free()
			}
		}
		got <- nil
	}()
	for i := range s.Chunks {
		if err := client.Send(&s.Chunks[i]); err != nil {
			return err
		}
	}
	// What waits in the buffer goes with a message that may not wait.
	return errors.Join(client.Send(&wire.Pong{Time: time.Unix(1, 0)}), <-got)
}

// writeSpool writes the set into a spool.
func (s *Set) writeSpool(dir string) (*spool.Spool, spool.Entry, changeset.Summary, error) {
	sp, err := spool.Open(filepath.Join(dir, "spool"), 64<<30)
	if err != nil {
		return nil, spool.Entry{}, changeset.Summary{}, err
	}
	f, err := sp.Create(s.header.Machine, s.header.Epoch, s.header.Seq)
	if err != nil {
		return nil, spool.Entry{}, changeset.Summary{}, err
	}
	w, err := changeset.NewWriter(f, s.header, key)
	for i := 0; err == nil && i < len(s.Chunks); i++ {
		err = w.Add(&s.Chunks[i].Chunk)
	}
	if err != nil {
		return nil, spool.Entry{}, changeset.Summary{}, errors.Join(err, f.Abort())
	}
	sum, err := w.Finish(changeset.Cut{SourceTime: time.Unix(1700000000, 0), Consistency: ident.CrashConsistent, Complete: true})
	if err != nil {
		return nil, spool.Entry{}, sum, err
	}
	e, err := f.Commit()
	return sp, e, sum, err
}

// spooled writes the set into a spool, durably, and puts it into the cache storage
// beside it.
func spooled(s *Set, dir string) error {
	sp, e, _, err := s.writeSpool(dir)
	if err != nil {
		return err
	}
	cache, err := cachestore.NewDirectory(filepath.Join(dir, "cache"))
	if err != nil {
		return err
	}
	o, err := sp.Open(e)
	if err != nil {
		return err
	}
	err = cache.Put(background, cachestore.Name{Machine: e.Machine, Seq: e.Seq, Epoch: e.Epoch}, o, o.Size())
	return errors.Join(err, o.Close())
}

// applied applies the set, as it is in memory, to a new replica.
func applied(s *Set, dir string) error {
	store, err := file.Open(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	disks := []replica.Disk{{Disk: s.header.Disks[0]}}
	w, err := store.OpenWriter(background, 1, replica.Spec{Machine: s.header.Machine, Name: "m", KeyID: key.ID, Disks: disks})
	if err != nil {
		return err
	}
	if err := w.BeginGeneration(background, disks, false, nil); err != nil {
		return err
	}
	held := new(changeset.Held)
	for i := range s.Chunks {
		held.Add(s.Chunks[i].Extents, s.Plain[i], func() {})
	}
	out, err := changeset.NewWriter(io.Discard, s.header, key)
	if err != nil {
		return err
	}
	sum, err := out.Finish(changeset.Cut{SourceTime: time.Unix(1700000000, 0), Consistency: ident.CrashConsistent, Complete: true})
	if err != nil {
		return err
	}
	held.Finish(sum)
	_, err = w.Apply(background, held)
	return errors.Join(err, w.Close(), store.Close())
}

// CPU is the processor time that this process has used.
func CPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// PerGiB runs every stage alone and gives the processor seconds that it takes for 1
// GiB of data.
func PerGiB(s *Set, c codec.Codec, dir string) (map[string]float64, error) {
	out := map[string]float64{}
	for i, stage := range Stages(c) {
		own := filepath.Join(dir, fmt.Sprint("stage-", i))
		if err := os.Mkdir(own, 0o700); err != nil {
			return nil, err
		}
		begin := CPU()
		if err := stage.Run(s, own); err != nil {
			return nil, fmt.Errorf("%s: %w", stage.Name, err)
		}
		out[stage.Name] = (CPU() - begin).Seconds() * (1 << 30) / float64(s.Bytes)
		if err := os.RemoveAll(own); err != nil {
			return nil, err
		}
	}
	return out, nil
}
