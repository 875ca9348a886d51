package wire

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/waterfall"
)

// Limits and sizes of fields; FORMAT.md has the layouts.
const (
	sector         = 512
	positionBytes  = 8 + 8 + 32
	diskBytes      = 16 + 8 + 8
	maxShortText   = 128 // bytes of a version, an instance or a key's name
	maxNote        = 200
	MaxOutstanding = 256 // positions in Hello.Outstanding

	extentBytes = 1 + 8 + 8 // of a chunk, without its sums
	// maxChunkSums: full blocks, and in each extent all of the last one but a sector
	// may be missing.
	maxChunkSums = changeset.MaxExtentBytes/checksum.BlockSize + changeset.MaxChunk*(checksum.BlockSize-sector)/checksum.BlockSize
	timesBytes   = 8 + 8*waterfall.Stages
	maxSpent     = 10 * 365 * 24 * time.Hour // of one set's chunks in one stage, summed
)

func (m *Hello) marshal(e *encoder) {
	e.raw(m.Machine[:])
	e.u64(uint64(m.Epoch))
	e.time(m.SourceTime)
	e.position(m.Known)
	e.text(m.AgentVersion)
	e.text(m.Instance)
	e.disks(m.Disks)
	e.u16(uint16(len(m.Outstanding)))
	for _, p := range m.Outstanding {
		e.position(p)
	}
}

func (m *Hello) unmarshal(d *decoder) {
	copy(m.Machine[:], d.take(len(m.Machine)))
	m.Epoch = ident.Epoch(d.u64())
	m.SourceTime = d.time()
	m.Known = d.position()
	m.AgentVersion = d.text(maxShortText)
	m.Instance = d.text(maxShortText)
	m.Disks = d.disks()
	n := int(d.u16())
	if n > MaxOutstanding || n*positionBytes > len(d.b) {
		d.fail("%d outstanding positions in %d bytes, at most %d", n, len(d.b), MaxOutstanding)
		return
	}
	for range n {
		m.Outstanding = append(m.Outstanding, d.position())
	}
}

// Validate checks the fields.
func (m *Hello) Validate() error {
	if m.Machine.IsZero() || m.Epoch == 0 {
		return errors.New("no machine or no epoch")
	}
	if len(m.Outstanding) > MaxOutstanding {
		return fmt.Errorf("%d outstanding positions, at most %d", len(m.Outstanding), MaxOutstanding)
	}
	return errors.Join(validTime("source time", m.SourceTime), validText("agent version", m.AgentVersion, maxShortText),
		validText("instance", m.Instance, maxShortText), validDisks(m.Disks))
}

func (m *Welcome) marshal(e *encoder) {
	e.u64(m.Nonce)
	e.u32(m.Generation)
	e.u8(uint8(m.Mode))
	e.position(m.Position)
	e.time(m.ServerTime)
	e.i64(int64(m.CutInterval))
	e.i64(int64(m.AppInterval))
	e.i64(int64(m.GroupWait))
	e.i64(m.BaseSetBytes)
	e.text(m.KeyID)
	e.disks(m.Disks)
	e.u8(uint8(m.Codec))
	e.flag(m.Adapt)
}

func (m *Welcome) unmarshal(d *decoder) {
	m.Nonce = d.u64()
	m.Generation = d.u32()
	m.Mode = Mode(d.u8())
	m.Position = d.position()
	m.ServerTime = d.time()
	m.CutInterval = d.duration()
	m.AppInterval = d.duration()
	m.GroupWait = d.duration()
	m.BaseSetBytes = d.i64()
	m.KeyID = d.text(maxShortText)
	m.Disks = d.disks()
	m.Codec = codec.Codec(d.u8())
	m.Adapt = d.flag()
}

// Validate checks the fields.
func (m *Welcome) Validate() error {
	switch {
	case m.Nonce == 0:
		return errors.New("nonce 0")
	case m.Mode < ModeCopy || m.Mode > ModeDelta:
		return fmt.Errorf("unknown mode %d", m.Mode)
	case m.CutInterval <= 0:
		return fmt.Errorf("cut interval %s", m.CutInterval)
	case m.AppInterval < 0:
		return fmt.Errorf("interval of application-consistent cuts %s", m.AppInterval)
	case m.GroupWait < 0:
		return fmt.Errorf("wait for a group's round %s", m.GroupWait)
	case !m.Codec.Valid():
		return fmt.Errorf("unknown %s", m.Codec)
	case m.BaseSetBytes <= 0 || m.BaseSetBytes > changeset.MaxBytes:
		return fmt.Errorf("base sets of %d bytes, want 1 to %d", m.BaseSetBytes, changeset.MaxBytes)
	}
	return errors.Join(validTime("server time", m.ServerTime), validText("key id", m.KeyID, maxShortText), validDisks(m.Disks))
}

