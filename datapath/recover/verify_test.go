package recover

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/attest"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/replicatest"
	"drover/datapath/stream"
	"drover/datapath/wire/wiretest"
)

var signerPeer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// attestedStore has a machine with three points, and a record of the second.
func attestedStore(t *testing.T, change func(*stream.Record)) (dir string, s *file.Store, st replica.State, signed stream.SignedRecord, ca *wiretest.CA) {
	t.Helper()
	dir = t.TempDir()
	s, err := file.Open(dir)
	require.NoError(t, err)
	protect(t, s, "db-1", "1")
	st, err = Find(t.Context(), s, "db-1")
	require.NoError(t, err)
	p, err := Point(st, 2)
	require.NoError(t, err)
	id, err := s.ID(t.Context())
	require.NoError(t, err)
	r := stream.Record{Version: stream.RecordVersion, Machine: st.Spec.Machine, Name: "db-1", Server: signerPeer.Name, Store: id, Generation: p.Generation,
		Point: p.ID, Position: p.Position, PointTime: p.Time, Finished: time.Now().UTC(), Verdict: stream.VerdictEqual}
	reader, err := s.OpenReader(t.Context(), st.Spec.Machine)
	require.NoError(t, err)
	for _, d := range p.Disks {
		open, err := reader.OpenDisk(t.Context(), p.ID, d.ID)
		require.NoError(t, err)
		digest, err := attest.Digest(open)
		require.NoError(t, err)
		require.NoError(t, open.Close())
		r.Disks = append(r.Disks, stream.VerifiedDisk{ID: d.ID, Name: d.Name, Size: d.Size, Seed: d.Seed, Digest: digest})
	}
	require.NoError(t, reader.Close())
	if change != nil {
		change(&r)
	}
	ca = wiretest.NewCA(t)
	signed, err = attest.Sign(r, &ca.Server(signerPeer).Certificates[0])
	require.NoError(t, err)
	text, err := json.MarshalIndent(signed, "", "  ")
	require.NoError(t, err)
	require.NoError(t, s.PutDocument(t.Context(), attest.Document(st.Spec.Machine), text))
	return dir, s, st, signed, ca
}

// TestVerify: the stored bytes give the digest that the map of checksums gave.
func TestVerify(t *testing.T) {
	_, s, st, _, ca := attestedStore(t, nil)
	signed, err := Record(t.Context(), s, st.Spec.Machine)
	require.NoError(t, err)
	c, err := Verify(t.Context(), s, st, signed, ca.Pool, nil)
	require.NoError(t, err)
	require.Equal(t, signerPeer.String(), c.Signer)
	require.Len(t, c.Disks, 2)
	require.True(t, c.Disks[0].OK() && c.Disks[1].OK())
	require.NotEqual(t, c.Disks[0].Digest, c.Disks[1].Digest)
	c, err = Verify(t.Context(), s, st, signed, nil, nil)
	require.NoError(t, err)
	require.Empty(t, c.Signer, "it was not checked")
	_, err = Verify(t.Context(), s, st, signed, x509.NewCertPool(), nil)
	require.ErrorContains(t, err, "not of this vault")
	again, err := Find(t.Context(), s, "db-1")
	require.NoError(t, err)
	require.Empty(t, again.Points[1].Holds, "the point is released")
	_, err = Record(t.Context(), s, ident.NewMachineID("vc", "never"))
	require.ErrorIs(t, err, replica.ErrNotFound)
}

// TestVerifyFindsOneBit, in the image and in an undo file, wherever it has turned.
func TestVerifyFindsOneBit(t *testing.T) {
	for _, at := range []int64{0, 100, block, 2*block - 1} {
		dir, s, st, signed, ca := attestedStore(t, nil)
		flip(t, filepath.Join(dir, "machines", st.Spec.Machine.String(), "disks", st.Spec.Disks[0].ID.String()+"*"), at)
		c, err := Verify(t.Context(), s, st, signed, ca.Pool, nil)
		require.ErrorIs(t, err, ErrNotAttested)
		require.EqualValues(t, block, c.Disks[0].Damage)
		require.Equal(t, []int64{at / block * block}, c.Disks[0].First)
		require.Zero(t, c.Disks[0].Digest)
		require.True(t, c.Disks[1].OK())
	}
}

func flip(t *testing.T, pattern string, at int64) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.Len(t, files, 1)
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	one := make([]byte, 1)
	_, err = f.ReadAt(one, at)
	require.NoError(t, err)
	one[0] ^= 8
	_, err = f.WriteAt(one, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// TestVerifyFindsWhatFits: bytes and checksums that fit each other, but are not what was
// attested.
func TestVerifyFindsWhatFits(t *testing.T) {
	_, s, st, signed, ca := attestedStore(t, func(r *stream.Record) { r.Disks[1].Digest[0] ^= 1 })
	c, err := Verify(t.Context(), s, st, signed, ca.Pool, nil)
	require.ErrorIs(t, err, ErrNotAttested)
	require.True(t, c.Disks[0].OK())
	require.False(t, c.Disks[1].OK())
	require.Zero(t, c.Disks[1].Damage)
	require.NotZero(t, c.Disks[1].Digest)
}

// TestVerifyOfSomethingElse: a record attests its own point of its own machine and store.
func TestVerifyOfSomethingElse(t *testing.T) {
	for want, change := range map[string]func(*stream.Record){
		"the record is of machine":       func(r *stream.Record) { r.Machine = ident.NewMachineID("vc", "2") },
		"the record is of store":         func(r *stream.Record) { r.Store = "another" },
		"the record's was at":            func(r *stream.Record) { r.Position.Digest[0] ^= 1 },
		"is at ":                         func(r *stream.Record) { r.Generation++ },
		"retention takes them":           func(r *stream.Record) { r.Point = 77 },
		"other disks than the record":    func(r *stream.Record) { r.Disks = r.Disks[:1] },
		"has other disks":                func(r *stream.Record) { r.Disks[0].Size++ },
		"differed from its source":       func(r *stream.Record) { r.Verdict = stream.VerdictDifferent },
		"it has version 2, this program": func(r *stream.Record) { r.Version = 2 },
	} {
		_, s, st, signed, ca := attestedStore(t, change)
		_, err := Verify(t.Context(), s, st, signed, ca.Pool, nil)
		require.ErrorContains(t, err, want)
	}
	// An older point that is undone: what is read is what was then.
	_, s, st, signed, ca := attestedStore(t, nil)
	w, err := s.OpenWriter(t.Context(), 1, spec("db-1", "1"))
	require.NoError(t, err)
	_, err = w.Apply(t.Context(), replicatest.After(w.State(), 2).Write(0, 0, replicatest.Pattern(9, 60*block)).Cut(replicatest.Crash()))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	_, err = Verify(t.Context(), s, st, signed, ca.Pool, nil)
	require.NoError(t, err)
}
