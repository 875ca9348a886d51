package replica

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
	"drover/datapath/ident"
)

// Bounds that all stores share.
const (
	MaxMachineDocument = 64 << 10 // bytes of one document of a machine
	maxHoldsPer        = 64       // holds of one point
	maxHoldOwner       = 200      // bytes of an owner's name
)

var documentName = regexp.MustCompile(`^[a-z0-9-]{1,80}$`)

// DocumentName reports whether a store's document can have the name.
func DocumentName(name string) bool { return documentName.MatchString(name) }

// CheckDocument refuses a document that a store cannot keep.
func CheckDocument(name string, content []byte) error {
	if !DocumentName(name) {
		return errors.New("the name must be 1 to 80 of a-z, 0-9 and -")
	}
	if len(content) > MaxDocument {
		return fmt.Errorf("%d bytes, at most %d", len(content), MaxDocument)
	}
	return nil
}

// CheckDocuments refuses documents of a machine that are too large.
func CheckDocuments(docs map[string]string) error {
	var names []string
	for n := range docs {
		if len(docs[n]) > MaxMachineDocument {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("document %q: %d bytes, at most %d", names[0], len(docs[names[0]]), MaxMachineDocument)
}

// CheckSpec refuses a spec that no replica can be made from.
func CheckSpec(spec Spec) error {
	if spec.Machine.IsZero() {
		return errors.New("no machine id")
	}
	if err := CheckDocuments(spec.Documents); err != nil {
		return err
	}
	return CheckDisks(spec.Disks)
}

// CheckDisks refuses a list that is not a machine's disks.
func CheckDisks(disks []Disk) error {
	if len(disks) == 0 || len(disks) > changeset.MaxDisks {
		return fmt.Errorf("%d disks, want 1 to %d", len(disks), changeset.MaxDisks)
	}
	return CheckEachDisk(disks)
}

// CheckEachDisk refuses ids given twice and wrong sizes.
func CheckEachDisk(disks []Disk) error {
	seen := map[ident.DiskID]bool{}
	for _, d := range disks {
		if d.ID.IsZero() || seen[d.ID] {
			return fmt.Errorf("disk id %s is zero or given twice", d.ID)
		}
		seen[d.ID] = true
		if d.Size <= 0 || d.Size > changeset.MaxDiskSize || d.Size%512 != 0 {
			return fmt.Errorf("disk %s of %d bytes: want a multiple of 512 up to %d", d.ID, d.Size, changeset.MaxDiskSize)
		}
	}
	return nil
}

// NewSeed gives a disk's seed; it is never 0.
func NewSeed() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // never fails
		if s := binary.LittleEndian.Uint64(b[:]); s != 0 {
			return s
		}
	}
}

// CheckFits refuses a change set that does not follow the state with ErrGap.
func CheckFits(h changeset.Header, s State) error {
	if h.Machine != s.Spec.Machine {
		return fmt.Errorf("it is of machine %s", h.Machine)
	}
	if !h.Follows(s.Position) || h.Generation != s.Generation {
		return fmt.Errorf("it is %d after %s of generation %d, the replica is at %s of generation %d: %w",
			h.Seq, h.Prev.String()[:8], h.Generation, s.Position, s.Generation, ErrGap)
	}
	if len(h.Disks) != len(s.Spec.Disks) {
		return fmt.Errorf("it has %d disks, the replica %d: begin a new generation: %w", len(h.Disks), len(s.Spec.Disks), ErrGap)
	}
	for i, d := range h.Disks {
		if have := s.Spec.Disks[i].Disk; d != have {
			return fmt.Errorf("its disk %d is %s of %d bytes, the replica's is %s of %d bytes: begin a new generation: %w",
				i, d.ID, d.Size, have.ID, have.Size, ErrGap)
		}
	}
	return nil
}

// Applied reports whether the change set was applied before, with the point it made, if
// that is still there.
func (s State) Applied(sum changeset.Summary) (Point, bool) {
	pos := sum.Position()
	for _, p := range s.Points {
		if p.Position == pos {
			return p, true
		}
	}
	return Point{}, s.Position.Seq == pos.Seq && s.Position.Digest == pos.Digest
}

