package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/attest"
	"drover/datapath/checksum"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/wire"
)

// conclude ends the comparison with its record, and marks a machine for resync whose
// replica could not be mended.
func (a *answering) conclude(ctx context.Context, c *comparison, result *wire.VerifyResult) error {
	r, signed, err := a.attested(ctx, c, result)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the agent says it again in the next session, or it is over
	}
	if err != nil {
		a.m.finishComparison(c, err)
		return nil
	}
	a.m.s.metrics.compared(r)
	a.log.Info("source and replica were compared", "machine", a.m.id.String(), "verdict", string(r.Verdict), "deep", r.Deep,
		"point", uint64(r.Point), "differed", r.Differed())
	c.signed = signed
	a.m.s.verified(r)
	a.m.finishComparison(c, nil)
	if r.Verdict != stream.VerdictDifferent {
		return nil
	}
	cause := fmt.Sprintf("a comparison with the source found %d bytes that differ, and not all could be mended", r.Differed())
	a.m.noteBroken(codeDiffers, cause)
	return refuse(wire.CodeResyncRequired, retryBroken, "%s", cause)
}

// attested makes the record of a comparison that the agent has ended, and signs it.
func (a *answering) attested(ctx context.Context, c *comparison, result *wire.VerifyResult) (r stream.Record, signed stream.SignedRecord, err error) {
	if result.Failed != "" {
		return r, signed, notCompared("the agent could not compare: %s", result.Failed)
	}
	if err := a.plausible(c, result); err != nil {
		return r, signed, err
	}
	if err := a.cut(ctx, c); err != nil {
		return r, signed, err
	}
	point, err := a.toNewest(ctx, c)
	if err != nil {
		return r, signed, err
	}
	if r, err = a.record(ctx, c, result, point); err != nil {
		return r, signed, err
	}
	signed, err = a.m.s.sign(ctx, r)
	return r, signed, err
}

// plausible checks a result against what the agent has asked for.
func (a *answering) plausible(c *comparison, result *wire.VerifyResult) error {
	if len(result.Disks) != len(a.header.Disks) {
		return notCompared("the agent compared %d disks of %d", len(result.Disks), len(a.header.Disks))
	}
	for i, d := range result.Disks {
		blocks := checksum.Blocks(a.header.Disks[i].Size)
		a.m.mu.Lock()
		covered := c.covered[i]
		a.m.mu.Unlock()
		switch {
		case covered < blocks && !result.TooMuch:
			return notCompared("the agent compared %d blocks of %d of disk %d", covered, blocks, i)
		case d.Differed > blocks*checksum.BlockSize || d.Busy > blocks*checksum.BlockSize, d.Free > blocks*checksum.BlockSize:
			return notCompared("the agent found more bytes of disk %d to differ, or to be free, than there are", i)
		case slices.ContainsFunc(d.First, func(off int64) bool { return off >= a.header.Disks[i].Size }):
			return notCompared("the agent found differences past the end of disk %d", i)
		}
	}
	return nil
}

// record puts the record together, as of the point.
func (a *answering) record(ctx context.Context, c *comparison, result *wire.VerifyResult, point replica.Point) (stream.Record, error) {
	store, err := a.m.s.Store.ID(ctx)
	if err != nil {
		return stream.Record{}, err
	}
	a.m.mu.Lock()
	name := a.m.rec.Grant.Spec.Name
	a.m.mu.Unlock()
	r := stream.Record{
		Version: stream.RecordVersion, Machine: a.m.id, Name: name, Server: a.m.s.Name, Store: store,
		Generation: point.Generation, Point: point.ID, Position: point.Position, PointTime: point.Time.UTC(), Consistency: point.Consistency,
		Deep: c.order.Deep, Started: c.started.UTC(), Finished: time.Now().UTC(),
	}
	for i, found := range result.Disks {
		d := stream.VerifiedDisk{ID: a.header.Disks[i].ID, Size: a.header.Disks[i].Size, Seed: a.header.Disks[i].Seed,
			Differed: found.Differed, Mended: found.Mended, Busy: found.Busy, Free: found.Free, First: found.First}
		if j := slices.IndexFunc(point.Disks, func(p replica.Disk) bool { return p.ID == d.ID }); j >= 0 {
			d.Name = point.Disks[j].Name
		}
		open, err := a.replica.disk(ctx, d.ID)
		if err != nil {
			return r, err
		}
		if d.Digest, err = attest.Digest(pointLeaves{open, ctx}); err != nil {
			return r, err
		}
		r.Disks = append(r.Disks, d)
	}
	r.Verdict = verdictOf(r, result.TooMuch)
	return r, nil
}

func verdictOf(r stream.Record, tooMuch bool) stream.Verdict {
	verdict := stream.VerdictEqual
	for _, d := range r.Disks {
		switch {
		case tooMuch || d.Differed > d.Mended:
			return stream.VerdictDifferent
		case d.Differed > 0:
			verdict = stream.VerdictMended
		case d.Busy > 0 && verdict == stream.VerdictEqual:
			verdict = stream.VerdictUnsettled
		}
	}
	return verdict
}

// sign signs the record and keeps it in the store.
func (s *Server) sign(ctx context.Context, r stream.Record) (stream.SignedRecord, error) {
	cert, err := s.certificate()
	if err != nil {
		return stream.SignedRecord{}, fmt.Errorf("sign the record: %w", err)
	}
	signed, err := attest.Sign(r, cert)
	if err != nil {
		return signed, err
	}
	text, err := json.MarshalIndent(signed, "", "  ")
	if err != nil {
		return signed, fmt.Errorf("keep the record: %w", err)
	}
	return signed, s.Store.PutDocument(ctx, attest.Document(r.Machine), text)
}

// certificate gives the server's own, as it is now.
func (s *Server) certificate() (*tls.Certificate, error) {
	if s.TLS.GetCertificate != nil {
		return s.TLS.GetCertificate(&tls.ClientHelloInfo{})
	}
	if len(s.TLS.Certificates) == 0 {
		return nil, errors.New("the server has no certificate")
	}
	return &s.TLS.Certificates[0], nil
}

// verified remembers what the newest record of a machine says.
func (s *Server) verified(r stream.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r.Machine] = r.Short()
}

// readRecords takes up the newest records in the store, for what is told of machines.
// Nothing depends on them: what cannot be read is left out.
func (s *Server) readRecords(ctx context.Context) {
	documents, err := s.Store.Documents(ctx)
	if err != nil {
		s.Logger.Warn("the records of comparisons cannot be read", "error", err.Error())
	}
	for name, text := range documents {
		signed, err := attest.Parse(text)
		if err != nil {
			continue // another kind of document, or damage
		}
		if r, err := attest.Read(signed); err == nil && name == attest.Document(r.Machine) {
			s.verified(r)
		}
	}
}
