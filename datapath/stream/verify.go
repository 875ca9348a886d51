package stream

import (
	"encoding/json"
	"errors"
	"time"

	"drover/datapath/ident"
)

// MinVerifyRate is the least rate of a comparison: slower, and nobody could tell it from
// one that does not get on.
const MinVerifyRate = 1 << 20

// Why there is no comparison.
var (
	// ErrNotCompared: it could not be made, and would not be better if it began again.
	ErrNotCompared = errors.New("source and replica could not be compared")
	// ErrNotComplete: there is nothing to compare with yet.
	ErrNotComplete = errors.New("its replica is not complete; wait until the machine is protected")
	// ErrOtherDepth: one comparison at a time.
	ErrOtherDepth = errors.New("another comparison of it is running, which is not of the same depth; wait for its end, or cancel it")
)

// VerifyOrder says how source and replica are compared.
type VerifyOrder struct {
	// Deep reads the stored bytes back; else the store's map of checksums is trusted.
	Deep bool `json:"deep,omitempty"`
	// Rate bounds how fast the agent reads its disks, in bytes per second; 0: no bound,
	// else at least MinVerifyRate. Who joins a comparison that runs has its rate.
	Rate int64 `json:"rate,omitempty"`
}

// VerifyProgress is how far a comparison is.
type VerifyProgress struct {
	Deep    bool      `json:"deep,omitempty"`
	Done    int64     `json:"done"`  // bytes of the machine's disks that were read
	Total   int64     `json:"total"` // 0: the agent has not begun
	Started time.Time `json:"started"`
	Waits   string    `json:"waits,omitempty"` // what it waits for now
}

// Verdict is what a comparison came to.
type Verdict string

// The verdicts.
const (
	// VerdictEqual: every block of the source was found in the replica.
	VerdictEqual Verdict = "equal"
	// VerdictMended: some blocks differed though nothing was under way to mend them.
	// They were sent again, and were found equal then.
	VerdictMended Verdict = "mended"
	// VerdictUnsettled: nothing differed, but some blocks were written so often that
	// they could not be compared.
	VerdictUnsettled Verdict = "unsettled"
	// VerdictDifferent: too much differs, or what was sent again differs still. The
	// machine is marked for resync.
	VerdictDifferent Verdict = "different"
)

// RecordVersion is the version of Record.
const RecordVersion = 1

// Record says what a comparison of a machine's source with its replica found. It is
// bound to a recovery point: Digest of each disk is of the replica as of that point.
//
// Every block of the source was read once between Started and Finished. Where it was
// not what the replica had, it was read again after a later cut had been applied.
type Record struct {
	Version    int             `json:"version"`
	Machine    ident.MachineID `json:"machine"`
	Name       string          `json:"name"`
	Server     string          `json:"server"`
	Store      string          `json:"store"` // its identity
	Generation uint32          `json:"generation"`
	// Point, its position and time: the first recovery point that was cut after the
	// comparison was over.
	Point       ident.Seq         `json:"point"`
	Position    ident.Position    `json:"position"`
	PointTime   time.Time         `json:"pointTime"`
	Consistency ident.Consistency `json:"consistency"`
	Deep        bool              `json:"deep"`
	Started     time.Time         `json:"started"`
	Finished    time.Time         `json:"finished"`
	Verdict     Verdict           `json:"verdict"`
	Disks       []VerifiedDisk    `json:"disks"`
}

// VerifiedDisk is one disk of a Record. Bytes are of whole blocks.
type VerifiedDisk struct {
	ID   ident.DiskID `json:"id"`
	Name string       `json:"name"`
	Size int64        `json:"size"`
	Seed uint64       `json:"seed"`
	// Digest is the SHA-256 of the level-0 checksums (seeded xxhash64, 8 bytes each,
	// little-endian) of all the disk's blocks at the point.
	Digest ident.Digest `json:"digest"`
	// Differed is what was not in the replica, Mended what of it was sent again and
	// found equal, Busy what was written too often to be compared.
	Differed int64 `json:"differed"`
	Mended   int64 `json:"mended"`
	Busy     int64 `json:"busy"`
	// Free is what was not compared because the source's file systems had it free at the
	// cut: the replica has zeros there, and the source whatever was deleted.
	Free int64 `json:"free,omitempty"`
	// First is where the first differences were, at most a few.
	First []int64 `json:"first,omitempty"`
}

// Verified is what a machine's newest record says, in short.
type Verified struct {
	Verdict   Verdict   `json:"verdict"`
	Deep      bool      `json:"deep,omitempty"`
	Point     ident.Seq `json:"point"`
	PointTime time.Time `json:"pointTime"`
	Finished  time.Time `json:"finished"`
	Differed  int64     `json:"differed,omitempty"`
}

// Short is the record in short.
func (r Record) Short() Verified {
	return Verified{Verdict: r.Verdict, Deep: r.Deep, Point: r.Point, PointTime: r.PointTime, Finished: r.Finished, Differed: r.Differed()}
}

// Differed is how many bytes of all disks differed.
func (r Record) Differed() (n int64) {
	for _, d := range r.Disks {
		n += d.Differed
	}
	return n
}

// SignedRecord is a Record with the signature of the server that made it; package
// attest signs and checks. The signature is over the record's JSON without white
// space, so that it may be indented.
type SignedRecord struct {
	Record json.RawMessage `json:"record"`
	// Chain is the signer's certificate and those that lead to the vault's authority,
	// in DER.
	Chain     [][]byte `json:"chain"`
	Signature []byte   `json:"signature"`
}
