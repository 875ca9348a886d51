package wire

import (
	"errors"
	"fmt"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

const (
	// MaxFirst bounds the places of differences that a result names per disk.
	MaxFirst      = 8
	comparedBytes = 8 + 8 + 8 + 8 + 1 + 8*MaxFirst
	maxTotal      = changeset.MaxDisks * changeset.MaxDiskSize
)

func (m *Verify) marshal(e *encoder) {
	e.u64(m.ID)
	e.i64(m.Rate)
}

func (m *Verify) unmarshal(d *decoder) {
	m.ID = d.u64()
	m.Rate = d.i64()
}

// Validate checks the fields.
func (m *Verify) Validate() error {
	if m.Rate < 0 {
		return fmt.Errorf("rate of %d bytes per second", m.Rate)
	}
	return nil
}

func (m *VerifyQuery) marshal(e *encoder) {
	e.u64(m.ID)
	e.flag(m.Settle)
	e.u32(uint32(m.Disk))
	e.u32(uint32(m.Level))
	e.i64(m.First)
	e.u32(uint32(m.Count))
	e.i64(m.Done)
	e.i64(m.Total)
}

func (m *VerifyQuery) unmarshal(d *decoder) {
	m.ID = d.u64()
	m.Settle = d.flag()
	m.Disk = d.index()
	m.Level = d.index()
	m.First = d.i64()
	m.Count = d.index()
	m.Done = d.i64()
	m.Total = d.i64()
}

// Validate checks the fields.
func (m *VerifyQuery) Validate() error {
	switch {
	case m.ID == 0:
		return errNoComparison
	case m.Done < 0 || m.Done > m.Total || m.Total > maxTotal:
		return fmt.Errorf("comparison is at %d of %d bytes", m.Done, m.Total)
	}
	if err := validSums(m.Disk, m.Level, m.First, m.Count); err != nil {
		return err
	}
	if n := int64(m.Count) * checksum.Span(m.Level); n > checksum.MaxCompared {
		return fmt.Errorf("checksums of %d blocks, at most %d", n, checksum.MaxCompared)
	}
	return nil
}

var errNoComparison = errors.New("comparison 0")

func (m *VerifySums) marshal(e *encoder) {
	e.u64(m.ID)
	m.Sums.marshal(e)
}

func (m *VerifySums) unmarshal(d *decoder) {
	m.ID = d.u64()
	m.Sums.unmarshal(d)
}

// Validate checks the fields.
func (m *VerifySums) Validate() error {
	if m.ID == 0 {
		return errNoComparison
	}
	return m.Sums.Validate()
}

func (m *VerifyResult) marshal(e *encoder) {
	e.u64(m.ID)
	e.flag(m.TooMuch)
	e.text(m.Failed)
	e.u16(uint16(len(m.Disks)))
	for _, c := range m.Disks {
		e.i64(c.Differed)
		e.i64(c.Mended)
		e.i64(c.Busy)
		e.i64(c.Free)
		e.u8(uint8(len(c.First)))
		for _, f := range c.First {
			e.i64(f)
		}
	}
}

func (m *VerifyResult) unmarshal(d *decoder) {
	m.ID = d.u64()
	m.TooMuch = d.flag()
	m.Failed = d.text(MaxText)
	n := int(d.u16())
	if n > changeset.MaxDisks {
		d.fail("results of %d disks, at most %d", n, changeset.MaxDisks)
		return
	}
	for range n {
		c := Compared{Differed: d.i64(), Mended: d.i64(), Busy: d.i64(), Free: d.i64()}
		k := int(d.u8())
		if k > MaxFirst {
			d.fail("%d places of differences, at most %d", k, MaxFirst)
			return
		}
		for range k {
			c.First = append(c.First, d.i64())
		}
		m.Disks = append(m.Disks, c)
	}
}

// Validate checks the fields.
func (m *VerifyResult) Validate() error {
	if m.ID == 0 {
		return errNoComparison
	}
	if len(m.Disks) == 0 || len(m.Disks) > changeset.MaxDisks {
		return fmt.Errorf("results of %d disks, want 1 to %d", len(m.Disks), changeset.MaxDisks)
	}
	for _, c := range m.Disks {
		if err := c.validate(); err != nil {
			return err
		}
	}
	return validText("reason", m.Failed, MaxText)
}

func (c Compared) validate() error {
	if len(c.First) > MaxFirst {
		return fmt.Errorf("%d places of differences, at most %d", len(c.First), MaxFirst)
	}
	for _, n := range append([]int64{c.Differed, c.Mended, c.Busy, c.Free}, c.First...) {
		if n < 0 || n > changeset.MaxDiskSize || n%checksum.BlockSize != 0 {
			return fmt.Errorf("%d bytes of a disk in a comparison", n)
		}
	}
	if c.Mended > c.Differed {
		return fmt.Errorf("%d bytes were mended of %d that differed", c.Mended, c.Differed)
	}
	return nil
}
