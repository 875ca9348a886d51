package file

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/vfs"
)

const (
	undoMagic       = "DRVUNDO1"
	undoHeaderSize  = 64
	entryMagic      = 0x31444e55 // "UND1"
	entryHeaderSize = 48
	maxEntryBytes   = ioBytes // disk bytes of an entry with data
	maxZeroBytes    = 1 << 40 // disk bytes of an entry of zeros
	scanWindow      = 64 << 10
)

// Flags of an undo entry.
const (
	flagZero = 1 << iota // the range was zeros; neither sums nor data follow
	flagLost             // the old content is gone; only its sums follow
)

// entry is one run of blocks as it was before it was overwritten.
type entry struct {
	disk           ident.DiskID
	offset, length int64
	flags          uint32
	pos            int64 // of its header in the file
}

func (e entry) end() int64     { return e.offset + e.length }
func (e entry) sumsPos() int64 { return e.pos + entryHeaderSize }
func (e entry) dataPos() int64 { return e.sumsPos() + e.sumsLen() }

func (e entry) sumsLen() int64 {
	if e.flags&flagZero != 0 {
		return 0
	}
	return checksum.Blocks(e.length) * sumSize
}

func (e entry) next() int64 {
	if e.flags != 0 {
		return e.dataPos()
	}
	return e.dataPos() + e.length
}

// createUndo makes a point's undo file, durably but for its name.
func createUndo(fsys vfs.FS, path string, id ident.MachineID, p replica.Point) error {
	h := make([]byte, undoHeaderSize)
	copy(h, undoMagic)
	copy(h[8:], id[:])
	binary.LittleEndian.PutUint64(h[24:], uint64(p.ID))
	binary.LittleEndian.PutUint32(h[32:], p.Generation)
	binary.LittleEndian.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	f, err := fsys.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return fmt.Errorf("make undo file: %w", spaceErr(err))
	}
	_, err = f.Write(h)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make undo file %s: %w", path, spaceErr(err))
	}
	return nil
}

func checkUndoHeader(f io.ReaderAt, id ident.MachineID, point ident.Seq) error {
	h := make([]byte, undoHeaderSize)
	if _, err := f.ReadAt(h, 0); errors.Is(err, io.EOF) {
		return fmt.Errorf("undo file's header ends too early: %w", replica.ErrCorrupt)
	} else if err != nil {
		return fmt.Errorf("undo file's header: %w", err)
	}
	if string(h[:8]) != undoMagic || crc32.Checksum(h[:60], castagnoli) != binary.LittleEndian.Uint32(h[60:]) {
		return fmt.Errorf("undo file's header: %w", replica.ErrCorrupt)
	}
	if ident.MachineID(h[8:24]) != id || ident.Seq(binary.LittleEndian.Uint64(h[24:])) != point {
		return fmt.Errorf("the undo file is of another machine or point, it was moved: %w", replica.ErrCorrupt)
	}
	return nil
}

// marshal gives the entry's header with its sums.
func (e entry) marshal(dst []byte, sums []uint64, data []byte) []byte {
	h := make([]byte, entryHeaderSize)
	binary.LittleEndian.PutUint32(h[0:], entryMagic)
	binary.LittleEndian.PutUint32(h[4:], e.flags)
	copy(h[8:], e.disk[:])
	binary.LittleEndian.PutUint64(h[24:], uint64(e.offset))
	binary.LittleEndian.PutUint64(h[32:], uint64(e.length))
	binary.LittleEndian.PutUint32(h[40:], crc32.Checksum(data, castagnoli))
	start := len(dst)
	dst = appendSums(append(dst, h...), sums)
	crc := crc32.Checksum(dst[start:start+44], castagnoli)
	crc = crc32.Update(crc, castagnoli, dst[start+entryHeaderSize:])
	binary.LittleEndian.PutUint32(dst[start+44:], crc)
	return dst
}

// window reads a file forward through a buffer, skipping what is not asked for.
type window struct {
	f    io.ReaderAt
	size int64
	buf  []byte
	at   int64 // file position of buf[0]
}

