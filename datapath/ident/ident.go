// Package ident holds the names that every part of Drover agrees on: machine and
// disk ids, epochs, positions and the consistency of a recovery point.
//
// It imports nothing of ours and does no I/O, so that workflows may use it too.
package ident

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
)

// MachineID names a protected machine for its whole life, on whichever side it
// runs. It is derived from the vCenter and VM instance uuids by [NewMachineID].
type MachineID [16]byte

// DiskID names one disk of one machine. It is derived from the machine and the
// uuid of the disk's backing by [NewDiskID].
type DiskID [16]byte

// namespace is the root of every id we derive (UUID version 5, RFC 9562).
var namespace = uuid.MustParse("6f0f2c5e-5d1e-4c59-9a4b-6d726f766572")

// NewMachineID derives the id of a VM from its vCenter's instance uuid and its
// own instance uuid. The same pair always gives the same id.
func NewMachineID(vcenterInstance, vmInstance string) MachineID {
	return MachineID(uuid.NewSHA1(namespace, []byte("machine\x00"+vcenterInstance+"\x00"+vmInstance)))
}

// NewDiskID derives the id of a machine's disk from the uuid of its backing.
func NewDiskID(machine MachineID, backingUUID string) DiskID {
	return DiskID(uuid.NewSHA1(namespace, []byte("disk\x00"+string(machine[:])+"\x00"+backingUUID)))
}

// ParseMachineID reads the canonical text form (36 characters, lower case hex
// with dashes). Any other form is refused, so that an id never becomes a path.
func ParseMachineID(s string) (MachineID, error) {
	id, err := parse(s)
	if err != nil {
		return MachineID{}, fmt.Errorf("machine id %q: %w", s, err)
	}
	return MachineID(id), nil
}

// ParseDiskID reads the canonical text form; see [ParseMachineID].
func ParseDiskID(s string) (DiskID, error) {
	id, err := parse(s)
	if err != nil {
		return DiskID{}, fmt.Errorf("disk id %q: %w", s, err)
	}
	return DiskID(id), nil
}

func parse(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s {
		return uuid.UUID{}, errors.New("not a uuid in canonical form (xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, lower case)")
	}
	return id, nil
}

func (m MachineID) String() string { return uuid.UUID(m).String() }
func (d DiskID) String() string    { return uuid.UUID(d).String() }

// IsZero reports whether the id was never set.
func (m MachineID) IsZero() bool { return m == MachineID{} }

// IsZero reports whether the id was never set.
func (d DiskID) IsZero() bool { return d == DiskID{} }

// MarshalText gives the canonical text form.
func (m MachineID) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the canonical text form.
func (m *MachineID) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMachineID(string(b))
	return err
}

// MarshalText gives the canonical text form.
func (d DiskID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the canonical text form.
func (d *DiskID) UnmarshalText(b []byte) (err error) { *d, err = ParseDiskID(string(b)); return err }

// Epoch numbers the owners of a machine's replica. It is raised by failover,
// reprotect, failback and reassignment, never lowered; a writer that carries an
// old epoch is refused by the store. 0 means "no owner yet".
type Epoch uint64

// Seq numbers a machine's change sets, from 1, without gaps, across epochs.
type Seq uint64

// Digest is a SHA-256; of a change set it covers header, index and cut, and
// through the header's Prev field all change sets before it.
type Digest [32]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText gives lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hex digits.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) != 2*len(d) {
		return fmt.Errorf("digest of %d characters, want %d", len(b), 2*len(d))
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// Position names a state of a machine's replica: the change set that was applied
// last. Two positions are the same state only if all three fields are equal.
// The zero Position is "nothing yet".
type Position struct {
	Epoch  Epoch  `json:"epoch"`
	Seq    Seq    `json:"seq"`
	Digest Digest `json:"digest"`
}

// IsZero reports whether nothing was ever written.
func (p Position) IsZero() bool { return p == Position{} }

func (p Position) String() string {
	return fmt.Sprintf("%d/%d/%s", p.Epoch, p.Seq, p.Digest.String()[:8])
}

// Round names one moment to which all machines of a consistency group were brought. It
// is random, so that no two servers and no two runs of one give the same; 0 is none.
type Round uint64

func (r Round) String() string { return fmt.Sprintf("%016x", uint64(r)) }

// MarshalText gives 16 hex digits.
func (r Round) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads 16 hex digits.
func (r *Round) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil || Round(n).String() != string(b) {
		return fmt.Errorf("round %q: want 16 hex digits, lower case", b)
	}
	*r = Round(n)
	return nil
}

// Consistency says what a recovery point may be trusted for.
type Consistency uint8

// The kinds of consistency, weakest first.
const (
	NoConsistency         Consistency = iota // part of a base copy; never a recovery point
	CrashConsistent                          // as after a power cut
	FileSystemConsistent                     // file systems were frozen
	ApplicationConsistent                    // pre and post scripts succeeded around the freeze
)

var consistencyNames = [...]string{"none", "crash", "file-system", "app"}

// Valid reports whether c is one of the named kinds.
func (c Consistency) Valid() bool { return int(c) < len(consistencyNames) }

func (c Consistency) String() string {
	if !c.Valid() {
		return fmt.Sprintf("consistency(%d)", uint8(c))
	}
	return consistencyNames[c]
}

// MarshalText gives the field's word for the kind.
func (c Consistency) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (c *Consistency) UnmarshalText(b []byte) error {
	for i, name := range consistencyNames {
		if name == string(b) {
			*c = Consistency(i)
			return nil
		}
	}
	return fmt.Errorf("consistency %q: want none, crash, file-system or app", b)
}
