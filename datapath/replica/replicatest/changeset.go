// Package replicatest checks that a store holds what the contract of package
// replica says, and has change sets in memory to try stores with.
package replicatest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// ChangeSet is a change set in memory. It implements replica.ChangeSet.
type ChangeSet struct {
	summary changeset.Summary
	extents []changeset.Extent
	next    int
}

var _ replica.ChangeSet = (*ChangeSet)(nil)

// Summary gives header, cut and digest.
func (c *ChangeSet) Summary() changeset.Summary { return c.summary }

// Next gives the next extent.
func (c *ChangeSet) Next() (changeset.Extent, error) {
	if c.next == len(c.extents) {
		return changeset.Extent{}, io.EOF
	}
	c.next++
	return c.extents[c.next-1], nil
}

// Disk gives the extents of one disk.
func (c *ChangeSet) Disk(disk int) changeset.Extents { return changeset.OfDisk(c.extents, disk) }

// Rewind starts again.
func (c *ChangeSet) Rewind() error { c.next = 0; return nil }

// Spoil changes one byte of the data of the i-th extent, and not its checksum.
func (c *ChangeSet) Spoil(i int) {
	data := append([]byte(nil), c.extents[i].Data...)
	data[len(data)/2] ^= 1
	c.extents[i].Data = data
}

// Builder makes a change set that follows a state of a replica.
type Builder struct {
	cs ChangeSet
}

// After begins a change set that follows the state.
func After(s replica.State, kind changeset.Kind) *Builder {
	h := changeset.Header{
		Machine: s.Spec.Machine, Generation: s.Generation, Epoch: s.Epoch,
		Seq: s.Position.Seq + 1, Prev: s.Position.Digest, Kind: kind, KeyID: s.Spec.KeyID,
	}
	for _, d := range s.Spec.Disks {
		h.Disks = append(h.Disks, d.Disk)
	}
	return &Builder{cs: ChangeSet{summary: changeset.Summary{Header: h}}}
}

// Header may be changed before Cut, to make sets that do not fit.
func (b *Builder) Header() *changeset.Header { return &b.cs.summary.Header }

// Write adds data at the offset, both in whole blocks, in as many extents as are
// needed.
func (b *Builder) Write(disk int, offset int64, data []byte) *Builder {
	d := b.cs.summary.Header.Disks[disk]
	for len(data) > 0 {
		n := min(len(data), changeset.MaxExtentBytes)
		part := append([]byte(nil), data[:n]...)
		b.cs.extents = append(b.cs.extents, changeset.Extent{
			Disk: disk, Offset: offset, Length: int64(n), Data: part,
			Sums: checksum.SumAll(nil, d.Seed, offset, part),
		})
		b.cs.summary.PlainBytes += int64(n)
		data, offset = data[n:], offset+int64(n)
	}
	return b
}

// Zero adds a range of zeros.
func (b *Builder) Zero(disk int, offset, length int64) *Builder {
	b.cs.extents = append(b.cs.extents, changeset.Extent{Disk: disk, Offset: offset, Length: length, Zero: true})
	b.cs.summary.ZeroBytes += length
	return b
}

// Cut ends the change set. Its digest depends on all that is in it.
func (b *Builder) Cut(c changeset.Cut) *ChangeSet {
	if c.SourceTime.IsZero() {
		c.SourceTime = time.Unix(1_700_000_000+int64(b.cs.summary.Header.Seq), 0).UTC()
	}
	s := &b.cs.summary
	s.Cut, s.Extents = c, int64(len(b.cs.extents))
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%+v %+v", s.Header, s.Cut)
	for _, e := range b.cs.extents {
		_, _ = fmt.Fprintf(h, "%d %d %d %t %v", e.Disk, e.Offset, e.Length, e.Zero, e.Sums)
	}
	copy(s.Digest[:], h.Sum(nil))
	return &b.cs
}

// Crash is the cut of a crash-consistent point.
func Crash() changeset.Cut { return changeset.Cut{Consistency: ident.CrashConsistent} }

// Complete is the cut that completes a base copy.
func Complete() changeset.Cut {
	return changeset.Cut{Consistency: ident.CrashConsistent, Complete: true}
}

// Partial is the cut in the middle of a base copy.
func Partial() changeset.Cut { return changeset.Cut{Consistency: ident.NoConsistency} }
