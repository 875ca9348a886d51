package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/pageblob"
	"drover/tests/lab/guest"
)

// Proof is what comparing recovery points with a guest's ledger came to.
type Proof struct {
	Points  int   `json:"points"`  // recovery points read back
	Matched int   `json:"matched"` // of those, equal on every disk to what the guest noted
	Bytes   int64 `json:"bytes"`   // read back
	// Problems says what did not match; empty means proven.
	Problems []string `json:"problems,omitempty"`
}

// OK reports whether something was compared and all of it matched.
func (p Proof) OK() bool { return p.Points > 0 && p.Matched == p.Points && len(p.Problems) == 0 }

// ProvePoints reads recovery points of a machine from a store (a directory of the
// lab) and compares every disk of each with what the guest noted at that cut.
// want limits it to some points; nil takes all. With newest > 0, only that many
// of the newest.
func (l *Lab) ProvePoints(ctx context.Context, store string, machine ident.MachineID, name string, newest int) (Proof, error) {
	ledger, err := guest.ReadLedger(l.ledger(name))
	if err != nil {
		return Proof{}, err
	}
	reader, state, done, err := l.openReplica(ctx, store, machine)
	if err != nil {
		return Proof{}, err
	}
	defer done()
	points := state.Points
	if newest > 0 && len(points) > newest {
		points = points[len(points)-newest:]
	}
	var proof Proof
	for _, p := range points {
		if err := holdPoint(ctx, reader, p.ID); errors.Is(err, replica.ErrNotFound) {
			continue // thinned since the list was read
		} else if err != nil {
			return proof, err
		}
		err := l.provePoint(ctx, reader, p, ledger, &proof)
		if err = errors.Join(err, reader.Release(ctx, p.ID, proofOwner)); err != nil {
			return proof, err
		}
	}
	return proof, nil
}

const proofOwner = "lab-proof"

func holdPoint(ctx context.Context, r replica.Reader, point ident.Seq) error {
	return r.Hold(ctx, point, replica.Hold{Owner: proofOwner, Expires: time.Now().Add(5 * time.Minute)})
}

func (l *Lab) provePoint(ctx context.Context, r replica.Reader, p replica.Point, ledger map[[2]uint64]guest.Entry, proof *Proof) error {
	entry, ok := ledger[[2]uint64{uint64(p.Position.Epoch), uint64(p.Position.Seq)}]
	proof.Points++
	if !ok {
		proof.Problems = append(proof.Problems, fmt.Sprintf("point %d: the guest was not frozen for it", p.ID))
		return nil
	}
	equal := len(entry.Disks) == len(p.Disks)
	for _, d := range p.Disks {
		sum, n, err := digestDisk(ctx, r, p.ID, d)
		if err != nil {
			return fmt.Errorf("read recovery point %d, disk %s: %w", p.ID, d.Name, err)
		}
		proof.Bytes += n
		if entry.Disks[d.ID.String()] != sum {
			equal = false
			proof.Problems = append(proof.Problems, fmt.Sprintf("point %d, disk %s: not what the guest had at that moment", p.ID, d.Name))
		}
	}
	if equal {
		proof.Matched++
	}
	return nil
}

func digestDisk(ctx context.Context, r replica.Reader, point ident.Seq, d replica.Disk) (string, int64, error) {
	disk, err := r.OpenDisk(ctx, point, d.ID)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = disk.Close() }()
	h, b := sha256.New(), make([]byte, 1<<20)
	for off := int64(0); off < disk.Size() && ctx.Err() == nil; off += int64(len(b)) {
		piece := b[:min(int64(len(b)), disk.Size()-off)]
		if _, err := disk.ReadAt(piece, off); err != nil {
			return "", off, err
		}
		_, _ = h.Write(piece) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil)), disk.Size(), ctx.Err()
}

type openStore interface {
	replica.Store
	io.Closer
}

func (l *Lab) openStore(ctx context.Context, store string) (openStore, error) {
	if l.Azure != "" && store == SeedContainer {
		return pageblob.Open(ctx, pageblob.Config{Account: l.account(store)})
	}
	return file.Open(l.Path(store))
}

func (l *Lab) openReplica(ctx context.Context, store string, machine ident.MachineID) (replica.Reader, replica.State, func(), error) {
	s, err := l.openStore(ctx, store)
	if err != nil {
		return nil, replica.State{}, nil, err
	}
	r, err := s.OpenReader(ctx, machine)
	if err != nil {
		return nil, replica.State{}, nil, errors.Join(err, s.Close())
	}
	state, err := r.State(ctx)
	if err != nil {
		return nil, replica.State{}, nil, errors.Join(err, r.Close(), s.Close())
	}
	return r, state, func() { _ = r.Close(); _ = s.Close() }, nil
}

// ReplicaState reads a machine's manifest from a store of the lab.
func (l *Lab) ReplicaState(ctx context.Context, store string, machine ident.MachineID) (replica.State, error) {
	_, state, done, err := l.openReplica(ctx, store, machine)
	if err != nil {
		return state, err
	}
	done()
	return state, nil
}

// NotedAt gives what the guest noted at a point: disk id -> digest.
func (l *Lab) NotedAt(name string, p ident.Position) (guest.Entry, error) {
	ledger, err := guest.ReadLedger(l.ledger(name))
	if err != nil {
		return guest.Entry{}, err
	}
	entry, ok := ledger[[2]uint64{uint64(p.Epoch), uint64(p.Seq)}]
	if !ok {
		return entry, fmt.Errorf("%s was not frozen for the cut %s", name, p)
	}
	return entry, nil
}

func (l *Lab) ledger(name string) string { return l.Path("guests", name, "ledger.jsonl") }
