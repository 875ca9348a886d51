package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/checksum"
	"drover/datapath/ident"
	"drover/datapath/stream"
)

var (
	made   = time.Date(2025, 3, 4, 5, 6, 7, 8, time.UTC) // long ago
	server = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}
)

// authority is a vault's CA.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: made.AddDate(-1, 0, 0), NotAfter: made.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.key, a.cert = a.make(tmpl, nil)
	a.pool.AddCert(a.cert)
	return a
}

// make signs a certificate; with no signer by itself.
func (a *authority) make(tmpl *x509.Certificate, by *authority) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return key, cert
}

// issue makes a peer's certificate that is valid for a week around the record's time,
// or so much later.
func (a *authority) issue(peer ident.Peer, later time.Duration) *tls.Certificate {
	a.t.Helper()
	key, cert := a.make(&x509.Certificate{SerialNumber: big.NewInt(7), URIs: []*url.URL{peer.URI()}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: made.Add(later - 24*time.Hour), NotAfter: made.Add(later + 6*24*time.Hour)}, a)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func sample() stream.Record {
	m := ident.NewMachineID("vc", "vm")
	return stream.Record{
		Version: stream.RecordVersion, Machine: m, Name: "db & <web>", Server: server.Name, Store: "store-1", Generation: 2, Point: 41,
		Position: ident.Position{Epoch: 3, Seq: 41, Digest: ident.Digest{4}}, PointTime: made.Add(-time.Second), Consistency: ident.CrashConsistent,
		Deep: true, Started: made.Add(-time.Hour), Finished: made, Verdict: stream.VerdictMended,
		Disks: []stream.VerifiedDisk{{ID: ident.NewDiskID(m, "a"), Name: "Hard disk 1", Size: 1 << 40, Seed: 1<<64 - 1, Digest: ident.Digest{5},
			Differed: 8192, Mended: 8192, First: []int64{0, 1 << 30}}},
	}
}

func sign(t testing.TB, r stream.Record, cert *tls.Certificate) stream.SignedRecord {
	t.Helper()
	s, err := Sign(r, cert)
	require.NoError(t, err)
	return s
}

// TestCheck: a record is good years after its signer's certificate has expired, also
// when it was indented, and by an intermediate authority.
func TestCheck(t *testing.T) {
	a := newAuthority(t)
	s := sign(t, sample(), a.issue(server, 0))
	for _, indent := range []string{"", "  ", "\t"} {
		text, err := json.MarshalIndent(s, "", indent)
		require.NoError(t, err)
		parsed, err := Parse(text)
		require.NoError(t, err)
		r, signer, err := Check(parsed, a.pool)
		require.NoError(t, err)
		require.Equal(t, sample(), r)
		require.Equal(t, server, signer)
		require.EqualValues(t, 8192, r.Differed())
	}
	between := &authority{t: t}
	between.key, between.cert = a.make(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter}, a)
	cert := between.issue(server, 0)
	_, _, err := Check(sign(t, sample(), cert), a.pool)
	require.ErrorContains(t, err, "not of this vault", "without what leads there")
	cert.Certificate = append(cert.Certificate, between.cert.Raw)
	_, _, err = Check(sign(t, sample(), cert), a.pool)
	require.NoError(t, err)
}

// resigned is what somebody makes who changes the text and signs it again.
func resigned(t testing.TB, text string, cert *tls.Certificate) stream.SignedRecord {
	t.Helper()
	key, _ := cert.PrivateKey.(*ecdsa.PrivateKey)
	sum := sha256.Sum256([]byte(purpose + text))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	require.NoError(t, err)
	return stream.SignedRecord{Record: json.RawMessage(text), Chain: cert.Certificate, Signature: sig}
}

