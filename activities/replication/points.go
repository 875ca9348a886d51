package replication

import (
	"context"
	"errors"
	"slices"
	"time"

	"drover/activities/activityerr"
	"drover/datapath/attest"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// Bounds of a hold.
const (
	holdDefault = 24 * time.Hour
	holdLongest = 90 * 24 * time.Hour
)

// ListPoints lists the machine's recovery points, oldest first; none is no error.
func (c *Control) ListPoints(ctx context.Context, machine ident.MachineID) ([]replica.Point, error) {
	return listPoints(ctx, c.Store, machine)
}

func listPoints(ctx context.Context, store replica.Store, machine ident.MachineID) (points []replica.Point, err error) {
	err = withReader(ctx, store, machine, func(r replica.Reader) error {
		state, err := r.State(ctx)
		points = state.Points
		return err
	})
	if errors.Is(err, replica.ErrNotFound) {
		return []replica.Point{}, nil
	}
	if err != nil {
		return nil, activityerr.Of(err, "list the recovery points of machine %s", machine)
	}
	if points == nil {
		points = []replica.Point{}
	}
	return points, nil
}

func withReader(ctx context.Context, store replica.Store, machine ident.MachineID, do func(replica.Reader) error) error {
	r, err := store.OpenReader(ctx, machine)
	if err != nil {
		return err
	}
	if err := do(r); err != nil {
		_ = r.Close() // the first error tells more
		return err
	}
	return r.Close()
}

// ChoosePoint resolves a choice of recovery point and holds the point for its
// owner. "latest" is the newest point there is: the caller has let everything
// received be processed before. The hold is set before the answer is given, and
// the list read once more, so that retention cannot have been quicker.
func (c *Control) ChoosePoint(ctx context.Context, in api.ChoosePointInput) (replica.Point, error) {
	hold := in.Hold.D()
	if hold == 0 {
		hold = holdDefault
	}
	if in.Owner == "" || hold < 0 || hold > holdLongest {
		return replica.Point{}, activityerr.New(api.CodeInvalid, "hold a recovery point of machine %s: an owner and a time of at most %s are needed", in.Machine, holdLongest)
	}
	if in.Choice.Common() {
		id, err := c.commonPoint(ctx, in.Machine, in.Choice)
		if err != nil {
			return replica.Point{}, err
		}
		in.Choice, in.PointID = api.PointCustom, id
	}
	var chosen replica.Point
	err := withReader(ctx, c.Store, in.Machine, func(r replica.Reader) error {
		state, err := r.State(ctx)
		if err != nil {
			return err
		}
		p, err := pick(state.Points, in)
		if err != nil {
			return err
		}
		if err := r.Hold(ctx, p.ID, replica.Hold{Owner: in.Owner, Expires: c.Now().Add(hold)}); err != nil {
			return goneAs(err, in.Machine, p.ID)
		}
		if state, err = r.State(ctx); err != nil {
			return err
		}
		i := slices.IndexFunc(state.Points, func(q replica.Point) bool { return q.ID == p.ID })
		if i < 0 {
			return goneAs(replica.ErrNotFound, in.Machine, p.ID)
		}
		chosen = state.Points[i]
		return nil
	})
	if errors.Is(err, replica.ErrNotFound) {
		return replica.Point{}, activityerr.Wrap(api.CodeNoPoint, err, "machine %s has no replica; wait for its initial replication", in.Machine)
	}
	return chosen, activityerr.Of(err, "choose a recovery point of machine %s", in.Machine)
}

// goneAs: the point went between looking and holding it. That is worth another
// try, which chooses among what is left.
func goneAs(err error, machine ident.MachineID, id ident.Seq) error {
	if !errors.Is(err, replica.ErrNotFound) {
		return err
	}
	return activityerr.New(api.CodeInternal, "recovery point %d of machine %s was removed by retention while it was chosen", id, machine)
}

// pick resolves the choice. Points are ordered by sequence, oldest first.
func pick(points []replica.Point, in api.ChoosePointInput) (replica.Point, error) {
	var fits func(replica.Point) bool
	what := "recovery point"
	switch in.Choice {
	case api.PointLatest, api.PointLatestProcessed, "":
		fits = func(replica.Point) bool { return true }
	case api.PointLatestApp:
		what = "app-consistent recovery point"
		fits = func(p replica.Point) bool { return p.Consistency >= ident.ApplicationConsistent }
	case api.PointCustom:
		for _, p := range points {
			if p.ID == in.PointID {
				return p, nil
			}
		}
		return replica.Point{}, activityerr.New(api.CodeNoPoint, "machine %s has no recovery point %d among its %d; list them and choose again", in.Machine, in.PointID, len(points))
	default:
		return replica.Point{}, activityerr.New(api.CodeInvalid, "choice of recovery point %q: want %s or one of %q", in.Choice, api.PointCustom, api.PointChoices)
	}
	for i := len(points) - 1; i >= 0; i-- {
		if fits(points[i]) {
			return points[i], nil
		}
	}
	return replica.Point{}, activityerr.New(api.CodeNoPoint, "machine %s has no %s yet (%d points in all); wait for one, or choose another kind", in.Machine, what, len(points))
}

// ReleasePoint ends a hold; a point or machine that is gone is no error.
func (c *Control) ReleasePoint(ctx context.Context, in api.ReleasePointInput) error {
	err := withReader(ctx, c.Store, in.Machine, func(r replica.Reader) error {
		if in.Point != 0 {
			return r.Release(ctx, in.Point, in.Owner)
		}
		state, err := r.State(ctx)
		if err != nil {
			return err
		}
		for _, p := range state.Points {
			if !slices.ContainsFunc(p.Holds, func(h replica.Hold) bool { return h.Owner == in.Owner }) {
				continue
			}
			if err := r.Release(ctx, p.ID, in.Owner); err != nil && !errors.Is(err, replica.ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, replica.ErrNotFound) {
		return nil
	}
	return activityerr.Of(err, "release recovery point %d of machine %s", in.Point, in.Machine)
}

// RemoveReplica deletes the machine's replica, points, cache objects and data
// keys, in this order: without its keys nothing else could be read again.
func (c *Control) RemoveReplica(ctx context.Context, in api.FenceInput) error {
	if err := c.Fence(ctx, in); err != nil {
		return err
	}
	err := c.Store.Remove(ctx, in.Machine, in.Epoch)
	if err != nil && !errors.Is(err, replica.ErrNotFound) {
		return activityerr.Of(err, "remove the replica of machine %s", in.Machine)
	}
	if err := c.Store.RemoveDocument(ctx, attest.Document(in.Machine)); err != nil {
		return activityerr.Of(err, "remove the record of comparisons of machine %s", in.Machine)
	}
	names, err := c.Cache.List(ctx, in.Machine)
	if err != nil {
		return activityerr.Of(err, "list the cache of machine %s", in.Machine)
	}
	for _, name := range names {
		if err := c.Cache.Delete(ctx, name); err != nil {
			return activityerr.Of(err, "remove change set %d of machine %s from the cache", name.Seq, in.Machine)
		}
	}
	return activityerr.Of(c.Registry.DropKeys(in.Machine), "drop the data keys of machine %s", in.Machine)
}