func (m *Refuse) marshal(e *encoder) {
	e.u16(uint16(m.Code))
	e.i64(int64(m.RetryAfter))
	e.text(m.Detail)
}

func (m *Refuse) unmarshal(d *decoder) {
	m.Code = Code(d.u16())
	m.RetryAfter = d.duration()
	m.Detail = d.text(MaxText)
}

// Validate checks the fields.
func (m *Refuse) Validate() error {
	if m.Code == 0 || m.RetryAfter < 0 {
		return fmt.Errorf("refusal with code %d, retry after %s", m.Code, m.RetryAfter)
	}
	return validText("detail", m.Detail, MaxText)
}

func (m *Begin) marshal(e *encoder) {
	e.u64(uint64(m.Seq))
	e.raw(m.Prev[:])
	e.u8(uint8(m.Kind))
}

func (m *Begin) unmarshal(d *decoder) {
	m.Seq = ident.Seq(d.u64())
	m.Prev = d.digest()
	m.Kind = changeset.Kind(d.u8())
}

// Validate checks the fields.
func (m *Begin) Validate() error {
	if m.Seq == 0 || (m.Kind != changeset.Base && m.Kind != changeset.Delta) {
		return fmt.Errorf("sequence %d, kind %d", m.Seq, m.Kind)
	}
	return nil
}

func (m *Data) marshal(e *encoder) {
	e.u32(uint32(m.Disk))
	e.u8(uint8(m.Codec))
	e.u16(uint16(len(m.Extents)))
	for i := range m.Extents {
		x := &m.Extents[i]
		e.flag(x.Zero)
		e.i64(x.Offset)
		e.i64(x.Length)
		e.sums(x.Sums)
	}
	e.u32(uint32(len(m.Data)))
	e.tail = m.Data
}

func (m *Data) unmarshal(d *decoder) {
	m.Disk = d.index()
	m.Codec = codec.Codec(d.u8())
	n := int(d.u16())
	if n > changeset.MaxChunk || n*extentBytes > len(d.b) {
		d.fail("%d extents in %d bytes, at most %d", n, len(d.b), changeset.MaxChunk)
		return
	}
	m.Extents = make([]changeset.Extent, 0, n)
	sums := make([]uint64, min(maxChunkSums, len(d.b)/8)) // of all extents
	for range n {
		x := changeset.Extent{Disk: m.Disk, Zero: d.flag(), Offset: d.i64(), Length: d.i64()}
		if !x.Zero {
			k := checksum.Blocks(min(max(x.Length, 0), changeset.MaxExtentBytes))
			if k > int64(len(sums)) {
				d.fail("extent of %d bytes, a chunk has at most %d sums", x.Length, maxChunkSums)
				return
			}
			x.Sums = d.sums(sums[:k:k], int(k))
			sums = sums[k:]
		}
		m.Extents = append(m.Extents, x)
	}
	m.Data = d.take(d.index())
}

// Validate checks the fields; that the data can be decoded and the sums are right
// is checked by the receiver, who knows the disk's seed.
func (m *Data) Validate() error {
	if n := len(m.Extents); n == 0 || n > changeset.MaxChunk {
		return fmt.Errorf("chunk of %d extents, want 1 to %d", n, changeset.MaxChunk)
	}
	if !m.Codec.Valid() {
		return fmt.Errorf("unknown %s", m.Codec)
	}
	for i := range m.Extents {
		if err := validExtent(m.Disk, &m.Extents[i]); err != nil {
			return err
		}
	}
	plain, data := m.Plain(), int64(len(m.Data))
	switch {
	case plain > changeset.MaxExtentBytes:
		return fmt.Errorf("chunk of %d plain bytes, at most %d", plain, changeset.MaxExtentBytes)
	case m.Codec == codec.None && data != plain || m.Codec != codec.None && data >= plain:
		return fmt.Errorf("%d bytes of data (%s) for %d plain bytes", data, m.Codec, plain)
	}
	return nil
}

