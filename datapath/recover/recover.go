// Package recover writes machines' disks out of a replica store, with nothing but
// the store: for the day when the configuration server, Temporal's database and the
// site are gone. The manifests beside the disks say all that is needed.
package recover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

const (
	copyBytes = 4 << 20
	// holdFor keeps retention away from the point while it is read.
	holdFor   = time.Hour
	holdAgain = 10 * time.Minute
)

// ErrNoPoint: the machine has no such recovery point.
var ErrNoPoint = errors.New("no such recovery point")

// Machines reads the manifests of all machines, by name.
func Machines(ctx context.Context, s replica.Store) ([]replica.State, error) {
	ids, err := s.Machines(ctx)
	if err != nil {
		return nil, err
	}
	var out []replica.State
	for _, id := range ids {
		st, err := state(ctx, s, id)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b replica.State) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return out, nil
}

func state(ctx context.Context, s replica.Store, id ident.MachineID) (replica.State, error) {
	r, err := s.OpenReader(ctx, id)
	if err != nil {
		return replica.State{}, err
	}
	st, err := r.State(ctx)
	return st, errors.Join(err, r.Close())
}

// Find gives a machine by its name or id. A name that several machines have is an
// error that lists their ids.
func Find(ctx context.Context, s replica.Store, name string) (replica.State, error) {
	all, err := Machines(ctx, s)
	if err != nil {
		return replica.State{}, err
	}
	var found []replica.State
	var ids []string
	for _, st := range all {
		if st.Spec.Machine.String() == name || st.Spec.Name == name {
			found, ids = append(found, st), append(ids, st.Spec.Machine.String())
		}
	}
	switch len(found) {
	case 0:
		return replica.State{}, fmt.Errorf("machine %s: %w in this store", name, replica.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return replica.State{}, fmt.Errorf("machine %s: %d machines have this name; give an id: %s", name, len(found), strings.Join(ids, ", "))
}

// planPrefix begins the names of the documents that hold recovery plans.
const planPrefix = "plan-"

// Plan is what a recovery plan says of the order in which machines come back.
type Plan struct {
	Name   string  `json:"name"`
	Groups []Group `json:"groups"`
	// Document is the plan as the control plane knew it, with its actions.
	Document json.RawMessage `json:"document"`
}

// Group is a group of machines that recover together.
type Group struct {
	Name     string   `json:"name"`
	Machines []string `json:"machines"`
}

// Plans reads the recovery plans that lie beside the machines, by name.
func Plans(ctx context.Context, s replica.Store) ([]Plan, error) {
	docs, err := s.Documents(ctx)
	if err != nil {
		return nil, err
	}
	out := []Plan{}
	for name, b := range docs {
		if !strings.HasPrefix(name, planPrefix) {
			continue
		}
		var doc struct {
			Plan struct {
				Name   string `json:"name"`
				Groups []struct {
					Name     string `json:"name"`
					Machines []struct {
						Name string `json:"name"`
					} `json:"machines"`
				} `json:"groups"`
			} `json:"plan"`
		}
		if err := json.Unmarshal(b, &doc); err != nil {
			return nil, fmt.Errorf("read recovery plan %s: %w: %w", strings.TrimPrefix(name, planPrefix), replica.ErrCorrupt, err)
		}
		p := Plan{Name: doc.Plan.Name, Document: b}
		for _, g := range doc.Plan.Groups {
			group := Group{Name: g.Name}
			for _, m := range g.Machines {
				group.Machines = append(group.Machines, m.Name)
			}
			p.Groups = append(p.Groups, group)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Plan) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Point gives the point with the number, or the newest one for 0.
func Point(st replica.State, id ident.Seq) (replica.Point, error) {
	for i := len(st.Points) - 1; i >= 0; i-- {
		if id == 0 || st.Points[i].ID == id {
			return st.Points[i], nil
		}
	}
	return replica.Point{}, fmt.Errorf("machine %s, point %d: %w; it has %d", st.Spec.Name, id, ErrNoPoint, len(st.Points))
}

// Disk is a disk that was written.
type Disk struct {
	ID   ident.DiskID `json:"id"`
	Name string       `json:"name"`
	Path string       `json:"path"`
	Size int64        `json:"size"`
	Data int64        `json:"data"` // bytes written; the rest is holes
}

// Write writes all disks of a machine as of a point to raw image files in a
// directory, sparse. A disk's file appears under its name when it is whole and
// durable; one that is there already is not replaced. progress may be nil.
func Write(ctx context.Context, s replica.Store, st replica.State, p replica.Point, dir string, progress func(d Disk, done int64)) ([]Disk, error) {
	r, err := s.OpenReader(ctx, st.Spec.Machine)
	if err != nil {
		return nil, err
	}
	release, err := hold(ctx, r, p.ID)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	var out []Disk
	for i, d := range p.Disks {
		disk := Disk{ID: d.ID, Name: d.Name, Size: d.Size, Path: filepath.Join(dir, fmt.Sprintf("%s-disk%d.raw", st.Spec.Machine, i+1))}
		if disk.Data, err = writeDisk(ctx, r, p.ID, disk, progress); err != nil {
			err = fmt.Errorf("write disk %s of machine %s, point %d: %w", d.Name, st.Spec.Name, p.ID, err)
			break
		}
		out = append(out, disk)
	}
	return out, errors.Join(err, release(), r.Close())
}

// hold keeps the point until it is released. A store that cannot be written to is
// read without a hold: then nobody deletes points either.
func hold(ctx context.Context, r replica.Reader, point ident.Seq) (release func() error, err error) {
	owner := fmt.Sprintf("drover-recover-%d", os.Getpid())
	again := func() error {
		return r.Hold(ctx, point, replica.Hold{Owner: owner, Expires: time.Now().Add(holdFor)})
	}
	if err := again(); err != nil {
		if errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "read-only file system") {
			return func() error { return nil }, nil
		}
		return nil, err
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(holdAgain)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				_ = again() // the hold there is lasts several times longer
			}
		}
	}()
	return func() error {
		close(done)
		<-ended
		return r.Release(context.WithoutCancel(ctx), point, owner)
	}, nil
}

func writeDisk(ctx context.Context, r replica.Reader, point ident.Seq, d Disk, progress func(Disk, int64)) (int64, error) {
	if _, err := os.Lstat(d.Path); err == nil {
		return 0, fmt.Errorf("%s: %w; move it away or name another directory", d.Path, os.ErrExist)
	}
	from, err := r.OpenDisk(ctx, point, d.ID)
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(d.Path+durable.TempSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, errors.Join(err, from.Close())
	}
	n, err := copyDisk(ctx, from, f, d, progress)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close(), from.Close()); err == nil {
		err = os.Rename(f.Name(), d.Path)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return n, durable.SyncDir(filepath.Dir(d.Path))
}

// copyDisk copies the ranges that may hold data.
func copyDisk(ctx context.Context, from replica.DiskReader, to *os.File, d Disk, progress func(Disk, int64)) (written int64, err error) {
	if err := to.Truncate(from.Size()); err != nil {
		return 0, err
	}
	buf := make([]byte, copyBytes)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return written, err
		}
		next, ok, err := from.NextData(off)
		if err != nil {
			return written, err
		}
		if !ok {
			break
		}
		part := buf[:min(next.Length, copyBytes)]
		if _, err := io.ReadFull(io.NewSectionReader(from, next.Offset, int64(len(part))), part); err != nil {
			return written, err
		}
		if _, err := to.WriteAt(part, next.Offset); err != nil {
			return written, err
		}
		off = next.Offset + int64(len(part))
		written += int64(len(part))
		if progress != nil {
			progress(d, off)
		}
	}
	return written, nil
}