// get gives n bytes at pos, or nil when the file ends before.
func (w *window) get(pos, n int64) ([]byte, error) {
	if pos+n > w.size {
		return nil, nil
	}
	if pos < w.at || pos+n > w.at+int64(len(w.buf)) {
		want := min(max(n, scanWindow), w.size-pos)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		if _, err := w.f.ReadAt(w.buf, pos); err != nil {
			w.buf = w.buf[:0]
			if errors.Is(err, io.EOF) { // truncated meanwhile
				return nil, nil
			}
			return nil, err
		}
		w.at = pos
	}
	return w.buf[pos-w.at : pos-w.at+n], nil
}

// scanUndo gives the entries in [from, size) and where the last whole one ends.
// Entries from verifyFrom on may be torn: their data is compared with its CRC.
func scanUndo(f io.ReaderAt, from, size, verifyFrom int64, fn func(entry) error) (int64, error) {
	w := &window{f: f, size: size}
	for pos := from; ; {
		e, crc, err := scanEntry(w, pos)
		if err != nil || e == nil {
			return pos, err
		}
		if e.flags == 0 && pos >= verifyFrom {
			data, err := w.get(e.dataPos(), e.length)
			if err != nil {
				return pos, err
			}
			if data == nil || crc32.Checksum(data, castagnoli) != crc {
				return pos, nil
			}
		}
		if err := fn(*e); err != nil {
			return pos, err
		}
		pos = e.next()
	}
}

// scanEntry reads the entry at pos; nil when there is no whole one.
func scanEntry(w *window, pos int64) (*entry, uint32, error) {
	h, err := w.get(pos, entryHeaderSize)
	if err != nil || h == nil || binary.LittleEndian.Uint32(h) != entryMagic {
		return nil, 0, err
	}
	e := &entry{
		disk: ident.DiskID(h[8:24]), flags: binary.LittleEndian.Uint32(h[4:]), pos: pos,
		offset: int64(binary.LittleEndian.Uint64(h[24:])), length: int64(binary.LittleEndian.Uint64(h[32:])),
	}
	limit := int64(maxEntryBytes)
	if e.flags == flagZero {
		limit = maxZeroBytes
	}
	if e.flags > flagLost || e.length <= 0 || e.length > limit || e.offset < 0 || e.offset%checksum.BlockSize != 0 ||
		e.offset > changeset.MaxDiskSize-e.length {
		return nil, 0, nil
	}
	dataCRC, want := binary.LittleEndian.Uint32(h[40:]), binary.LittleEndian.Uint32(h[44:])
	crc := crc32.Checksum(h[:44], castagnoli)
	sums, err := w.get(e.sumsPos(), e.sumsLen())
	if err != nil || sums == nil || e.next() > w.size {
		return nil, 0, err
	}
	if crc32.Update(crc, castagnoli, sums) != want {
		return nil, 0, nil
	}
	return e, dataCRC, nil
}

// undoAppender adds entries to one undo file. What the file has already is never
// added again: the oldest content wins.
type undoAppender struct {
	f     vfs.File
	w     *bufio.Writer
	name  string
	end   int64 // where the next entry goes
	dirty bool
	saved map[ident.DiskID]*blockSet
	head  []byte
}

