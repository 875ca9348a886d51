package recover

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"drover/datapath/attest"
	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
)

// maxPlaces is how many damaged places are told per disk.
const maxPlaces = 8

// ErrNotAttested: the point is not what the record says, or the record says nothing of
// it.
var ErrNotAttested = errors.New("not what was attested")

// Check is what a recovery point came to, beside the record of a comparison.
type Check struct {
	Record stream.Record `json:"record"`
	// Signer signed the record; empty: its signature was not checked.
	Signer string      `json:"signer"`
	Disks  []DiskCheck `json:"disks"`
}

// DiskCheck is one disk of a Check.
type DiskCheck struct {
	ID     ident.DiskID `json:"id"`
	Name   string       `json:"name"`
	Size   int64        `json:"size"`
	Want   ident.Digest `json:"want"`             // of the record
	Digest ident.Digest `json:"digest"`           // of the stored bytes; zero where some are damaged
	Damage int64        `json:"damage,omitempty"` // bytes that are not what the store's own checksums say
	First  []int64      `json:"first,omitempty"`  // where, at most a few
}

// OK reports whether the disk is what was attested.
func (c DiskCheck) OK() bool { return c.Damage == 0 && c.Digest == c.Want }

// Record reads the newest record of a machine from the store.
func Record(ctx context.Context, s replica.Store, machine ident.MachineID) (stream.SignedRecord, error) {
	docs, err := s.Documents(ctx)
	if err != nil {
		return stream.SignedRecord{}, err
	}
	text, ok := docs[attest.Document(machine)]
	if !ok {
		return stream.SignedRecord{}, fmt.Errorf("record of machine %s: %w: it was never compared with its source; see drover verify", machine, replica.ErrNotFound)
	}
	return attest.Parse(text)
}

// Verify checks a record, reads all bytes of its recovery point, and says whether they
// are what was attested: ErrNotAttested if not. authority nil: the signature is not
// checked. progress may be nil.
func Verify(ctx context.Context, s replica.Store, st replica.State, signed stream.SignedRecord, authority *x509.CertPool, progress func(d DiskCheck, done int64)) (c Check, err error) {
	if authority == nil {
		c.Record, err = attest.Read(signed)
	} else {
		var signer ident.Peer
		c.Record, signer, err = attest.Check(signed, authority)
		c.Signer = signer.String()
	}
	if err != nil {
		return c, err
	}
	p, err := attested(ctx, s, st, c.Record)
	if err != nil {
		return c, err
	}
	r, err := s.OpenReader(ctx, st.Spec.Machine)
	if err != nil {
		return c, err
	}
	release, err := hold(ctx, r, p.ID)
	if err != nil {
		return c, errors.Join(err, r.Close())
	}
	for _, d := range c.Record.Disks {
		var found DiskCheck
		if found, err = checkDisk(ctx, r, p.ID, d, progress); err != nil {
			err = fmt.Errorf("read disk %s of machine %s, point %d: %w", d.Name, st.Spec.Name, p.ID, err)
			break
		}
		c.Disks = append(c.Disks, found)
	}
	if err = errors.Join(err, release(), r.Close()); err != nil {
		return c, err
	}
	for _, d := range c.Disks {
		if !d.OK() {
			return c, fmt.Errorf("machine %s, point %d, disk %s: %w", st.Spec.Name, p.ID, d.Name, ErrNotAttested)
		}
	}
	return c, nil
}

// attested finds the recovery point that the record is of, and no other.
func attested(ctx context.Context, s replica.Store, st replica.State, r stream.Record) (replica.Point, error) {
	id, err := s.ID(ctx)
	if err != nil {
		return replica.Point{}, err
	}
	switch {
	case r.Machine != st.Spec.Machine:
		return replica.Point{}, fmt.Errorf("the record is of machine %s (%s), not of %s: %w", r.Machine, r.Name, st.Spec.Machine, ErrNotAttested)
	case r.Store != id:
		return replica.Point{}, fmt.Errorf("the record is of store %s, this is %s: %w", r.Store, id, ErrNotAttested)
	case r.Verdict == stream.VerdictDifferent:
		return replica.Point{}, fmt.Errorf("the record says that machine %s differed from its source: %w", st.Spec.Name, ErrNotAttested)
	}
	p, err := Point(st, r.Point)
	if err != nil {
		return p, fmt.Errorf("the record's recovery point is there no more, retention takes them: %w", err)
	}
	if p.Position != r.Position || p.Generation != r.Generation {
		return p, fmt.Errorf("point %d of machine %s is at %s, the record's was at %s: %w", p.ID, st.Spec.Name, p.Position, r.Position, ErrNotAttested)
	}
	same := slices.EqualFunc(p.Disks, r.Disks, func(a replica.Disk, b stream.VerifiedDisk) bool { return a.ID == b.ID && a.Size == b.Size })
	if !same || len(r.Disks) == 0 {
		return p, fmt.Errorf("point %d of machine %s has other disks than the record: %w", p.ID, st.Spec.Name, ErrNotAttested)
	}
	return p, nil
}

// checkDisk computes the digest of a disk from its stored bytes, with the record's seed.
func checkDisk(ctx context.Context, r replica.Reader, point ident.Seq, d stream.VerifiedDisk, progress func(DiskCheck, int64)) (DiskCheck, error) {
	c := DiskCheck{ID: d.ID, Name: d.Name, Size: d.Size, Want: d.Digest}
	from, err := r.OpenDisk(ctx, point, d.ID)
	if err != nil {
		return c, err
	}
	defer func() { _ = from.Close() }() // it was only read
	digest, err := attest.Digest(&storedSums{ctx, from, d, &c, make([]byte, copyBytes), progress})
	if err == nil && c.Damage == 0 {
		c.Digest = digest
	}
	return c, err
}

// storedSums are the checksums of a disk's stored bytes.
type storedSums struct {
	ctx      context.Context
	from     replica.DiskReader
	disk     stream.VerifiedDisk
	check    *DiskCheck // what is damaged
	buf      []byte
	progress func(DiskCheck, int64)
}

// Size is the disk's, as the record has it.
func (s *storedSums) Size() int64 { return s.disk.Size }

// ReadSums reads the blocks; those that are damaged are noted, and have any sums.
func (s *storedSums) ReadSums(first int64, dst []uint64) error {
	off := first * checksum.BlockSize
	end := min(off+int64(len(dst))*checksum.BlockSize, s.disk.Size)
	for dst = dst[:0]; off < end; {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		b := s.buf[:min(int64(len(s.buf)), end-off)]
		_, err := s.from.ReadAt(b, off)
		if errors.Is(err, replica.ErrCorrupt) {
			err = s.check.damaged(s.from, b, off)
		}
		if err != nil {
			return err
		}
		dst = checksum.SumAll(dst, s.disk.Seed, off, b)
		if off += int64(len(b)); s.progress != nil {
			s.progress(*s.check, off)
		}
	}
	return nil
}

// damaged finds the blocks that cannot be read as what they were.
func (c *DiskCheck) damaged(from replica.DiskReader, b []byte, off int64) error {
	for at := int64(0); at < int64(len(b)); at += checksum.BlockSize {
		part := b[at:min(at+checksum.BlockSize, int64(len(b)))]
		_, err := from.ReadAt(part, off+at)
		if errors.Is(err, replica.ErrCorrupt) {
			if c.Damage += int64(len(part)); len(c.First) < maxPlaces {
				c.First = append(c.First, off+at)
			}
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
