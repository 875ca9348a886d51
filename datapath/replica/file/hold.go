package file

import (
	"context"
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
	if err := replica.CheckHold(hold, r.m.store.now()); err != nil {
		return err
	}
	return r.changeHolds(ctx, func(mf *manifest, plan deletePlan, holds map[ident.Seq][]replica.Hold) error {
		if mf.point(point) < 0 || slices.Contains(plan.Points, point) {
			return replica.ErrNotFound
		}
		list, err := replica.AddHold(holds[point], hold)
		if err == nil {
			holds[point] = list
		}
		return err
	})
}

// Release ends the owner's hold.
func (r *reader) Release(ctx context.Context, point ident.Seq, owner string) error {
	err := r.changeHolds(ctx, func(_ *manifest, _ deletePlan, holds map[ident.Seq][]replica.Hold) error {
		holds[point] = replica.DropHold(holds[point], owner)
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
		holds[id] = replica.LiveHolds(list, r.m.store.now())
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