// openUndo opens the file to append. From verifyFrom on its entries may be torn
// by a crash; the tail that is not whole is cut off, the rest is made durable by the
// next sync.
func openUndo(fsys vfs.FS, path string, id ident.MachineID, point ident.Seq, verifyFrom int64) (u *undoAppender, err error) {
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open undo file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			err = fmt.Errorf("open undo file %s: %w", path, err)
		}
	}()
	if err = checkUndoHeader(f, id, point); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	u = &undoAppender{f: f, name: path, saved: map[ident.DiskID]*blockSet{}}
	u.end, err = scanUndo(f, undoHeaderSize, st.Size, verifyFrom, func(e entry) error {
		u.mark(e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if u.end < verifyFrom {
		return nil, fmt.Errorf("the file is damaged at %d of %d bytes: %w", u.end, verifyFrom, replica.ErrCorrupt)
	}
	if st.Size > u.end {
		if err = f.Truncate(u.end); err != nil {
			return nil, spaceErr(err)
		}
		u.dirty = true
	}
	if u.end > verifyFrom {
		if err = rewrite(f, verifyFrom, u.end); err != nil {
			return nil, spaceErr(err)
		}
		u.dirty = true
	}
	u.w = bufio.NewWriterSize(&offsetWriter{u.f, u.end}, ioBytes)
	return u, nil
}

// rewrite writes what is in the file once more, for the next sync. What is read may
// be in the system's memory only: its writer was killed before the sync, or a sync
// failed, after which the system takes it for written.
func rewrite(f vfs.File, from, to int64) error {
	buf := make([]byte, ioBytes)
	for from < to {
		b := buf[:min(ioBytes, to-from)]
		if _, err := f.ReadAt(b, from); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, from); err != nil {
			return err
		}
		from += int64(len(b))
	}
	return nil
}

type offsetWriter struct {
	f   vfs.File
	pos int64
}

func (o *offsetWriter) Write(b []byte) (int, error) {
	n, err := o.f.WriteAt(b, o.pos)
	o.pos += int64(n)
	return n, err
}

func (u *undoAppender) mark(e entry) {
	s := u.saved[e.disk]
	if s == nil {
		s = newBlockSet()
		u.saved[e.disk] = s
	}
	s.add(e.offset/checksum.BlockSize, checksum.Blocks(e.end()))
}

// add appends an entry; sums and data as its flags say.
func (u *undoAppender) add(e entry, sums []uint64, data []byte) error {
	e.pos = u.end
	u.head = e.marshal(u.head[:0], sums, data)
	if _, err := u.w.Write(u.head); err != nil {
		return fmt.Errorf("write undo file %s: %w", u.name, spaceErr(err))
	}
	if _, err := u.w.Write(data); err != nil {
		return fmt.Errorf("write undo file %s: %w", u.name, spaceErr(err))
	}
	u.end, u.dirty = e.next(), true
	u.mark(e)
	return nil
}

// sync makes all that was added durable.
func (u *undoAppender) sync() error {
	if !u.dirty {
		return nil
	}
	if err := u.w.Flush(); err != nil {
		return fmt.Errorf("write undo file %s: %w", u.name, spaceErr(err))
	}
	if err := u.f.Sync(); err != nil {
		return fmt.Errorf("sync undo file %s: %w", u.name, spaceErr(err))
	}
	u.dirty = false
	return nil
}

// bytes is the room its entries take.
func (u *undoAppender) bytes() int64 { return u.end - undoHeaderSize }

func (u *undoAppender) close() error {
	if u == nil {
		return nil
	}
	return u.f.Close()
}

// saveOld appends the present content of the blocks [from, to) of the disk, of
// size bytes: runs of zeros without data, the rest in entries of bounded size.
func (u *undoAppender) saveOld(d replica.Disk, img *image, known *sumsWindow, from, to int64, buf []byte) error {
	const part = maxEntryBytes / checksum.BlockSize
	sums := make([]uint64, 0, part)
	for from < to {
		n := min(part, to-from)
		sums = sums[:n]
		if err := known.read(from, sums); err != nil {
			return err
		}
		for i := int64(0); i < n; {
			j := i + 1
			for j < n && (sums[j] == 0) == (sums[i] == 0) {
				j++
			}
			if err := u.saveRun(d, img, from+i, sums[i:j], buf); err != nil {
				return err
			}
			i = j
		}
		from += n
	}
	return nil
}

func (u *undoAppender) saveRun(d replica.Disk, img *image, first int64, sums []uint64, buf []byte) error {
	e := entry{disk: d.ID, offset: first * checksum.BlockSize}
	e.length = min(int64(len(sums))*checksum.BlockSize, d.Size-e.offset)
	if sums[0] == 0 {
		e.flags = flagZero
		return u.add(e, nil, nil)
	}
	data := buf[:e.length]
	if err := img.read(data, e.offset); err != nil {
		return err
	}
	return u.add(e, sums, data)
}