func TestForged(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	good := a.issue(server, 0)
	s := sign(t, sample(), good)
	text := string(s.Record)
	master := ident.Peer{Role: ident.RoleMasterTarget, Name: "ps-1"}
	_, _, err := Check(sign(t, sample(), a.issue(master, 0)), a.pool)
	require.NoError(t, err, "a master target receives too")
	rsa := stream.SignedRecord{Record: s.Record, Chain: s.Chain, Signature: s.Signature[:len(s.Signature)-1]}
	plain := sha256.Sum256(s.Record) // signed for another purpose
	key, _ := good.PrivateKey.(*ecdsa.PrivateKey)
	elsewhere, err := ecdsa.SignASN1(rand.Reader, key, plain[:])
	require.NoError(t, err)
	self := &authority{t: t}
	selfKey, selfCert := self.make(&x509.Certificate{SerialNumber: big.NewInt(7), URIs: []*url.URL{server.URI()}, NotBefore: made.AddDate(-1, 0, 0), NotAfter: made.AddDate(9, 0, 0)}, nil)
	for what, c := range map[string]struct {
		s    stream.SignedRecord
		want string
	}{
		"another vault":             {sign(t, sample(), other.issue(server, 0)), "its signer is not of this vault"},
		"signed by oneself":         {sign(t, sample(), &tls.Certificate{Certificate: [][]byte{selfCert.Raw}, PrivateKey: selfKey}), "its signer is not of this vault"},
		"expired before":            {sign(t, sample(), a.issue(server, -30*24*time.Hour)), "its signer is not of this vault"},
		"not valid yet":             {sign(t, sample(), a.issue(server, 30*24*time.Hour)), "its signer is not of this vault"},
		"an agent":                  {sign(t, sample(), a.issue(ident.Peer{Role: ident.RoleAgent, Name: sample().Machine.String()}, 0)), "signed by agent/"},
		"a configuration server":    {sign(t, sample(), a.issue(ident.Peer{Role: ident.RoleConfigurationServer, Name: "ps-1"}, 0)), "but says that ps-1 made it"},
		"another server":            {sign(t, sample(), a.issue(ident.Peer{Role: ident.RoleProcessServer, Name: "ps-2"}, 0)), "signed by process-server/ps-2, but says that ps-1 made it"},
		"another verdict":           {stream.SignedRecord{Record: json.RawMessage(strings.Replace(text, `"mended"`, `"equal"`, 1)), Chain: s.Chain, Signature: s.Signature}, "not what process-server/ps-1 signed"},
		"another purpose":           {stream.SignedRecord{Record: s.Record, Chain: s.Chain, Signature: elsewhere}, "not what process-server/ps-1 signed"},
		"a short signature":         {rsa, "not what process-server/ps-1 signed"},
		"no signature":              {stream.SignedRecord{Record: s.Record, Chain: s.Chain}, "not what process-server/ps-1 signed"},
		"another key's certificate": {stream.SignedRecord{Record: s.Record, Chain: a.issue(server, 0).Certificate, Signature: s.Signature}, "not what process-server/ps-1 signed"},
		"no certificate":            {stream.SignedRecord{Record: s.Record, Signature: s.Signature}, "0 certificates"},
		"many certificates":         {stream.SignedRecord{Record: s.Record, Chain: [][]byte{{1}, {2}, {3}, {4}, {5}}, Signature: s.Signature}, "5 certificates"},
		"a torn certificate":        {stream.SignedRecord{Record: s.Record, Chain: [][]byte{s.Chain[0][:40]}, Signature: s.Signature}, "x509"},
		"a later version":           {resigned(t, strings.Replace(text, `"version":1`, `"version":2`, 1), good), "it has version 2, this program knows 1"},
		"no version":                {resigned(t, "{}", good), "it has version 0"},
		"an unknown field":          {resigned(t, strings.Replace(text, `"version":1`, `"version":1,"extra":1`, 1), good), "unknown field"},
		"no record":                 {stream.SignedRecord{Chain: s.Chain, Signature: s.Signature}, "check the record"},
	} {
		t.Run(what, func(t *testing.T) {
			_, _, err := Check(c.s, a.pool)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, _, err = Check(s, x509.NewCertPool())
	require.ErrorContains(t, err, "not of this vault")
}

// TestEveryByte: whatever byte is changed, the record is refused or says the same.
func TestEveryByte(t *testing.T) {
	a := newAuthority(t)
	text, err := json.Marshal(sign(t, sample(), a.issue(server, 0)))
	require.NoError(t, err)
	refused := 0
	for i := range text {
		for _, flip := range []byte{0x01, 0x20, 0x80} {
			changed := bytes.Clone(text)
			changed[i] ^= flip
			s, err := Parse(changed)
			if err != nil {
				refused++
				continue
			}
			r, _, err := Check(s, a.pool)
			if err != nil {
				refused++
				continue
			}
			require.Equal(t, sample(), r, "byte %d", i)
		}
	}
	require.Greater(t, refused, 3*len(text)*9/10, "what is left are names of fields, and bits that base64 does not use")
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "read the record: EOF",
		"{":                                     "unexpected EOF",
		"[]":                                    "cannot unmarshal",
		`{"record":{}} {}`:                      "something follows it",
		`{"record":{},"more":1}`:                "unknown field",
		strings.Repeat(" ", maxRecord):          "EOF",
		strings.Repeat(" ", maxRecord+1) + "{}": "it has 262147 bytes, at most 262144",
	} {
		_, err := Parse([]byte(text))
		require.ErrorContains(t, err, want)
	}
}

func TestSignNeedsAKey(t *testing.T) {
	_, err := Sign(sample(), &tls.Certificate{})
	require.ErrorContains(t, err, "cannot sign")
}

// fake is a disk's checksums.
type fake struct {
	checksum.Memory
	size int64
	err  error
}

func (f fake) Size() int64 { return f.size }

func (f fake) ReadSums(first int64, dst []uint64) error {
	if f.err != nil && first > 0 {
		return f.err
	}
	return f.Memory.ReadSums(first, dst)
}

// TestDigest against the plain definition, for sizes around what is read at a time.
func TestDigest(t *testing.T) {
	seen := map[ident.Digest]bool{}
	for _, blocks := range []int64{0, 1, 2, digestSums - 1, digestSums, digestSums + 1, 3*digestSums + 5} {
		sums := make(checksum.Memory, blocks)
		var plain []byte
		for i := range sums {
			sums[i] = uint64(i) * 0x9E3779B97F4A7C15
			plain = binary.LittleEndian.AppendUint64(plain, sums[i])
		}
		size := max(blocks*checksum.BlockSize-512, 0) // the last block is short
		got, err := Digest(fake{sums, size, nil})
		require.NoError(t, err)
		require.Equal(t, ident.Digest(sha256.Sum256(plain)), got)
		require.False(t, seen[got])
		seen[got] = true
	}
	lost := errors.New("EIO")
	_, err := Digest(fake{make(checksum.Memory, 2*digestSums), 2 * digestSums * checksum.BlockSize, lost})
	require.ErrorIs(t, err, lost)
}
