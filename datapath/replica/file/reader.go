package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

const (
	maxReloads = 100 // how often files may be merged away while they are being opened
	maxRereads = 3   // how often a block that does not match is read again
)

// reader reads one machine; it keeps nothing open.
type reader struct{ m machine }

// OpenReader opens the machine read-only.
func (s *Store) OpenReader(_ context.Context, id ident.MachineID) (replica.Reader, error) {
	r := &reader{s.machine(id)}
	if _, err := r.m.load(); err != nil {
		return nil, fmt.Errorf("open replica of machine %s for reading: %w", id, err)
	}
	return r, nil
}

func (r *reader) Close() error { return nil }

func (r *reader) State(context.Context) (replica.State, error) {
	mf, err := r.m.load()
	if err != nil {
		return replica.State{}, err
	}
	return r.m.state(mf)
}

// OpenDisk opens the disk as of the point.
func (r *reader) OpenDisk(_ context.Context, point ident.Seq, disk ident.DiskID) (replica.DiskReader, error) {
	d := &diskReader{m: r.m, point: point, id: disk, files: map[string]*undoSource{}}
	if err := d.start(); err != nil {
		return nil, fmt.Errorf("open disk %s of machine %s at point %d: %w", disk, r.m.id, point, errors.Join(err, d.Close()))
	}
	return d, nil
}

// undoSource is an undo file that a disk reader has open.
type undoSource struct {
	f   vfs.File
	end int64 // entries up to here are known
}

// published is an undo file as the manifest names it.
type published struct {
	name string
	end  int64 // entries before are whole, or damaged
}

// diskReader overlays the image with the undo files from its point on.
type diskReader struct {
	m     machine
	point ident.Seq
	id    ident.DiskID
	disk  replica.Disk // as of the point

	image *image
	sums  *sumsFile

	mu     sync.Mutex // guards what follows
	stamp  stamp
	chain  []published // undo files from the point to the newest, oldest first
	files  map[string]*undoSource
	runs   []run // merged
	change int   // counts changes of runs
}

func (d *diskReader) start() error {
	if err := d.refresh(); err != nil {
		return err
	}
	mf, err := d.m.load()
	if err != nil {
		return err
	}
	now, ok := mf.disk(d.id)
	if !ok {
		return fmt.Errorf("disk: %w", replica.ErrNotFound)
	}
	if d.image, err = d.m.openImage(now, false); err != nil {
		return err
	}
	d.sums, err = openSums(d.m.store.fs, d.m.sumsPath(d.id), false)
	return err
}

func (d *diskReader) Size() int64 { return d.disk.Size }

func (d *diskReader) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for name, f := range d.files {
		err = errors.Join(err, f.f.Close())
		delete(d.files, name)
	}
	if d.image != nil {
		err = errors.Join(err, d.image.close())
		d.image = nil
	}
	if d.sums != nil {
		err = errors.Join(err, d.sums.close())
		d.sums = nil
	}
	return err
}

// refresh takes over what was appended to the undo files, and points that were
// made or merged away. The caller holds mu, or is the only one.
func (d *diskReader) refresh() error {
	for range maxReloads {
		if err := d.refreshChain(); err != nil {
			return err
		}
		again := false
		for _, p := range d.chain {
			err := d.refreshFile(p)
			if errors.Is(err, fs.ErrNotExist) {
				again, d.stamp = true, stamp{} // merged away: the manifest says where
				break
			}
			if err != nil {
				return fmt.Errorf("undo file %s: %w", p.name, err)
			}
		}
		if !again {
			return nil
		}
	}
	return fmt.Errorf("undo files of point %d were replaced %d times while they were opened", d.point, maxReloads)
}

func (d *diskReader) refreshChain() error {
	st, err := d.m.stamp()
	if err != nil || st == d.stamp {
		return err
	}
	mf, err := d.m.load()
	if err != nil {
		return err
	}
	i := mf.point(d.point)
	if i < 0 {
		return fmt.Errorf("point %d: %w", d.point, replica.ErrNotFound)
	}
	if d.disk.Size == 0 {
		for _, pd := range mf.State.Points[i].Disks {
			if pd.ID == d.id {
				d.disk = pd
			}
		}
		if d.disk.Size == 0 {
			return fmt.Errorf("disk: %w", replica.ErrNotFound)
		}
	}
	d.stamp, d.chain = st, nil
	for j := i; j < len(mf.Undo); j++ {
		d.chain = append(d.chain, published{mf.Undo[j], undoHeaderSize + mf.State.Points[j].UndoBytes})
	}
	return nil
}

// refreshFile reads the entries that are new in the file. One that is not whole (of
// those that are not published its data too: power may have failed) is
// being written, or is damage when it was published.
func (d *diskReader) refreshFile(p published) error {
	f := d.files[p.name]
	if f == nil {
		h, err := d.m.store.fs.OpenFile(d.m.undoPath(p.name), os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		f = &undoSource{f: h, end: undoHeaderSize}
		d.files[p.name] = f
	}
	st, err := f.f.Stat()
	if err != nil || st.Size <= f.end && f.end >= p.end {
		return err
	}
	var added []run
	f.end, err = scanUndo(f.f, f.end, st.Size, p.end, func(e entry) error {
		if e.disk == d.id {
			added = append(added, run{off: e.offset, end: e.end(), src: f, e: e})
		}
		return nil
	})
	if len(added) > 0 {
		d.runs = mergeRuns(d.runs, sortRuns(added))
		d.change++
	}
	if err == nil && f.end < p.end {
		err = fmt.Errorf("damaged at %d of %d bytes: %w", f.end, p.end, replica.ErrCorrupt)
	}
	return err
}

// ReadAt reads as of the point. It is safe for concurrent use.
func (d *diskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read disk %s at %d: negative offset", d.id, off)
	}
	return replica.ReadBlocks(p, off, d.disk.Size, ioBytes, func(b []byte, at int64) error {
		if err := d.readBlocks(b, at); err != nil {
			return fmt.Errorf("read disk %s of machine %s at point %d: %w", d.id, d.m.id, d.point, err)
		}
		return nil
	})
}

