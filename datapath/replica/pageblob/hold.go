package pageblob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// holds is a machine's blob of holds. The plan of a deletion is in the same blob, so
// that a point is either held or deleted: one change wins, the other sees it.
type holds struct {
	Holds map[ident.Seq][]replica.Hold `json:"holds"`
	// Plan is the deletion that is being executed: points that go. They can no longer be held.
	Plan []ident.Seq `json:"plan,omitempty"`
	// Closed: the machine is being removed, nothing can be held.
	Closed bool `json:"closed,omitempty"`
}

func (m machine) loadHolds(ctx context.Context) (holds, azstorage.If, error) {
	var h holds
	b, tag, err := m.store.c.Get(ctx, m.holdsName(), maxJSON)
	cond := azstorage.If{Is: tag}
	switch {
	case errors.Is(err, azstorage.ErrNotFound):
		cond, err = azstorage.If{Absent: true}, nil
	case err == nil:
		if err = json.Unmarshal(b, &h); err != nil {
			err = fmt.Errorf("%w: %w", replica.ErrCorrupt, err)
		}
	}
	if err != nil {
		return h, cond, fmt.Errorf("read holds of %s: %w", m.id, err)
	}
	if h.Holds == nil {
		h.Holds = map[ident.Seq][]replica.Hold{}
	}
	return h, cond, nil
}

// changeHolds changes the blob as f does, again when another change came first. Nothing
// is written when f gives false.
func (m machine) changeHolds(ctx context.Context, f func(*holds) (bool, error)) error {
	for range maxRaces {
		h, cond, err := m.loadHolds(ctx)
		if err != nil {
			return err
		}
		if ok, err := f(&h); err != nil || !ok {
			return err
		}
		for id, list := range h.Holds {
			if h.Holds[id] = replica.LiveHolds(list, m.store.now()); len(h.Holds[id]) == 0 {
				delete(h.Holds, id)
			}
		}
		b, err := json.Marshal(h)
		if err != nil {
			return fmt.Errorf("write holds of %s: %w", m.id, err)
		}
		if _, err = m.store.c.Put(ctx, m.holdsName(), b, cond, nil); errors.Is(err, azstorage.ErrCondition) {
			continue // done by us before its reply was lost, too: every change can be made twice
		}
		if err != nil {
			return fmt.Errorf("write holds of %s: %w", m.id, err)
		}
		return nil
	}
	return fmt.Errorf("write holds of %s: others changed them %d times meanwhile: try again", m.id, maxRaces)
}

// closeHolds refuses holds from now on, unless a point is held.
func (m machine) closeHolds(ctx context.Context, mf *manifest) error {
	return m.changeHolds(ctx, func(h *holds) (bool, error) {
		for _, p := range mf.State.Points {
			if l := replica.LiveHolds(h.Holds[p.ID], m.store.now()); len(l) > 0 && !mf.Removed {
				return false, fmt.Errorf("point %d is held by %q until %s: %w", p.ID, l[0].Owner, l[0].Expires.Format(time.RFC3339), replica.ErrHeld)
			}
		}
		h.Closed = true
		return true, nil
	})
}

// reopenHolds is for a machine whose removal was refused after all.
func (m machine) reopenHolds(ctx context.Context) error {
	return m.changeHolds(ctx, func(h *holds) (bool, error) {
		was := h.Closed
		h.Closed = false
		return was, nil
	})
}

// Hold keeps retention away from the point. A point that is being deleted is
// ErrNotFound.
func (r *reader) Hold(ctx context.Context, point ident.Seq, hold replica.Hold) error {
	err := replica.CheckHold(hold, r.m.store.now())
	if err == nil {
		err = r.hold(ctx, point, hold)
	}
	if err != nil {
		return fmt.Errorf("hold point %d of machine %s: %w", point, r.m.id, err)
	}
	return nil
}

func (r *reader) hold(ctx context.Context, point ident.Seq, hold replica.Hold) error {
	return r.m.changeHolds(ctx, func(h *holds) (bool, error) {
		// The state is read after the holds: a deletion that was planned before shows here,
		// one that is planned later finds the hold.
		mf, err := r.m.load(ctx)
		if err != nil {
			return false, err
		}
		if h.Closed || mf.point(point) < 0 || slices.Contains(h.Plan, point) {
			return false, replica.ErrNotFound
		}
		h.Holds[point], err = replica.AddHold(h.Holds[point], hold)
		return err == nil, err
	})
}

// Release ends the owner's hold.
func (r *reader) Release(ctx context.Context, point ident.Seq, owner string) error {
	err := r.m.changeHolds(ctx, func(h *holds) (bool, error) {
		n := len(h.Holds[point])
		h.Holds[point] = replica.DropHold(h.Holds[point], owner)
		return len(h.Holds[point]) != n, nil
	})
	if err != nil {
		return fmt.Errorf("release point %d of machine %s: %w", point, r.m.id, err)
	}
	return nil
}
