package file

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Hold keeps retention away from the point. A point that is being deleted is
// ErrNotFound.
func (r *reader) Hold(ctx context.Context, point ident.Seq, hold replica.Hold) error {
	if err := r.hold(ctx, point, hold); err != nil {
		return fmt.Errorf("hold point %d of machine %s: %w", point, r.m.id, err)
	}
	return nil
}

func (r *reader) hold(ctx context.Context, point ident.Seq, hold replica.Hold) error {
	if hold.Owner == "" || len(hold.Owner) > maxHoldOwner {
		return fmt.Errorf("an owner's name of %d bytes, want 1 to %d", len(hold.Owner), maxHoldOwner)
	}
	if !hold.Expires.After(r.m.store.now()) {
		return errors.New("it expires in the past")
	}
	return r.changeHolds(ctx, func(mf *manifest, plan deletePlan, holds map[ident.Seq][]replica.Hold) error {
		if mf.point(point) < 0 || slices.Contains(plan.Points, point) {
			return replica.ErrNotFound
		}
		list := slices.DeleteFunc(holds[point], func(h replica.Hold) bool { return h.Owner == hold.Owner })
		if len(list) >= maxHoldsPer {
			return fmt.Errorf("it has %d holds already, the most there may be: release one", len(list))
		}
		holds[point] = append(list, hold)
		return nil
	})
}

// Release ends the owner's hold.
func (r *reader) Release(ctx context.Context, point ident.Seq, owner string) error {
	err := r.changeHolds(ctx, func(_ *manifest, _ deletePlan, holds map[ident.Seq][]replica.Hold) error {
		holds[point] = slices.DeleteFunc(holds[point], func(h replica.Hold) bool { return h.Owner == owner })
		return nil
	})
	if err != nil {
		return fmt.Errorf("release point %d of machine %s: %w", point, r.m.id, err)
	}
	return nil
}

// changeHolds changes the holds under their lock. Those that expired and those of
// points that are gone are dropped.
func (r *reader) changeHolds(ctx context.Context, change func(*manifest, deletePlan, map[ident.Seq][]replica.Hold) error) error {
	unlock, err := r.m.lockHolds(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	mf, err := r.m.load()
	if err != nil {
		return err
	}
	plan, err := r.m.loadPlan()
	if err != nil {
		return err
	}
	holds, err := r.m.loadHolds()
	if err != nil {
		return err
	}
	for id, list := range holds {
		holds[id] = live(list, r.m.store.now())
	}
	if err := change(mf, plan, holds); err != nil {
		return err
	}
	for id, list := range holds {
		if len(list) == 0 || mf.point(id) < 0 {
			delete(holds, id)
		}
	}
	return r.m.saveHolds(holds)
}