// readBlocks reads whole blocks. The image is read first and the undo files are
// asked after: what was overwritten meanwhile is in them.
func (d *diskReader) readBlocks(b []byte, off int64) error {
	var err error
	for range maxRereads {
		if err = d.readOnce(b, off); !errors.Is(err, replica.ErrCorrupt) {
			return err
		}
	}
	return err
}

func (d *diskReader) readOnce(b []byte, off int64) error {
	if err := d.image.read(b, off); err != nil {
		return err
	}
	sums := make([]uint64, checksum.Blocks(int64(len(b))))
	if err := d.sums.read(off/checksum.BlockSize, sums); err != nil {
		return err
	}
	d.mu.Lock()
	err := d.refresh()
	runs := d.runs
	d.mu.Unlock()
	if err != nil {
		return err
	}
	end := off + int64(len(b))
	pos := off
	for i := findRun(runs, off); pos < end; i++ {
		next := end
		if i < len(runs) {
			next = max(pos, min(runs[i].off, end))
		}
		if pos < next { // from the image
			n := (pos - off) / checksum.BlockSize
			part := sums[n : n+checksum.Blocks(next-pos)]
			if err := replica.VerifyBlocks(d.disk, pos, b[pos-off:next-off], part); err != nil {
				return err
			}
			pos = next
		}
		if i < len(runs) && pos < end {
			next = min(runs[i].end, end)
			if err := runs[i].read(d.disk, b[pos-off:next-off], pos); err != nil {
				return err
			}
			pos = next
		}
	}
	return nil
}

// ReadSums gives checksums as of the point, in the same order of steps as readOnce.
func (d *diskReader) ReadSums(first int64, dst []uint64) error {
	blocks := checksum.Blocks(d.disk.Size)
	if first < 0 || first > blocks-int64(len(dst)) {
		return fmt.Errorf("read checksums of disk %s at point %d: blocks %d to %d of %d", d.id, d.point, first, first+int64(len(dst)), blocks)
	}
	if err := d.readSums(first, dst); err != nil {
		return fmt.Errorf("read checksums of disk %s of machine %s at point %d: %w", d.id, d.m.id, d.point, err)
	}
	// A last block that was short at the point may be longer now: its sum is of more.
	if short := d.disk.Size % checksum.BlockSize; short != 0 && first+int64(len(dst)) == blocks {
		last := make([]byte, short)
		if _, err := d.ReadAt(last, d.disk.Size-short); err != nil {
			return err
		}
		dst[len(dst)-1] = checksum.Sum(d.disk.Seed, d.disk.Size-short, last)
	}
	return nil
}

func (d *diskReader) readSums(first int64, dst []uint64) error {
	if err := d.sums.read(first, dst); err != nil {
		return err
	}
	d.mu.Lock()
	err := d.refresh()
	runs := d.runs
	d.mu.Unlock()
	if err != nil {
		return err
	}
	off := first * checksum.BlockSize
	end := off + int64(len(dst))*checksum.BlockSize
	for i := findRun(runs, off); i < len(runs) && runs[i].off < end; i++ {
		from, to := max(runs[i].off, off), min(runs[i].end, end)
		part := dst[(from-off)/checksum.BlockSize:]
		if err := runs[i].readSums(from, part[:checksum.Blocks(to-from)]); err != nil {
			return err
		}
	}
	return nil
}

// NextData finds data in the image and in the undo files. Holes of the image are
// looked for before the undo files are asked, for the same reason as in ReadAt. They are
// a hint: where there is a checksum there is data, or what is there is damage, which
// reading it tells.
func (d *diskReader) NextData(offset int64) (checksum.Range, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pos := max(0, offset)
	for pos < d.disk.Size {
		from, to, err := d.stableNext(pos)
		if err != nil {
			return checksum.Range{}, false, fmt.Errorf("find data of disk %s at point %d: %w", d.id, d.point, err)
		}
		i := findRun(d.runs, pos)
		if i < len(d.runs) && d.runs[i].off <= pos {
			r := d.runs[i]
			if r.e.flags&flagZero != 0 {
				pos = r.end
				continue
			}
			return checksum.Range{Offset: pos, Length: min(r.end, d.disk.Size) - pos}, true, nil
		}
		next := d.disk.Size
		if i < len(d.runs) {
			next = min(next, d.runs[i].off)
		}
		block, err := d.sums.next(pos/checksum.BlockSize, checksum.Blocks(min(from, next)))
		if err != nil {
			return checksum.Range{}, false, fmt.Errorf("find data of disk %s at point %d: %w", d.id, d.point, err)
		}
		if at := max(pos, block*checksum.BlockSize); at < from {
			from, to = at, at+checksum.BlockSize
		}
		if from >= next {
			pos = next
			continue
		}
		return checksum.Range{Offset: from, Length: min(to, next) - from}, true, nil
	}
	return checksum.Range{}, false, nil
}

// stableNext looks for data in the image until no undo was added meanwhile.
func (d *diskReader) stableNext(pos int64) (from, to int64, err error) {
	for range maxRereads {
		before := d.change
		from, to = d.image.nextData(pos, d.disk.Size)
		if err := d.refresh(); err != nil {
			return 0, 0, err
		}
		if before == d.change {
			return from, to, nil
		}
	}
	return pos, d.disk.Size, nil // a busy writer: all may be data
}
