// Package attest signs records of comparisons and checks them, so that one can prove
// later, and elsewhere, that a recovery point was what its source was.
//
// The server that compared signs with the key of its certificate. A record is checked
// against the vault's certificate authority, as of the time it was made: certificates
// of servers live for weeks, records for years.
package attest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/stream"
)

const (
	// purpose is signed before the record, so that the signature is good for nothing else.
	purpose = "drover comparison record 1\n"
	// Bounds of what is read.
	maxRecord = 256 << 10
	maxChain  = 4
	// digestSums is how many checksums are read at a time.
	digestSums = 8192
)

// Signatures that this package makes and knows, by the key's type.
const signature = x509.ECDSAWithSHA256

// Document is the name of the store's document that has a machine's newest record.
func Document(machine ident.MachineID) string { return "verified-" + machine.String() }

// Sums gives checksums of a disk as of a point; a replica.DiskReader does.
type Sums interface {
	Size() int64
	ReadSums(first int64, dst []uint64) error
}

// Digest gives the digest of a disk that stands in a record.
func Digest(d Sums) (ident.Digest, error) {
	h := sha256.New()
	sums := make([]uint64, digestSums)
	raw := make([]byte, 0, 8*digestSums)
	blocks := checksum.Blocks(d.Size())
	for first := int64(0); first < blocks; first += digestSums {
		part := sums[:min(digestSums, blocks-first)]
		if err := d.ReadSums(first, part); err != nil {
			return ident.Digest{}, err
		}
		raw = raw[:0]
		for _, s := range part {
			raw = binary.LittleEndian.AppendUint64(raw, s)
		}
		_, _ = h.Write(raw) // never fails
	}
	return ident.Digest(h.Sum(nil)), nil
}

// Sign signs a record with the certificate's key.
func Sign(r stream.Record, cert *tls.Certificate) (stream.SignedRecord, error) {
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return stream.SignedRecord{}, fmt.Errorf("sign the record of machine %s: the certificate's key cannot sign", r.Machine)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return stream.SignedRecord{}, fmt.Errorf("sign the record of machine %s: %w", r.Machine, err)
	}
	sum := sha256.Sum256(append([]byte(purpose), text...))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return stream.SignedRecord{}, fmt.Errorf("sign the record of machine %s: %w", r.Machine, err)
	}
	return stream.SignedRecord{Record: text, Chain: cert.Certificate, Signature: sig}, nil
}

// Parse reads a signed record's file; it checks nothing but its form.
func Parse(text []byte) (stream.SignedRecord, error) {
	var s stream.SignedRecord
	if len(text) > maxRecord {
		return s, fmt.Errorf("read the record: it has %d bytes, at most %d", len(text), maxRecord)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fmt.Errorf("read the record: %w", err)
	}
	if d.More() {
		return s, errors.New("read the record: something follows it")
	}
	return s, nil
}

// Check gives the record, if it was signed by a server of the authority.
func Check(s stream.SignedRecord, authority *x509.CertPool) (stream.Record, ident.Peer, error) {
	r, err := recordOf(s)
	if err != nil {
		return r, ident.Peer{}, fmt.Errorf("check the record: %w", err)
	}
	signer, err := verify(s, r, authority)
	if err != nil {
		return r, signer, fmt.Errorf("check the record of machine %s at point %d: %w", r.Machine, r.Point, err)
	}
	return r, signer, nil
}

// Read gives what the record says, unchecked.
func Read(s stream.SignedRecord) (stream.Record, error) {
	r, err := recordOf(s)
	if err != nil {
		return r, fmt.Errorf("read the record: %w", err)
	}
	return r, nil
}

func recordOf(s stream.SignedRecord) (r stream.Record, err error) {
	d := json.NewDecoder(bytes.NewReader(s.Record))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, err
	}
	if r.Version != stream.RecordVersion {
		return r, fmt.Errorf("it has version %d, this program knows %d", r.Version, stream.RecordVersion)
	}
	return r, nil
}

func verify(s stream.SignedRecord, r stream.Record, authority *x509.CertPool) (ident.Peer, error) {
	leaf, err := signerOf(s, r, authority)
	if err != nil {
		return ident.Peer{}, err
	}
	peer, err := ident.PeerOf(leaf)
	if err != nil {
		return peer, err
	}
	if peer.Role != ident.RoleProcessServer && peer.Role != ident.RoleMasterTarget || peer.Name != r.Server {
		return peer, fmt.Errorf("it was signed by %s, but says that %s made it", peer, r.Server)
	}
	var plain bytes.Buffer
	plain.WriteString(purpose)
	if err := json.Compact(&plain, s.Record); err != nil {
		return peer, err
	}
	if err := leaf.CheckSignature(signature, plain.Bytes(), s.Signature); err != nil {
		return peer, fmt.Errorf("it is not what %s signed: %w", peer, err)
	}
	return peer, nil
}

// signerOf gives the signer's certificate, if the authority vouched for it when the
// record was made.
func signerOf(s stream.SignedRecord, r stream.Record, authority *x509.CertPool) (*x509.Certificate, error) {
	if len(s.Chain) == 0 || len(s.Chain) > maxChain {
		return nil, fmt.Errorf("it has %d certificates, want 1 to %d", len(s.Chain), maxChain)
	}
	certs := make([]*x509.Certificate, len(s.Chain))
	for i, der := range s.Chain {
		var err error
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{
		Roots: authority, Intermediates: between, CurrentTime: r.Finished, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("its signer is not of this vault: %w", err)
	}
	return certs[0], nil
}
