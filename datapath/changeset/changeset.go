// Package changeset is the unit of the log: all blocks of one machine, over all
// its disks, that changed between two cuts. A change set is written once,
// compressed and encrypted, and applied whole or not at all.
//
// The file format is described in FORMAT.md.
package changeset

import (
	"time"

	"drover/datapath/codec"
	"drover/datapath/compress"
	"drover/datapath/ident"
)

// Limits that a reader checks before it allocates.
const (
	MaxDisks       = 64                // disks of one machine
	MaxExtentBytes = compress.MaxPlain // data of one extent, and of one chunk, plain
	MaxBytes       = 1 << 30           // plain data of one change set; more is cut into several base sets
	MaxExtents     = 4 << 20           // extents of one change set
	MaxChunk       = 512               // extents of one chunk
	MaxDiskSize    = int64(64) << 40   // 64 TiB
	MaxMembers     = 64                // machines of one consistency group
	MaxGroupName   = 63                // bytes of its name
)

// Kind says what a change set is for.
type Kind uint8

// The kinds of change set.
const (
	// Base carries a part of a base copy (initial replication or resync). The
	// replica is not consistent until a set whose Cut says Complete is applied.
	Base Kind = 1
	// Delta carries all that changed since the cut before it.
	Delta Kind = 2
)

// Disk describes one disk as it was when the change set was begun.
type Disk struct {
	ID   ident.DiskID `json:"id"`
	Size int64        `json:"size"` // bytes, a multiple of 512
	Seed uint64       `json:"seed"` // of the checksums of its blocks
}

// Header is known when the change set is begun.
type Header struct {
	Machine    ident.MachineID
	Generation uint32 // of the replica's base copy
	Epoch      ident.Epoch
	Seq        ident.Seq
	Prev       ident.Digest // of the change set before; zero for the first
	Kind       Kind
	KeyID      string // names the data key; the key itself is never stored
	Disks      []Disk // in the machine's order; extents refer to them by index
}

// Position is where the replica must stand for this change set to fit. Its
// Epoch is not part of the comparison: owners change between sets.
func (h Header) Follows(p ident.Position) bool { return h.Seq == p.Seq+1 && h.Prev == p.Digest }

// Cut is known when the change set is ended.
type Cut struct {
	SourceTime  time.Time         `json:"sourceTime"`  // when the cut was taken, by the source's clock
	ClockOffset time.Duration     `json:"clockOffset"` // add it to SourceTime for the server's time
	Consistency ident.Consistency `json:"consistency"`
	Complete    bool              `json:"complete,omitempty"` // base: the copy is complete with this cut
	Final       bool              `json:"final,omitempty"`    // the source stays frozen: nothing is written after this cut
	Freeze      time.Duration     `json:"freeze,omitempty"`   // how long the source was frozen for it
	Note        string            `json:"note,omitempty"`     // at most 200 bytes, e.g. why consistency is less than asked
	Group       *Group            `json:"group,omitempty"`    // several machines were frozen at this moment
}

// Group says that a cut is of the one moment of several machines: all of the round's
// were frozen then. Theirs is a point in common once each of them has it.
type Group struct {
	Name    string      `json:"name"`
	Round   ident.Round `json:"round"`
	Members int         `json:"members"`           // machines that were frozen
	Scripts bool        `json:"scripts,omitempty"` // the scripts of all were run
}

// Extent is a run of blocks of one disk. Extents of one change set are applied
// in order: a later one wins over an earlier one.
type Extent struct {
	Disk   int      // index in Header.Disks
	Offset int64    // bytes, a multiple of checksum.BlockSize
	Length int64    // bytes; with data at most MaxExtentBytes; a multiple of BlockSize but at the disk's end
	Zero   bool     // the range is all zeros; no Data, no Sums
	Sums   []uint64 // one per block, computed where the block was read
	Data   []byte   // Length bytes
}

// Chunk is some extents of one disk whose data is encoded together: scattered small
// blocks cost little more than one large one.
type Chunk struct {
	Disk    int      // of all its extents
	Extents []Extent // at least one, in order; Data is not set
	Codec   codec.Codec
	Data    []byte // of the extents that are not zeros, one after the other, encoded
}

// Plain is how many bytes its data has when decoded.
func (c *Chunk) Plain() (n int64) {
	for i := range c.Extents {
		if e := &c.Extents[i]; !e.Zero {
			n += e.Length
		}
	}
	return n
}

// Summary describes a change set that is complete.
type Summary struct {
	Header Header
	Cut    Cut
	Digest ident.Digest
	// Extents, PlainBytes (data), ZeroBytes and StoredBytes (the whole file).
	Extents, PlainBytes, ZeroBytes, StoredBytes int64
}

// Position is where the replica stands once this change set is applied.
func (s Summary) Position() ident.Position {
	return ident.Position{Epoch: s.Header.Epoch, Seq: s.Header.Seq, Digest: s.Digest}
}

// Key is a machine's data key.
type Key struct {
	ID     string
	Secret [32]byte // AES-256
}

// Keys finds data keys by id. Implementations must be safe for concurrent use.
type Keys interface {
	Key(machine ident.MachineID, id string) (Key, error)
}
