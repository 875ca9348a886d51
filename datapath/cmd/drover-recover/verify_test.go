package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/attest"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/replicatest"
	"drover/datapath/stream"
	"drover/datapath/wire/wiretest"
)

// TestVerify: with nothing but the store and the authority's certificate.
func TestVerify(t *testing.T) {
	dir, pki := t.TempDir(), t.TempDir()
	s, err := file.Open(dir)
	require.NoError(t, err)
	m := ident.NewMachineID("vc", "vm")
	disk := replica.Disk{Disk: changeset.Disk{ID: ident.NewDiskID(m, "a"), Size: 1<<20 + 512}, Name: "Hard disk 1"}
	w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "db-1", Disks: []replica.Disk{disk}})
	require.NoError(t, err)
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
	p, err := w.Apply(t.Context(), replicatest.After(w.State(), changeset.Base).Write(0, 0, replicatest.Pattern(1, 8192)).Cut(replicatest.Complete()))
	require.NoError(t, err)
	require.NoError(t, w.Close())

	at := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := execute(t.Context(), append([]string{"verify", "db-1", "--store", dir}, args...), &out, &out)
		return code, out.String()
	}
	code, text := at()
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "never compared with its source")

	reader, err := s.OpenReader(t.Context(), m)
	require.NoError(t, err)
	open, err := reader.OpenDisk(t.Context(), p.ID, disk.ID)
	require.NoError(t, err)
	digest, err := attest.Digest(open)
	require.NoError(t, err)
	id, err := s.ID(t.Context())
	require.NoError(t, err)
	ca, peer := wiretest.NewCA(t), ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}
	signed, err := attest.Sign(stream.Record{Version: 1, Machine: m, Name: "db-1", Server: "ps-1", Store: id, Generation: p.Generation, Point: p.ID, Position: p.Position,
		PointTime: p.Time, Finished: time.Now().UTC(), Verdict: stream.VerdictEqual,
		Disks: []stream.VerifiedDisk{{ID: disk.ID, Name: disk.Name, Size: disk.Size, Seed: p.Disks[0].Seed, Digest: digest}}}, &ca.Server(peer).Certificates[0])
	require.NoError(t, err)
	record, err := json.Marshal(signed)
	require.NoError(t, err)
	require.NoError(t, s.PutDocument(t.Context(), attest.Document(m), record))
	ca.Save(pki)
	der, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	require.NoError(t, err)
	pemFile, other := filepath.Join(pki, "ca.pem"), filepath.Join(pki, "record.json")
	require.NoError(t, os.WriteFile(pemFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(other, record, 0o600))

	code, text = at("--ca", pemFile)
	require.Zero(t, code, text)
	require.Contains(t, text, "is what was attested")
	require.Contains(t, text, "signed by process-server/ps-1")
	code, text = at("--record", other, "--point", "1")
	require.Zero(t, code, text)
	require.Contains(t, text, "signature NOT CHECKED")
	code, text = at("--ca", pemFile, "--point", "2")
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "says nothing of point 2")
	code, text = at("--ca", other)
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "no certificate in PEM")
	require.NoError(t, os.WriteFile(other, bytes.Replace(record, []byte(`"equal"`), []byte(`"mended"`), 1), 0o600))
	code, text = at("--ca", pemFile, "--record", other)
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "not what process-server/ps-1 signed")

	images, err := filepath.Glob(filepath.Join(dir, "machines", m.String(), "disks", "*"))
	require.NoError(t, err)
	require.Len(t, images, 1)
	image, err := os.OpenFile(images[0], os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = image.WriteAt([]byte{0xee}, 1<<20-3) // in what is zeros
	require.NoError(t, err)
	require.NoError(t, image.Close())
	code, text = at("--ca", pemFile)
	require.Equal(t, exitFailed, code)
	require.Contains(t, text, "is NOT what was attested")
	code, text = at("--ca", pemFile, "--json")
	require.Equal(t, exitFailed, code)
	var c recover.Check
	require.NoError(t, json.NewDecoder(bytes.NewReader([]byte(text[bytes.IndexByte([]byte(text), '{'):]))).Decode(&c))
	require.Equal(t, []int64{1<<20 - 4096}, c.Disks[0].First)
}