func validExtent(disk int, x *changeset.Extent) error {
	limit := int64(changeset.MaxExtentBytes)
	if x.Zero {
		limit = changeset.MaxDiskSize
	}
	if err := validRange(disk, x.Offset, x.Length, limit); err != nil {
		return err
	}
	want := checksum.Blocks(x.Length)
	if x.Zero {
		want = 0
	}
	if int64(len(x.Sums)) != want || x.Disk != disk || x.Data != nil {
		return fmt.Errorf("%d sums for %d blocks of disk %d in a chunk of disk %d", len(x.Sums), want, x.Disk, disk)
	}
	return nil
}

func validRange(disk int, offset, length, limit int64) error {
	switch {
	case offset < 0 || offset%checksum.BlockSize != 0:
		return fmt.Errorf("offset %d is not a multiple of %d", offset, checksum.BlockSize)
	case length <= 0 || length > limit || length%sector != 0:
		return fmt.Errorf("length %d, want a multiple of %d up to %d", length, sector, limit)
	case offset > changeset.MaxDiskSize-length:
		return fmt.Errorf("range %d+%d ends past %d", offset, length, changeset.MaxDiskSize)
	}
	return validDisk(disk)
}

func (m *End) marshal(e *encoder) {
	e.u64(uint64(m.Seq))
	e.i64(m.Extents)
	e.time(m.Cut.SourceTime)
	e.i64(int64(m.Cut.ClockOffset))
	e.u8(uint8(m.Cut.Consistency))
	e.flag(m.Cut.Complete)
	e.flag(m.Cut.Final)
	e.i64(int64(m.Cut.Freeze))
	e.text(m.Cut.Note)
	e.u64(uint64(roundOf(m.Cut)))
	e.u32(m.Answers)
	e.u16(uint16(len(m.Times)))
	for i := range m.Times {
		e.i64(m.Times[i].Chunks)
		for _, t := range m.Times[i].Spent {
			e.i64(int64(t))
		}
	}
}

func (m *End) unmarshal(d *decoder) {
	m.Seq = ident.Seq(d.u64())
	m.Extents = d.i64()
	m.Cut.SourceTime = d.time()
	m.Cut.ClockOffset = d.duration()
	m.Cut.Consistency = ident.Consistency(d.u8())
	m.Cut.Complete = d.flag()
	m.Cut.Final = d.flag()
	m.Cut.Freeze = d.duration()
	m.Cut.Note = d.text(maxNote)
	if r := ident.Round(d.u64()); r != 0 {
		m.Cut.Group = &changeset.Group{Round: r}
	}
	m.Answers = d.u32()
	n := int(d.u16())
	if n > changeset.MaxDisks || n*timesBytes > len(d.b) {
		d.fail("times of %d disks in %d bytes, at most %d", n, len(d.b), changeset.MaxDisks)
		return
	}
	for range n {
		t := waterfall.Times{Chunks: d.i64()}
		for i := range t.Spent {
			t.Spent[i] = d.duration()
		}
		m.Times = append(m.Times, t)
	}
}

// Validate checks the fields.
func (m *End) Validate() error {
	switch {
	case m.Seq == 0 || m.Extents < 0 || m.Extents > changeset.MaxExtents:
		return fmt.Errorf("sequence %d with %d extents", m.Seq, m.Extents)
	case !m.Cut.Consistency.Valid():
		return fmt.Errorf("unknown %s", m.Cut.Consistency)
	case m.Cut.Freeze < 0:
		return fmt.Errorf("freeze of %s", m.Cut.Freeze)
	case m.Cut.SourceTime.IsZero():
		return errors.New("cut without a time")
	case len(m.Times) > changeset.MaxDisks:
		return fmt.Errorf("times of %d disks, at most %d", len(m.Times), changeset.MaxDisks)
	}
	for _, t := range m.Times {
		if t.Chunks < 0 || slices.ContainsFunc(t.Spent[:], func(d time.Duration) bool { return d < 0 || d > maxSpent }) {
			return errors.New("times that cannot be")
		}
	}
	return errors.Join(validTime("cut's time", m.Cut.SourceTime), validText("note", m.Cut.Note, maxNote))
}