// CheckExtent verifies the extent's place on one of the disks, and the checksum of
// every block.
func CheckExtent(e *changeset.Extent, disks []Disk) error {
	if err := checkPlace(e, disks); err != nil || e.Zero {
		return err
	}
	return VerifyBlocks(disks[e.Disk], e.Offset, e.Data, e.Sums)
}

// checkPlace verifies the extent's place on one of the disks, and its shape.
func checkPlace(e *changeset.Extent, disks []Disk) error {
	if e.Disk < 0 || e.Disk >= len(disks) {
		return fmt.Errorf("extent of disk %d of %d", e.Disk, len(disks))
	}
	d := disks[e.Disk]
	end := e.Offset + e.Length
	if e.Offset < 0 || e.Offset%checksum.BlockSize != 0 || e.Length <= 0 || end > d.Size || end < e.Offset ||
		(e.Length%checksum.BlockSize != 0 && end != d.Size) {
		return fmt.Errorf("extent of %d bytes at %d of disk %s with %d bytes: not whole blocks inside the disk", e.Length, e.Offset, d.ID, d.Size)
	}
	if e.Zero {
		return nil
	}
	if e.Length > changeset.MaxExtentBytes || int64(len(e.Data)) != e.Length || int64(len(e.Sums)) != checksum.Blocks(e.Length) {
		return fmt.Errorf("extent of %d bytes at %d of disk %s has %d bytes and %d checksums", e.Length, e.Offset, d.ID, len(e.Data), len(e.Sums))
	}
	return nil
}

// VerifyBlocks compares the blocks from the offset on with their checksums.
func VerifyBlocks(d Disk, offset int64, data []byte, sums []uint64) error {
	for _, want := range sums {
		n := min(checksum.BlockSize, len(data))
		if checksum.Sum(d.Seed, offset, data[:n]) != want {
			return fmt.Errorf("block %d (offset %d) of disk %s: %w", offset/checksum.BlockSize, offset, d.ID, ErrCorrupt)
		}
		data, offset = data[n:], offset+int64(n)
	}
	return nil
}

// PointAt is the point at the change set's cut, and whether there is one, for the
// state after it.
func PointAt(sum changeset.Summary, s State) (Point, bool) {
	if sum.Cut.Consistency == ident.NoConsistency || !s.Complete {
		return Point{}, false
	}
	return Point{
		ID: sum.Header.Seq, Position: s.Position, Generation: s.Generation,
		Time:        sum.Cut.SourceTime.Add(sum.Cut.ClockOffset),
		Consistency: sum.Cut.Consistency, Final: sum.Cut.Final, Freeze: sum.Cut.Freeze, Note: sum.Cut.Note, Group: sum.Cut.Group,
		Disks: slices.Clone(s.Spec.Disks),
	}, true
}

// CheckHold refuses a hold that cannot be.
func CheckHold(h Hold, now time.Time) error {
	if h.Owner == "" || len(h.Owner) > maxHoldOwner {
		return fmt.Errorf("an owner's name of %d bytes, want 1 to %d", len(h.Owner), maxHoldOwner)
	}
	if !h.Expires.After(now) {
		return errors.New("it expires in the past")
	}
	return nil
}

// AddHold adds the hold to a point's, or extends its owner's.
func AddHold(list []Hold, h Hold) ([]Hold, error) {
	list = DropHold(list, h.Owner)
	if len(list) >= maxHoldsPer {
		return nil, fmt.Errorf("it has %d holds already, the most there may be: release one", len(list))
	}
	return append(list, h), nil
}

// DropHold takes the owner's hold away.
func DropHold(list []Hold, owner string) []Hold {
	return slices.DeleteFunc(list, func(h Hold) bool { return h.Owner == owner })
}

// LiveHolds gives the holds that have not expired.
func LiveHolds(holds []Hold, now time.Time) []Hold {
	var out []Hold
	for _, h := range holds {
		if h.Expires.After(now) {
			out = append(out, h)
		}
	}
	return out
}
