package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// encoder appends the fields of one message. All integers are little-endian.
type encoder struct {
	buf []byte
	// tail follows buf on the wire without being copied into it.
	tail []byte
}

func (e *encoder) u8(v uint8)   { e.buf = append(e.buf, v) }
func (e *encoder) u16(v uint16) { e.buf = binary.LittleEndian.AppendUint16(e.buf, v) }
func (e *encoder) u32(v uint32) { e.buf = binary.LittleEndian.AppendUint32(e.buf, v) }
func (e *encoder) u64(v uint64) { e.buf = binary.LittleEndian.AppendUint64(e.buf, v) }
func (e *encoder) i64(v int64)  { e.u64(uint64(v)) }
func (e *encoder) raw(b []byte) { e.buf = append(e.buf, b...) }

func (e *encoder) flag(v bool) {
	if v {
		e.u8(1)
		return
	}
	e.u8(0)
}

func (e *encoder) text(s string) {
	e.u16(uint16(len(s)))
	e.buf = append(e.buf, s...)
}

// time writes nanoseconds since 1970; 0 is the zero time.
func (e *encoder) time(t time.Time) {
	if t.IsZero() {
		e.i64(0)
		return
	}
	e.i64(t.UnixNano())
}

func (e *encoder) position(p ident.Position) {
	e.u64(uint64(p.Epoch))
	e.u64(uint64(p.Seq))
	e.raw(p.Digest[:])
}

func (e *encoder) disks(disks []changeset.Disk) {
	e.u16(uint16(len(disks)))
	for _, d := range disks {
		e.raw(d.ID[:])
		e.i64(d.Size)
		e.u64(d.Seed)
	}
}

func (e *encoder) sums(sums []uint64) {
	for _, s := range sums {
		e.u64(s)
	}
}

// decoder reads the fields of one message. The first error sticks, and all that
// is read after it is zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.b = nil
}

// take gives the next n bytes, or nil when there are not so many.
func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail("payload ends %d bytes too early", n-len(d.b))
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) i64() int64 { return int64(d.u64()) }

// index reads a u32 that must fit a small non-negative int.
func (d *decoder) index() int {
	v := d.u32()
	if v > math.MaxInt32 {
		d.fail("number %d out of range", v)
		return 0
	}
	return int(v)
}

func (d *decoder) flag() bool {
	v := d.u8()
	if v > 1 {
		d.fail("yes-or-no field with value %d", v)
	}
	return v == 1
}

func (d *decoder) text(limit int) string {
	n := int(d.u16())
	if n > limit {
		d.fail("text of %d bytes, at most %d", n, limit)
		return ""
	}
	return string(d.take(n))
}

func (d *decoder) time() time.Time {
	n := d.i64()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func (d *decoder) digest() (out ident.Digest) {
	copy(out[:], d.take(len(out)))
	return out
}

func (d *decoder) position() ident.Position {
	return ident.Position{Epoch: ident.Epoch(d.u64()), Seq: ident.Seq(d.u64()), Digest: d.digest()}
}

func (d *decoder) disks() []changeset.Disk {
	n := int(d.u16())
	if n > changeset.MaxDisks || n*diskBytes > len(d.b) {
		d.fail("%d disks in %d bytes, at most %d", n, len(d.b), changeset.MaxDisks)
		return nil
	}
	if n == 0 {
		return nil
	}
	out := make([]changeset.Disk, n)
	for i := range out {
		copy(out[i].ID[:], d.take(len(out[i].ID)))
		out[i].Size = d.i64()
		out[i].Seed = d.u64()
	}
	return out
}

// sums reads n sums into dst's memory when it is large enough. The caller has
// checked n against its limit.
func (d *decoder) sums(dst []uint64, n int) []uint64 {
	if n*8 > len(d.b) {
		d.fail("%d sums in %d bytes", n, len(d.b))
		return dst[:0]
	}
	dst = dst[:0]
	if cap(dst) < n {
		dst = make([]uint64, 0, n)
	}
	raw := d.take(8 * n)
	for ; len(raw) >= 8; raw = raw[8:] {
		dst = append(dst, binary.LittleEndian.Uint64(raw))
	}
	return dst
}

// end says whether exactly the whole payload was read.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("payload has %d bytes too many", len(d.b))
	}
	return d.err
}

// Checks that several messages share.

func validTime(name string, t time.Time) error {
	// Nanoseconds since 1970 in 64 bits reach from 1678 to 2262.
	if !t.IsZero() && (t.Year() < 1679 || t.Year() > 2261) {
		return fmt.Errorf("%s %s cannot be carried", name, t.Format(time.RFC3339))
	}
	return nil
}

func validText(name, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%s of %d bytes, at most %d", name, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not UTF-8", name)
	}
	return nil
}

func validDisk(index int) error {
	if index < 0 || index >= changeset.MaxDisks {
		return fmt.Errorf("disk index %d, at most %d disks", index, changeset.MaxDisks)
	}
	return nil
}

func validDisks(disks []changeset.Disk) error {
	if len(disks) == 0 || len(disks) > changeset.MaxDisks {
		return fmt.Errorf("%d disks, want 1 to %d", len(disks), changeset.MaxDisks)
	}
	for i, d := range disks {
		if d.Size <= 0 || d.Size > changeset.MaxDiskSize || d.Size%sector != 0 {
			return fmt.Errorf("disk %d (%s) of %d bytes, want a multiple of %d up to %d", i, d.ID, d.Size, sector, changeset.MaxDiskSize)
		}
	}
	return nil
}
