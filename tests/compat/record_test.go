package compat

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
	"drover/datapath/stream"
	"drover/datapath/wire/wiretest"
)

var recordServer = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}

// record is what every sample of a comparison's record says.
func record() stream.Record {
	h, at := header(), time.Unix(1700000000, 5).UTC()
	return stream.Record{
		Version: stream.RecordVersion, Machine: h.Machine, Name: "db-1 & <co>", Server: recordServer.Name, Store: "s", Generation: 2, Point: 7,
		Position: ident.Position{Epoch: 3, Seq: 7, Digest: ident.Digest{9}}, PointTime: at, Consistency: ident.ApplicationConsistent, Deep: true,
		Started: at.Add(-time.Minute), Verdict: stream.VerdictMended,
		Disks: []stream.VerifiedDisk{
			{ID: h.Disks[0].ID, Name: "Hard disk 1", Size: h.Disks[0].Size, Seed: 1<<64 - 1, Digest: ident.Digest{1}, Differed: 8192, Mended: 8192, First: []int64{0, 4096}},
			{ID: h.Disks[1].ID, Name: "Hard disk 2", Size: h.Disks[1].Size, Seed: 2, Digest: ident.Digest{2}, Busy: 4096},
		},
	}
}

// TestRecords: a record is kept for years, and is still checked then: its signer's
// certificate has long expired.
func TestRecords(t *testing.T) {
	if *write {
		newRecord(t, stream.RecordVersion)
	}
	for _, sample := range samples(t, "record-v*.json") {
		text, err := os.ReadFile(sample)
		require.NoError(t, err)
		signed, err := attest.Parse(text)
		require.NoError(t, err)
		der, err := os.ReadFile(sample[:len(sample)-len(".json")] + ".ca")
		require.NoError(t, err)
		ca, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		got, signer, err := attest.Check(signed, pool)
		require.NoError(t, err)
		require.Equal(t, recordServer, signer)
		want := record()
		want.Finished = got.Finished // when the sample was made
		require.Equal(t, want, got)
		text, err = json.Marshal(want)
		require.NoError(t, err)
		require.JSONEq(t, string(signed.Record), string(text), "the record's form has changed: raise its version and add a sample")
	}
}

// newRecord writes a sample and the authority that its signer had.
func newRecord(t *testing.T, version int) {
	name := filepath.Join("testdata", "record-v"+string(rune('0'+version)))
	if _, err := os.Stat(name + ".json"); err == nil {
		return
	}
	ca := wiretest.NewCA(t)
	r := record()
	r.Finished = time.Now().UTC()
	signed, err := attest.Sign(r, &ca.Server(recordServer).Certificates[0])
	require.NoError(t, err)
	text, err := json.MarshalIndent(signed, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(name+".json", text, 0o600))
	dir := t.TempDir()
	ca.Save(dir)
	der, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(name+".ca", der, 0o600))
}
